"""Rethink Sawyer with a camera at its wrist (Imperial College): 10 Hz.

`move`: change of the hand's position along the hand's own axes. `turn`: change of its angles about z, y and x (in that order).
`gripper`: the opening. State: whether the gripper is open, as recorded.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="sawyer_wrist",
    cameras=("wrist",),
    state=Space((Field("gripper", 1, "command", "absolute"),)),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
