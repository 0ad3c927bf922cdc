"""Franka Panda of TOTO (Zhou et al. 2023, arXiv:2306.00942): 30 Hz.

`hand` and `rotation`: the pose of the tool that is commanded, in the base's frame, as position and three angles; the published
statistics (positions about 0.39, 0.01, 0.36 m) say that they are no differences. The tool is held throughout, so there is no gripper to
command. State: joints.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("hand", 3, "m", "absolute"), Field("rotation", 3, "rad", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_toto",
    cameras=("third_person",),
    state=Space((Field("arm", 7, "rad", "absolute"),)),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(30),
    horizon=24,
    limits=None,  # not published
)
