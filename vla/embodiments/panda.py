"""Franka Panda of robosuite 1.5 under its OSC_POSE controller (Zhu et al. 2020).

`move`: 1.0 puts the hand's target 50 mm from where the hand is, for a step of 1/20 s, along the base's x (forwards), y (left) and
z (up). `turn`: 1.0 is 0.5 rad about the same axes. `gripper`: 1.0 closes and -1.0 opens at full speed. State `gripper` is the
distance of the fingers in metres (0 closed, 0.08 open); `hand` and `rotation` are those of the grip site in the world.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="panda",
    cameras=("third_person", "wrist"),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"), Field("gripper", 1, "m", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(20),
    horizon=12,
    limits=((-1.0, 1.0),) * 7,
)
