"""Franka Panda routing cables (Luo et al. 2023, arXiv:2307.08927): 10 Hz.

`move`: velocity of the tool, 1.0 being the controller's largest, whose value was not published. `turn`: the same for the angular
velocity; only the one about z is used. There is no gripper to command. `hand` and `rotation` are the tool in the base's frame.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "absolute"), Field("turn", 3, "command", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_cable",
    cameras=("third_person", "top", "wrist"),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 4, "quat_xyzw", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
