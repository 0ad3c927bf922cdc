"""Franka Panda of TACO Play (Rosete-Beas et al. 2022; Mees et al. 2023): 15 Hz.

`move` and `turn`: change of the tool's pose along the base's axes, divided by factors that were not published (CALVIN, by the same
authors, multiplies metres by 50 and radians by 20). `gripper`: the opening to be reached. State `gripper` is the distance of the
fingers.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_taco",
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
    rate_hz=Fraction(15),
    horizon=12,
    limits=None,  # not published
)
