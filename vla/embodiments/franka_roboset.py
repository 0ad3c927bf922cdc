"""Franka Panda of RoboSet (RoboAgent, Bharadhwaj et al. 2023, arXiv:2309.01918): 5 Hz.

`arm`: the seven numbers that RoboHive sends to the joints; whether targets or changes, and their unit, was not published. `gripper`:
the opening to be reached. State: joints, and the gripper as recorded. Cameras: left, right, top, wrist.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("arm", 7, "command", "absolute"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_roboset",
    cameras=("third_person", "third_person_2", "top", "wrist"),
    state=Space((Field("arm", 7, "rad", "absolute"), Field("gripper", 1, "command", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(5),
    horizon=5,
    limits=None,  # not published
)
