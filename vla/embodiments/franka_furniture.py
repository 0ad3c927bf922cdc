"""Franka Panda of FurnitureBench (Heo et al. 2023, arXiv:2305.12821): 10 Hz.

`move`: how far the hand shall go from where it is, along the base's axes. `turn`: the rotation from its present one, about its own axes
(goal = present x turn). `gripper`: the opening to be reached. State: the hand in the base's frame, joints, and the distance of the
fingers.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "axis_angle", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_furniture",
    cameras=("third_person", "wrist"),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 4, "quat_xyzw", "absolute"),
            Field("arm", 7, "rad", "absolute"),
            Field("gripper", 1, "m", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
