"""Hello Stretch of CMU's affordance data (Bahl et al. 2023; Mendonca et al. 2023): 10 Hz.

`move`: change of the hand's position; only x and z are used. `turn`: change of roll, pitch and yaw, never used. `gripper`: the opening
to be reached. State `gripper` is the finger's own number, whose unit was not published.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="stretch_cmu",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "m", "absolute"), Field("gripper", 1, "command", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
