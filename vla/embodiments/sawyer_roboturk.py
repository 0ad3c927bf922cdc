"""Rethink Sawyer of RoboTurk's real-robot data (Mandlekar et al. 2019): 10 Hz.

`move` and `turn`: change of the tool's pose asked for by the phone that steers it; unit and axes were not published. `gripper`: the
opening to be reached. No state was recorded.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="sawyer_roboturk",
    cameras=("third_person",),
    state=Space(()),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
