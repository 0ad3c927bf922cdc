"""Fetch Mobile Manipulator of gymnasium-robotics, moved by its end effector (Plappert et al. 2018).

`move`: 1.0 puts the target of the gripper 50 mm from where the gripper is, for a step of 1/25 s, along the world's x (away from
the base), y (left) and z (up); its orientation is fixed. `gripper`: 1.0 drives the fingers open and -1.0 closed; tasks that
need no grasp hold it closed. State `gripper` is each finger's opening in metres (0 closed, 0.05 open).
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("gripper", 1, "command", "step")))

EMBODIMENT = Embodiment(
    name="fetch",
    cameras=("third_person", "side"),
    state=Space((Field("hand", 3, "m", "absolute"), Field("gripper", 2, "m", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(25),
    horizon=12,
    limits=((-1.0, 1.0),) * 4,
)
