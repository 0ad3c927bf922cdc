"""Franka Panda of PlayFusion (Chen, Bahl, Pathak 2023, CoRL): 5 Hz.

`move`: change of the hand's position. `turn`: the rotation that goes with it. `gripper`: the opening. State: joints, and the distance
of the fingers.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "axis_angle", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_play_fusion",
    cameras=("third_person",),
    state=Space((Field("arm", 7, "rad", "absolute"), Field("gripper", 1, "m", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(5),
    horizon=5,
    limits=None,  # not published
)
