"""KUKA LBR iiwa inserting pegs (Making Sense of Vision and Touch, Lee et al. 2019, arXiv:1810.10191): 20 Hz.

`move`: change of the tool's position; what 1.0 is was not published. `gripper`: open or closed, without it being published which is
which; the peg is held throughout. State: the tool in the base's frame, joints, and the gripper as recorded.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("gripper", 1, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="kuka_iiwa_insert",
    cameras=("third_person",),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 4, "quat_xyzw", "absolute"),
            Field("arm", 7, "rad", "absolute"),
            Field("gripper", 1, "command", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(20),
    horizon=16,
    limits=None,  # not published
)
