"""Franka Panda of CMU's Playing with Food (Sawhney et al. 2020): 10 Hz.

`hand` and `rotation`: the pose of the hand, in the base's frame. `gripper`: 0 or 1, by the phase of the motion. The cameras `wrist` and
`wrist_2` look out of the fingers. No pose was recorded as state.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("hand", 3, "m", "absolute"), Field("rotation", 6, "rot6d", "absolute"), Field("gripper", 1, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_food",
    cameras=("third_person", "wrist", "wrist_2"),
    state=Space(()),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
