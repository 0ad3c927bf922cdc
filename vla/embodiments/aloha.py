"""ALOHA's two ViperX arms in gym-aloha (Zhao et al. 2023): 14 numbers at 50 Hz.

Commands are target angles of each arm's six joints (waist, shoulder, elbow, forearm roll, wrist angle, wrist rotate) and the
opening of its gripper, 0 closed and 1 open. Joints are learned relative to the state at the start of the chunk.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Frame, Space

_JOINTS = ((-3.14158, 3.14158), (-1.85005, 1.25664), (-1.76278, 1.6057), (-3.14158, 3.14158), (-1.8675, 2.23402), (-3.14158, 3.14158))
_OPENING = ((0.0, 1.0),)


def _arms(frame: Frame) -> Space:
    return Space(
        (
            Field("left_arm", 6, "rad", frame),
            Field("left_gripper", 1, "open01", "absolute"),
            Field("right_arm", 6, "rad", frame),
            Field("right_gripper", 1, "open01", "absolute"),
        )
    )


EMBODIMENT = Embodiment(
    name="aloha",
    cameras=("third_person", "wrist_right"),
    state=_arms("absolute"),
    command=_arms("absolute"),
    action=_arms("from_state"),
    rate_hz=Fraction(50),
    horizon=25,
    limits=(*_JOINTS, *_OPENING, *_JOINTS, *_OPENING),
)
