"""Franka Panda of HYDRA (Belkhale et al. 2023, arXiv:2306.17237): 10 Hz.

`move`: change of the hand's position, at most 25 mm. `turn`: change of roll, pitch and yaw, at most 0.25 rad. `gripper`: the opening to
be reached. State: the hand in the base's frame, joints, and the distance of the fingers.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_hydra",
    cameras=("third_person", "wrist"),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 6, "rot6d", "absolute"),
            Field("arm", 7, "rad", "absolute"),
            Field("gripper", 1, "m", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=((-0.025, 0.025),) * 3 + ((-0.25, 0.25),) * 3 + ((0.0, 1.0),),
)
