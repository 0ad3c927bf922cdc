"""Franka Panda of OpenVLA's tabletop tasks on DROID's platform (T-DROID; Kim et al. 2024, arXiv:2406.09246): 5 Hz.

`move` and `turn`: change of the hand's pose along the base's axes; DROID's scales (75 mm and 0.15 rad for 1.0) are likely, not
published. `gripper`: the opening to be reached. State: the hand in the base's frame, and the opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_tdroid",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"), Field("gripper", 1, "open01", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(5),
    horizon=5,
    limits=None,  # not published
)
