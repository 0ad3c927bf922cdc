"""Franka Panda of Berkeley's RPT data (Radosavovic et al. 2023, arXiv:2306.10007): 30 Hz.

`arm`: how the joints move in a step. `gripper`: the opening at the next step. State: joints, and the opening.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("arm", 7, "rad", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_joints_rpt",
    cameras=("wrist",),
    state=Space((Field("arm", 7, "rad", "absolute"), Field("gripper", 1, "open01", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(30),
    horizon=24,
    limits=None,  # not published
)
