"""Franka Panda pushing what it cannot grasp (Kim et al. 2023, IROS; KAIST): 10 Hz.

`move`: residual of the tool's position, along the base's axes. `turn`: residual of its rotation, about its own axes. `stiffness` and
`damping`: gain and damping ratio of each joint's controller. State: the tool in the base's frame, and joints.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space(
    (
        Field("move", 3, "m", "step"),
        Field("turn", 3, "axis_angle", "step"),
        Field("stiffness", 7, "command", "absolute"),
        Field("damping", 7, "command", "absolute"),
    )
)

EMBODIMENT = Embodiment(
    name="franka_nonprehensile",
    cameras=("third_person",),
    state=Space((Field("hand", 3, "m", "absolute"), Field("rotation", 4, "quat_xyzw", "absolute"), Field("arm", 7, "rad", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
