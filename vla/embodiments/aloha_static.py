"""ALOHA's two ViperX arms on a table, with all four cameras (Zhao et al. 2023, arXiv:2304.13705): 50 Hz.

Commands are target angles of each arm's six joints, and the opening of its gripper; the state is the same of the arms that follow.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space(
    (
        Field("left_arm", 6, "rad", "absolute"),
        Field("left_gripper", 1, "open01", "absolute"),
        Field("right_arm", 6, "rad", "absolute"),
        Field("right_gripper", 1, "open01", "absolute"),
    )
)

EMBODIMENT = Embodiment(
    name="aloha_static",
    cameras=("third_person", "low", "wrist_left", "wrist_right"),
    state=_COMMAND,
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(50),
    horizon=50,
    limits=None,  # not published
)
