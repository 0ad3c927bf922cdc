"""Mobile ALOHA: two ViperX arms on a Tracer base (Fu, Zhao, Finn 2024, arXiv:2401.02117): 50 Hz.

Commands are target angles of each arm's six joints and the opening of its gripper, and the base's forward and turning speed as recorded
(m/s and rad/s in the authors' code). State: the arms' joints and openings.
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
        Field("base", 2, "command", "absolute"),
    )
)

EMBODIMENT = Embodiment(
    name="mobile_aloha",
    cameras=("third_person", "wrist_left", "wrist_right"),
    state=Space(
        (
            Field("left_arm", 6, "rad", "absolute"),
            Field("left_gripper", 1, "open01", "absolute"),
            Field("right_arm", 6, "rad", "absolute"),
            Field("right_gripper", 1, "open01", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(50),
    horizon=50,
    limits=None,  # not published
)
