"""The disc of PushT that pushes a T over a plane (Florence et al. 2021; as in Diffusion Policy, Chi et al. 2023, and gym-pusht): 10 Hz.

`hand`: where the disc shall be, in a square of 512 px with x to the right and y down; a spring pulls it there. The state is where it is.
The chunk is Diffusion Policy's: 16 steps, of which it executes 8.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_HAND = Space((Field("hand", 2, "px", "absolute"),))

EMBODIMENT = Embodiment(
    name="pusht",
    cameras=("third_person",),
    state=_HAND,
    command=_HAND,
    action=_HAND,
    rate_hz=Fraction(10),
    horizon=16,
    limits=((0.0, 512.0),) * 2,
)
