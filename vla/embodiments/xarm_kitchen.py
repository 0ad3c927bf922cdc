"""UFACTORY xArm 7 in UCSD's toy kitchens (Yan, Wu, Wang 2023): 2 Hz.

`hand` and `rotation`: the pose of the tool that is commanded, in the base's frame, as position and roll, pitch, yaw: the arm's own
interface in millimetres and degrees, here in metres and radians. `gripper`: the opening to be reached. State: joints.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("hand", 3, "m", "absolute"), Field("rotation", 3, "rad", "absolute"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="xarm_kitchen",
    cameras=("third_person",),
    state=Space((Field("arm", 7, "rad", "absolute"),)),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(2),
    horizon=2,
    limits=None,  # not published
)
