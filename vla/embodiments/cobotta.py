"""DENSO Cobotta of the University of Tokyo's motion-planning data (LSMO, Osa 2022): 10 Hz.

`move` and `turn`: change of the tool's position, and of its Euler angles. `gripper`: the opening. State: the tool in the base's frame,
joints, and the opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="cobotta",
    cameras=("third_person",),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 6, "rot6d", "absolute"),
            Field("arm", 6, "rad", "absolute"),
            Field("gripper", 1, "open01", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
