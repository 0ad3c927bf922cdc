"""SARA, DLR's light-weight arm (Padalkar et al. 2023): 10 Hz.

`move` and `turn`: change of the hand's position, and of its angles about z, x and y (in that order). `gripper`: its own number, whose
meaning was not published. State: the hand in the base's frame.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="dlr_sara",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
