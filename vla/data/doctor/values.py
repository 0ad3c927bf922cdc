"""Numbers by themselves: not finite, outliers, constants, openings outside 0..1. Extremes are of all rows up to a budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.embodiment import Space
from vla.normalize import DEGENERATE_SHARE, dimension_names

OUTLIER = 50.0
"""So many half-ranges (q01..q99) from the median is no motion of the robot."""
HOPELESS = 1000.0
FLOOR = 0.02
"""The least half-range that outliers are measured in, in the field's unit: below it everything is an outlier."""


@dataclass
class Scan:
    """Extremes of one kind of rows: `low`, `high` (D,) over all rows read, `bad`: rows that are not finite, `rows` read."""

    low: np.ndarray
    high: np.ndarray
    bad: int = 0
    rows: int = 0


def check(sample: Sampled) -> Iterator[Finding]:
    """Values that no robot has: not finite, far outside the rest, or never changing."""
    for kind, space in (("state", sample.state_space), ("action", sample.action_space)):
        if space is None or not space.size:
            continue
        rows = np.concatenate([e for t in sample.traces if (e := getattr(t, kind)) is not None] or [np.zeros((0, space.size))])
        rows = rows[np.isfinite(rows).all(1)]
        found = scan(sample, kind, space.size)
        where = f"{sample.name}: {kind}"
        if found.bad:
            yield Finding(
                "not_finite",
                where,
                f"{found.bad} of {found.rows} rows hold NaN or infinity",
                "error",
                {"rows": found.bad, "read": found.rows},
                "drop these rows when converting; statistics leave them out and count them.",
            )
        if len(rows) >= 10:
            yield from _dimensions(where, space, rows, found)


def scan(sample: Sampled, kind: str, width: int) -> Scan:
    """Reads the flat columns of shards, spread over the dataset, until the budget is spent."""
    found = Scan(np.full(width, np.inf), np.full(width, -np.inf))
    for number in sample.shard_N:
        files = sample.dataset._open_shard(number)  # which may lie elsewhere than in the dataset's folder
        total = int(files.step_end[-1]) if len(files.step_end) else 0
        for start in range(0, total, 100_000):
            if found.rows >= sample.budget.rows:
                return found
            values = files.columns(kind, start, min(start + 100_000, total))
            assert values is not None
            fine = np.isfinite(values).all(1)
            found.rows += len(values)
            found.bad += int((~fine).sum())
            if fine.any():
                found.low = np.minimum(found.low, values[fine].min(0))
                found.high = np.maximum(found.high, values[fine].max(0))
    return found


def _dimensions(where: str, space: Space, rows: np.ndarray, found: Scan) -> Iterator[Finding]:
    low, middle, high = np.quantile(rows, (0.01, 0.5, 0.99), axis=0)
    half = (high - low) / 2
    names = dimension_names(space)
    units = list(itertools.chain.from_iterable([f.unit] * f.size for f in space.fields))
    constant = []
    for i, name in enumerate(names):
        least, most = min(found.low[i], rows[:, i].min()), max(found.high[i], rows[:, i].max())
        far = max(most - middle[i], middle[i] - least)
        scale = max(half[i], FLOOR) if half[i] > 1e-9 else 1.0  # a rare event in a constant is none: its size is the unit's
        worst = least if middle[i] - least > most - middle[i] else most
        if far > OUTLIER * scale:
            yield Finding(
                "outlier",
                f"{where}.{name}",
                f"reaches {worst:.4g}; 98% of the rows lie in {low[i]:.3g}..{high[i]:.3g}",
                "error" if far > HOPELESS * scale else "warning",
                {"low": float(least), "high": float(most), "q01": float(low[i]), "q99": float(high[i])},
                "drop these rows; quantile normalisation stands them, z-scores do not.",
            )
        elif half[i] <= DEGENERATE_SHARE * max((most - least) / 2, 1e-9):
            constant.append(name)
        if units[i] == "open01" and (low[i] < -0.1 or high[i] > 1.1):
            yield Finding(
                "wrong_unit",
                f"{where}.{name}",
                f"declared open01, but the values lie in {low[i]:.3g}..{high[i]:.3g}",
                "error",
                {"q01": float(low[i]), "q99": float(high[i])},
                "map them to 0 closed, 1 open when converting.",
            )
    if constant:
        text = f"{', '.join(constant[:6])}{', ...' if len(constant) > 6 else ''} {'does' if len(constant) == 1 else 'do'} not change"
        yield Finding("near_constant", where, text, "warning", {"dimensions": constant})
