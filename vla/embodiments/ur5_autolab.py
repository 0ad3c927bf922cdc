"""UR5 of the Berkeley UR5 demonstrations (Chen, Adebola, Goldberg 2023): 5 Hz.

`move`: change of the tool's position along the base's axes, at most 20 mm. `turn`: change of roll, pitch and yaw, at most 1/15 rad.
`gripper`: the opening, which stays until it is changed. State: the tool in the base's frame, joints, and whether the gripper is open.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="ur5_autolab",
    cameras=("third_person", "wrist"),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 4, "quat_xyzw", "absolute"),
            Field("arm", 6, "rad", "absolute"),
            Field("gripper", 1, "open01", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(5),
    horizon=5,
    limits=((-0.02, 0.02),) * 3 + ((-1 / 15, 1 / 15),) * 3 + ((0.0, 1.0),),
)
