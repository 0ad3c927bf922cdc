"""ALOHA's two ViperX arms in gym-aloha (Zhao et al. 2023): 14 numbers at 50 Hz.

Commands are target angles of each arm's six joints (waist, shoulder, elbow, forearm roll, wrist angle, wrist rotate) and the
opening of its gripper, 0 closed and 1 open. They are learned as commanded: friction holds the joints a few hundredths of a radian
off their targets, on the side they come from, and targets relative to the state would carry that error.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_JOINTS = ((-3.14158, 3.14158), (-1.85005, 1.25664), (-1.76278, 1.6057), (-3.14158, 3.14158), (-1.8675, 2.23402), (-3.14158, 3.14158))
_OPENING = ((0.0, 1.0),)
_ARMS = Space(
    (
        Field("left_arm", 6, "rad", "absolute"),
        Field("left_gripper", 1, "open01", "absolute"),
        Field("right_arm", 6, "rad", "absolute"),
        Field("right_gripper", 1, "open01", "absolute"),
    )
)

EMBODIMENT = Embodiment(
    name="aloha",
    cameras=("third_person", "wrist_right"),
    state=_ARMS,
    command=_ARMS,
    action=_ARMS,
    rate_hz=Fraction(50),
    horizon=25,
    limits=(*_JOINTS, *_OPENING, *_JOINTS, *_OPENING),
)
