"""Everyday Robots' mobile manipulator as BC-Z teleoperates it (Jang et al. 2021, CoRL): 10 Hz.

`move`: what is added to the tool's position. `turn`: what is added to its axis-angle vector, number by number, so it is no rotation.
`gripper`: the opening to be reached. `hand` and `rotation` are the tool in the robot's frame. The camera is on the head.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "m", "step"), Field("turn", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="google_robot_bc_z",
    cameras=("third_person",),
    state=Space(
        (Field("hand", 3, "m", "absolute"), Field("rotation", 3, "axis_angle", "absolute"), Field("gripper", 1, "open01", "absolute"))
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
