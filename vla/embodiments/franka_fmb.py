"""Franka Panda of the Functional Manipulation Benchmark (Luo et al. 2024, arXiv:2401.08553): 10 Hz.

`move` and `turn`: the twist that the space mouse asks for; what 1.0 is was not published. `gripper`: the opening to be reached. State:
the hand in the base's frame, joints, and the opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_fmb",
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
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
