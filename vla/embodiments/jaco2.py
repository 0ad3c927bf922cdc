"""Kinova Jaco 2 of CLVR Jaco Play (Dass et al. 2023): 10 Hz.

`move`: displacement of the hand as the joystick gives it, at most 0.2; its unit was not published. `gripper`: the opening, which stays
until it is changed. The hand does not turn. `hand` and `rotation` are the hand in the base's frame.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="jaco2",
    cameras=("third_person", "wrist"),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 4, "quat_xyzw", "absolute"), Field("arm", 6, "rad", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=((-0.2, 0.2),) * 3 + ((0.0, 1.0),),
)
