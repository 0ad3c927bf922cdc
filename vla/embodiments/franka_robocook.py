"""Franka Panda of RoboCook (Shi et al. 2023, arXiv:2306.14447): 5 Hz.

`move`, `turn` and `gripper`: velocity of the tool, its angular velocity, and the speed at which the fingers part. State: the tool in
the base's frame, and the distance of the fingers.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m/s", "absolute"), Field("turn", 3, "rad/s", "absolute"), Field("gripper", 1, "m/s", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_robocook",
    cameras=("third_person", "third_person_2"),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"), Field("gripper", 1, "m", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(5),
    horizon=5,
    limits=None,  # not published
)
