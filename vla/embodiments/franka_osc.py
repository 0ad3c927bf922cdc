"""Franka Panda under deoxys' operational-space controller, as UT Austin's RPL records it (VIOLA, BUDS, Sailor, Sirius, MUTEX): 20 Hz.

`move`: 1.0 is the controller's scale, 0.05 m from where the hand is in deoxys' own configuration. `turn`: 1.0 likewise, 1 rad about the
base's axes. The datasets do not say whether they kept those scales. `gripper`: the opening to be reached. State: the hand in the base's
frame, joints, and the distance of the fingers in metres (0 closed, about 0.08 open).
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 3, "command", "step"), Field("turn", 3, "command", "step"), Field("gripper", 1, "open01", "absolute")))

EMBODIMENT = Embodiment(
    name="franka_osc",
    cameras=("third_person", "wrist"),
    state=Space(
        (
            Field("hand", 3, "m", "absolute"),
            Field("rotation", 6, "rot6d", "absolute"),
            Field("arm", 7, "rad", "absolute"),
            Field("gripper", 1, "m", "absolute"),
        )
    ),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(20),
    horizon=16,
    limits=None,  # not published
)
