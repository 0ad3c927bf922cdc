"""UFACTORY xArm 7 of the University of Tokyo's Weblab (Matsushima et al. 2023), picking and placing: 10 Hz.

`move` and `turn`: change of the hand's position, and of its yaw, pitch and roll. `gripper`: the opening to be reached. State: the hand
in the base's frame, and joints.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="xarm_weblab",
    cameras=("third_person", "third_person_2", "wrist"),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"), Field("arm", 7, "rad", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
