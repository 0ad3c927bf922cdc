"""WidowX 250 of BridgeData V2 (Walke et al. 2023, arXiv:2308.12952): 5 Hz.

`hand` and `rotation`: how the tool's position and its roll, pitch and yaw (about fixed axes) change in a step, number by number: the
controller adds them to its target. Differences of Euler angles are no rotations, which is why they are in rad. `gripper`: the opening
to be reached. The state is the tool in the arm's base frame, and how far the gripper is open.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("hand", 3, "m", "step"), Field("rotation", 3, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="widowx",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 3, "rad", "absolute"), Field("gripper", 1, "open01", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(5),
    horizon=5,
    limits=None,  # not published
)
