"""FANUC LR Mate 200iD of Berkeley's Fanuc Manipulation (Zhu et al. 2023): 10 Hz.

`move`: change of the tool's position, at most 10 mm. `turn`: change of roll, pitch and yaw, at most 2 degrees. `gripper`: the opening,
taken from the state because none was commanded. State: the tool in the base's frame, joints, and the opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="fanuc_mate",
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
    rate_hz=Fraction(10),
    horizon=8,
    limits=((-0.01, 0.01),) * 3 + ((-0.0349066, 0.0349066),) * 3 + ((0.0, 1.0),),
)
