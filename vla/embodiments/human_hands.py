"""Two hands of a person who wears the camera: wrists and finger tips in metres, as that camera sees them (EgoDex, Hoque et al. 2025).

`left_hand`, `right_hand`: x (right), y (down) and z (forward) of the wrist, then of the tips of thumb, index, middle, ring and little
finger, in the frame of the camera at that step; so a turn of the head moves them too. What is learned is where they will be, relative
to where they are. There is nothing to send: it is learned from, beside a robot that acts.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

POINTS = ("wrist", "thumb_tip", "index_tip", "middle_tip", "ring_tip", "little_tip")
_SIZE = 3 * len(POINTS)
_PLACES = Space((Field("left_hand", _SIZE, "m", "absolute"), Field("right_hand", _SIZE, "m", "absolute")))

EMBODIMENT = Embodiment(
    name="human_hands",
    cameras=("first_person",),
    state=_PLACES,
    command=_PLACES,
    action=Space((Field("left_hand", _SIZE, "m", "from_state"), Field("right_hand", _SIZE, "m", "from_state"))),
    rate_hz=Fraction(10),
    horizon=10,
    limits=None,
)
