"""EDAN, DLR's wheelchair with a light-weight arm, under shared control (Vogel et al. 2020; Quere et al. 2020): 5 Hz.

`move` and `turn`: change of the hand's position, and of its angles about z, x and y (in that order), as they were recorded. `gripper`:
the opening. State: the hand in the base's frame, and the opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="dlr_edan",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"), Field("gripper", 1, "open01", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(5),
    horizon=5,
    limits=None,  # not published
)
