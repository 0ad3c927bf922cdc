"""Franka Panda exploring CMU's toy kitchens (Mendonca et al. 2023, arXiv:2308.10901): 10 Hz.

`move` and `turn`: the numbers published as position and orientation of the hand, which Octo and OpenVLA take for changes; unit and
frame were not published. `gripper`: the opening. No state was recorded.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_exploration",
    cameras=("third_person",),
    state=Space(()),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
