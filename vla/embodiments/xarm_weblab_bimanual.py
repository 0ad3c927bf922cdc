"""Two UFACTORY xArms of the University of Tokyo's Weblab (Matsushima et al. 2023), folding towels: 10 Hz.

For each arm, `move` and `turn`: change of the hand's position, and of its yaw, pitch and roll; `gripper`: the opening to be reached.
State: both hands in the base's frame.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space(
    (
        Field("left_move", 3, "m", "step"),
        Field("left_turn", 3, "rad", "step"),
        Field("left_gripper", 1, "open01", "absolute"),
        Field("right_move", 3, "m", "step"),
        Field("right_turn", 3, "rad", "step"),
        Field("right_gripper", 1, "open01", "absolute"),
    )
)

EMBODIMENT = Embodiment(
    name="xarm_weblab_bimanual",
    cameras=("third_person",),
    state=Space(
        (
            Field("left_hand", 3, "m", "absolute"),
            Field("left_rotation", 6, "rot6d", "absolute"),
            Field("right_hand", 3, "m", "absolute"),
            Field("right_rotation", 6, "rot6d", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(10),
    horizon=8,
    limits=None,  # not published
)
