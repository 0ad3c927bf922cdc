"""Kinova Gen3 of D3Fields (Wang et al. 2023, arXiv:2309.16118): 1 Hz.

`move`: how the hand moved since the last picture, along the base's axes. State: the hand in the base's frame.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"),))

EMBODIMENT = Embodiment(
    name="kinova_d3fields",
    cameras=("third_person", "third_person_2"),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(1),
    horizon=1,
    limits=None,  # not published
)
