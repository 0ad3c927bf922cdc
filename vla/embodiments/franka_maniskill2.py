"""Franka Panda of ManiSkill2 under its pose controller (Gu et al. 2023, ICLR): 20 Hz.

`move`: change of the tool's target position, at most 0.1 m. `turn`: rotation vector of the target's change, at most 0.1 rad. `gripper`:
the opening to be reached. State: the tool in the world, joints, and each finger's distance from the middle.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_maniskill2",
    cameras=("third_person", "wrist"),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 4, "quat_xyzw", "absolute"),
            Field("arm", 7, "rad", "absolute"),
            Field("gripper", 2, "m", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(20),
    horizon=16,
    limits=((-0.1, 0.1),) * 3 + ((-0.1, 0.1),) * 3 + ((0.0, 1.0),),
)
