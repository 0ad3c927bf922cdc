"""Meta-World's Sawyer arm, moved by its end effector (McLean et al. 2025, Meta-World+; metaworld 3).

`move`: 1.0 shifts the target of the hand by 10 mm in one step of 1/80 s, along the world's x (right), y (away from the base)
and z (up); the hand's orientation is fixed. `gripper`: 1.0 closes and -1.0 opens at full force. State `gripper` is the distance
of the fingers over 0.1 m, so 1 is open.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("gripper", 1, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="metaworld_sawyer",
    cameras=("third_person", "wrist"),
    state=Space((Field("hand", 3, "m", "absolute"), Field("gripper", 1, "open01", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(80),
    horizon=12,
    limits=((-1.0, 1.0),) * 4,
)
