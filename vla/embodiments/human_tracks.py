"""Points on a hand as one camera sees them: an action space that people in video and robots share (Ren et al. 2025, Motion Tracks).

`points`: x (right) and y (down) of the wrist, the tip of the thumb and the tip of the index finger, in pixels of the picture as if it
were 256 x 256; of a gripper, where its fingers are mounted and their two tips. A point that nobody sees keeps its last place. What is
learned is where they will be, relative to where they are. There is nothing to send: it is learned from, beside a robot that acts.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

SIDE_PX = 256
POINTS = ("wrist", "thumb_tip", "index_tip")
_PLACES = Space((Field("points", 2 * len(POINTS), "px", "absolute"),))

EMBODIMENT = Embodiment(
    name="human_tracks",
    cameras=("third_person",),
    state=_PLACES,
    command=_PLACES,
    action=Space((Field("points", 2 * len(POINTS), "px", "from_state"),)),
    rate_hz=Fraction(10),
    horizon=10,
    limits=None,
)
