"""Clearpath Jackal of RECON (Shah et al. 2021, arXiv:2104.05859): 3 Hz.

`move` and `turn`: the waypoint, ahead and to the left of the robot, and its heading; positions are divided by a factor of each dataset
(GNM, Shah et al. 2023). State: position and heading since the start.
"""

from __future__ import annotations

from fractions import Fraction

from vla.embodiment import Embodiment, Field, Space

_COMMAND = Space((Field("move", 2, "command", "step"), Field("turn", 1, "rad", "step")))

EMBODIMENT = Embodiment(
    name="jackal_recon",
    cameras=("front",),
    state=Space((Field("base", 2, "command", "absolute"), Field("base_rotation", 1, "rad", "absolute"))),
    command=_COMMAND,
    action=_COMMAND,
    rate_hz=Fraction(3),
    horizon=3,
    limits=None,  # not published
)
