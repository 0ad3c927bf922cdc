"""UFACTORY xArm of Language Table (Lynch et al. 2022, arXiv:2210.06407): 10 Hz.

`target_hand`: how far the target of the pushing tool is moved on the table, along x and y. State: where the tool is, and its target.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("target_hand", 2, "m", "step"),))

EMBODIMENT = Embodiment(
    name="language_table",
    cameras=("third_person",),
    state=Space((Field("hand", 2, "m", "absolute"), Field("target_hand", 2, "m", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
