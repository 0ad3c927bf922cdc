"""Everyday Robots' mobile manipulator under RT-1's control (Brohan et al. 2022, arXiv:2212.06817): 3 Hz.

`move`: how far the tool shall go from where it is, along the axes of the robot's base. `turn`: roll, pitch and yaw of the turn about
the same axes, as RT-1 commands them; it is no rotation vector. `gripper`: the opening, which stays until it is changed. `hand` and
`rotation` are the tool in the base's frame. The camera is on the head. RT-1 also drives the base; the published mixtures leave that
out, and so does this.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="google_robot",
    cameras=("third_person",),
    state=Space(
        (Field("hand", 3, "m", "absolute"), Field("rotation", 4, "quat_xyzw", "absolute"), Field("gripper", 1, "open01", "absolute"))
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(3),
    horizon=3,
    limits=None,  # not published
)
