"""RoboNet's arms (Sawyer, WidowX, Franka, Baxter, iiwa, Fetch, Google; Dasari et al. 2019, arXiv:1910.11215), as one robot: 1 Hz.

`move`: change of the tool's position, normalised within each robot's workspace. `turn`: change of its yaw. `gripper`: the opening.
State: normalised position, yaw, and the gripper as recorded.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 1, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="robonet",
    cameras=("third_person", "third_person_2"),
    state=Space(
        (Field("hand", 3, "command", "absolute"), Field("rotation", 1, "rad", "absolute"), Field("gripper", 1, "command", "absolute"))
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(1),
    horizon=1,
    limits=None,  # not published
)
