"""KUKA LBR iiwa picking from a bin (QT-Opt, Kalashnikov et al. 2018, arXiv:1806.10293): 10 Hz.

`move`: how far the gripper shall go, along the base's axes. `turn`: roll, pitch and yaw; only yaw is ever commanded. `gripper`: the
opening, which stays until it is changed. `hand` and `rotation` are the tool in the base's frame. The camera looks over the shoulder.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="kuka_iiwa_grasp",
    cameras=("third_person",),
    state=Space(
        (Field("hand", 3, "m", "absolute"), Field("rotation", 4, "quat_xyzw", "absolute"), Field("gripper", 1, "open01", "absolute"))
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
