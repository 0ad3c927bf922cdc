"""Two sets of statistics of one robot against each other, as a normaliser would feel it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import StatsMissing
from vla.normalize import Normalizer, RobotNormalizer, dimension_names

SHIFT = 0.25
"""A centre that moves by more than this share of the half-range, and ..."""
STRETCH = 1.5
"""... a range that grows or shrinks by more than this factor are flagged: a policy normalised by one misjudges the other."""


@dataclass(frozen=True)
class Shift:
    """One dimension. `shift`: of the centre, in half-ranges of A (1 = from the middle to the end); `stretch`: B's range over A's.
    `constant`: too thin to be a scale in both, so that its range is one of the normaliser's own."""

    kind: str
    name: str
    low_a: float
    high_a: float
    low_b: float
    high_b: float
    shift: float
    stretch: float
    flagged: bool
    constant: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diff(a: RobotNormalizer, b: RobotNormalizer, robot: Embodiment) -> list[Shift]:
    """Per dimension of state and action. StatsMissing where the two are not of the same encoding, rate, horizon or method."""
    if a.key != b.key:
        unlike = [
            f"{name} {x!r} and {y!r}" for (name, x), y in zip(a.key.to_json().items(), b.key.to_json().values(), strict=True) if x != y
        ]
        raise StatsMissing(f"these statistics cannot be compared: {'; '.join(unlike)}. Give datasets or checkpoints of one encoding.")
    if (a.action.method, a.state.method) != (b.action.method, b.state.method):
        raise StatsMissing(f"one is normalised by {a.action.method}, the other by {b.action.method}; only like can be compared")
    rows: list[Shift] = []
    for kind, one, two, space in (("state", a.state, b.state, robot.state), ("action", a.action, b.action, robot.action)):
        if one.width != two.width or one.width != space.size:
            raise StatsMissing(f"{kind} statistics have {one.width} and {two.width} dimensions, '{robot.name}' has {space.size}")
        rows += _rows(kind, dimension_names(space), one, two)
    return rows


def _rows(kind: str, names: list[str], a: Normalizer, b: Normalizer) -> list[Shift]:
    centre_a, centre_b, half_a, half_b = (np.array(v) for v in (a.offset, b.offset, a.scale, b.scale))
    shift, stretch = (centre_b - centre_a) / half_a, half_b / half_a
    rows = []
    for i, name in enumerate(names):
        constant = i in a.degenerate and i in b.degenerate  # its scale is a fallback, so only the place counts
        moved = abs(shift[i]) > SHIFT
        flagged = bool(moved or (not constant and not 1 / STRETCH <= stretch[i] <= STRETCH))
        ends = (centre_a[i] - half_a[i], centre_a[i] + half_a[i], centre_b[i] - half_b[i], centre_b[i] + half_b[i])
        rows.append(Shift(kind, name, *map(float, ends), float(shift[i]), float(stretch[i]), flagged, constant))
    return rows
