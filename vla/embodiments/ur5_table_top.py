"""UR5 of ASU's TableTop manipulation (Zhou et al. 2023): 12.5 Hz.

`arm`: the seven numbers that were recorded as joint velocities, six joints and the gripper; unit and sense were not published. State:
the tool in the base's frame, joints, and the gripper as recorded.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("arm", 7, "command", "absolute"),))

EMBODIMENT = Embodiment(
    name="ur5_table_top",
    cameras=("third_person",),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 6, "rot6d", "absolute"),
            Field("arm", 6, "rad", "absolute"),
            Field("gripper", 1, "command", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction("12.5"),
    horizon=10,
    limits=None,  # not published
)
