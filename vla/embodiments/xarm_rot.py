"""UFACTORY xArm of ROT (Watch and Match, Haldar et al. 2022, arXiv:2206.15469): 3 Hz.

`move` and `turn`: change of the tool's position, and of roll, pitch and yaw, within -1..1 of what was not published. Nothing commands
the gripper. State: the position, clipped to -1..1.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step")))

EMBODIMENT = Embodiment(
    name="xarm_rot",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "command", "absolute"),)),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(3),
    horizon=3,
    limits=None,  # not published
)
