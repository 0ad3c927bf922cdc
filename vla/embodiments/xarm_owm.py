"""UFACTORY xArm 7 of UCSD's pick and place (Feng et al. 2023, arXiv:2310.16029): 3 Hz.

`move`: velocity of the gripper; `gripper`: torque that opens or closes it. State: position of the gripper, and the distance of its
fingers. No unit was published.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "absolute"), Field("gripper", 1, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="xarm_owm",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "command", "absolute"), Field("gripper", 1, "command", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(3),
    horizon=3,
    limits=None,  # not published
)
