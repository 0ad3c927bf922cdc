"""Franka Panda of CMU's pick-up and insert data (Saxena et al. 2023, CoRL): 20 Hz.

`hand` and `rotation`: the pose of the hand at the next step, in the base's frame. `gripper`: the opening then. State: joints, and the
opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_iamlab",
    cameras=("third_person", "wrist"),
    state=Space((Field("arm", 7, "rad", "absolute"), Field("gripper", 1, "open01", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(20),
    horizon=16,
    limits=None,  # not published
)
