"""PR2 of the University of Tokyo's JSK (Oh, Kanazawa, Kawaharazuka 2023): 10 Hz.

`move` and `turn`: change of the hand's position, and of its roll, pitch and yaw. `gripper`: the opening to be reached. State: the hand
in the base's frame, and the distance of the fingers.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="pr2",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"), Field("gripper", 1, "m", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
