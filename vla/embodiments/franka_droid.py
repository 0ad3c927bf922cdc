"""Franka Panda with a Robotiq gripper of DROID (Khazatsky et al. 2024, arXiv:2403.12945): 15 Hz.

`move`: how far the hand shall go from where it is, along the base's axes; DROID's velocity 1.0 is 75 mm a step. `turn`: the rotation
from its present one, about its own axes; DROID's 1.0 is 0.15 rad. `gripper`: the opening to be reached. State: the hand in the base's
frame, joints, and the opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "axis_angle", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_droid",
    cameras=("third_person", "third_person_2", "wrist"),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 4, "quat_xyzw", "absolute"),
            Field("arm", 7, "rad", "absolute"),
            Field("gripper", 1, "open01", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(15),
    horizon=12,
    limits=((-0.075, 0.075),) * 3 + ((-0.15, 0.15),) * 3 + ((0.0, 1.0),),
)
