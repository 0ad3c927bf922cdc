"""UR5 pushing a T over a table (Diffusion Policy, Chi et al. 2023, arXiv:2303.04137): 10 Hz.

`move`: change of the tool's position; `turn`: change of roll, pitch and yaw. A pusher has no gripper. State: x and y of the tool.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step")))

EMBODIMENT = Embodiment(
    name="ur5_pusht",
    cameras=("third_person", "wrist"),
    state=Space((Field("hand", 2, "m", "absolute"),)),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
