"""Franka Panda of LIBERO (Liu et al. 2023, arXiv:2306.03310) under robosuite's OSC_POSE: 20 Hz, chunks of 8 as OpenVLA-OFT has them.

`move`: 1.0 puts the hand's target 50 mm from where the hand is, along the base's axes. `turn`: 1.0 is 0.5 rad about the same axes.
`gripper`: the opening to be reached; robosuite's command is 1 - 2 x opening. State: hand in the base's frame, joints, and both fingers.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="libero_panda",
    cameras=("third_person", "wrist"),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 3, "axis_angle", "absolute"),
            Field("arm", 7, "rad", "absolute"),
            Field("gripper", 2, "m", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(20),
    horizon=8,
    limits=((-1.0, 1.0),) * 6 + ((0.0, 1.0),),
)
