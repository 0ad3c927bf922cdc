"""Franka Panda of NYU's play data (From Play to Policy, Cui et al. 2022, arXiv:2210.10047): 3 Hz.

`move` and `turn`: change of the hand's position, and of its roll, pitch and yaw number by number. `gripper`: the opening to be reached.
State: joints, and the hand in the base's frame. Cameras: right, then left.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_play",
    cameras=("third_person", "third_person_2"),
    state=Space((Field("arm", 7, "rad", "absolute"), Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(3),
    horizon=3,
    limits=None,  # not published
)
