"""Franka Panda of CALVIN (Mees et al. 2022, arXiv:2112.03227), by its relative actions: 30 Hz.

`move`: 1.0 shifts the tool's target by 20 mm in a step, `turn`: 1.0 by 0.05 rad in roll, pitch and yaw, number by number; both in the
world's axes. `gripper`: 1 opens, -1 shuts. State: the tool in the world with its roll, pitch and yaw, the distance of the fingers, and
the joints.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="calvin_panda",
    cameras=("third_person", "wrist"),
    state=Space((Field("hand", 3, "m"), Field("rotation", 3, "rad"), Field("gripper", 1, "m"), Field("arm", 7, "rad"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(30),
    horizon=10,
    limits=((-1.0, 1.0),) * 7,
)
