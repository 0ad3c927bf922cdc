"""Flexiv Rizon of RH20T (Fang et al. 2023, arXiv:2307.00595): 10 Hz.

`hand` and `rotation`: the commanded pose of the tool in the base's frame, as position and three angles. `gripper`: the width that is
commanded, in the gripper's own number. State: the same, as measured. Cameras: front, right side, wrist.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("hand", 3, "m", "absolute"), Field("rotation", 3, "rad", "absolute"), Field("gripper", 1, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="flexiv_rh20t",
    cameras=("third_person", "third_person_2", "wrist"),
    state=_COMMAND,
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
