"""Dobb-E's stick with an iPhone, whose gripper is Hello Stretch's (Shafiullah et al. 2023, arXiv:2311.16098): 30 Hz.

`hand`: how the stick moves in a step, in the frame in which the phone tracks itself. `rotation`: how it turns, about its own axes.
`gripper`: the opening at the next step. The state is the stick in the frame of the phone's tracking, which starts anew each time.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("hand", 3, "m", "step"), Field("rotation", 3, "axis_angle", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="stick_dobbe",
    cameras=("wrist",),
    state=Space(
        (Field("hand", 3, "m", "absolute"), Field("rotation", 4, "quat_xyzw", "absolute"), Field("gripper", 1, "open01", "absolute"))
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(30),
    horizon=24,
    limits=None,  # not published
)
