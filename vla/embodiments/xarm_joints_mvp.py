"""UFACTORY xArm 7 of Berkeley's MVP data (Radosavovic et al. 2022, arXiv:2203.06173): 5 Hz.

`arm`: how the joints move in a step. `gripper`: the opening at the next step. State: the hand in the base's frame, joints, and the
opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("arm", 7, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="xarm_joints_mvp",
    cameras=("wrist",),
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
    rate_hz=Fraction(5),
    horizon=5,
    limits=None,  # not published
)
