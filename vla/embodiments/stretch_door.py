"""The reacher-grabber stick and Hello Stretch of NYU's door opening (VINN, Pari et al. 2021, arXiv:2112.01511): 3 Hz.

`move` and `turn`: change of the stick's pose, found by structure from motion, so that its scale is not metres. `gripper`: the opening,
which stays until it is changed. No state was recorded.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="stretch_door",
    cameras=("wrist",),
    state=Space(()),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(3),
    horizon=3,
    limits=None,  # not published
)
