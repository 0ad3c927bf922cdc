"""Statistics that merge, and normalisers that invert exactly.

Quantiles come from a deterministic compactor sketch (Manku, Rajagopalan, Lindsay 1998; mergeable by Agarwal et al. 2012,
"Mergeable Summaries"). Level h holds values of weight 2^h. A full level (k values) is sorted and every second value moves up:
one such step moves any rank by at most 2^h, and level h takes at most n / (k 2^h) of them, so the rank error is at most
n ceil(log2(n / k)) / k. With k = 4096 that is exact up to 4,096 rows and within 0.44 percentile rank at a billion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla.embodiment import Embodiment, Space
from vla.errors import SchemaError, StatsMissing, UserError

SKETCH_SIZE = 4096
Method = Literal["quantile", "zscore", "identity"]
METHODS = ("quantile", "zscore", "identity")

DEGENERATE_SHARE = 1e-3
"""A spread below this share of half the full range is no scale: it would blow a rare value up a thousandfold."""
RARE = 10.0
"""A state that nearly always stands still, and sometimes goes this many times as far as it trembles, has moved."""


@dataclass(frozen=True)
class StatsKey:
    """What statistics of encoded targets depend on. Two keys that differ must never share numbers."""

    embodiment: str
    frames: str
    horizon: int
    rate_hz: str

    @staticmethod
    def of(embodiment: Embodiment) -> StatsKey:
        """Of a robot as it is now."""
        frames = "+".join(f"{field.name}:{field.frame}" for field in embodiment.action.fields)
        return StatsKey(embodiment.name, frames, embodiment.horizon, str(embodiment.rate_hz))

    def to_json(self) -> dict:
        return {"embodiment": self.embodiment, "frames": self.frames, "horizon": self.horizon, "rate_hz": self.rate_hz}

    @staticmethod
    def from_json(data: Mapping) -> StatsKey:
        return StatsKey(str(data["embodiment"]), str(data["frames"]), int(data["horizon"]), str(data["rate_hz"]))


class Stats:
    """Count, mean, variance, extremes and quantiles of rows of A numbers; deterministic, and mergeable.

    Rows are (N, A), float64. NaN and infinity are refused by `update`, since one would poison the mean for good; `update_finite`
    leaves such rows out and counts them in `dropped`.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.dropped = 0
        self.mean_A = np.zeros(width)
        self._m2_A = np.zeros(width)
        self.min_A = np.full(width, np.inf)
        self.max_A = np.full(width, -np.inf)
        self._levels: list[np.ndarray] = [np.zeros((0, width))]
        self._odd: list[int] = [0]

    @staticmethod
    def empty(width: int) -> Stats:
        """Of rows of `width` numbers."""
        return Stats(width)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return len(self.mean_A)

    @property
    def std_A(self) -> np.ndarray:
        """Population standard deviation, float64 (A,)."""
        return np.sqrt(self._m2_A / max(self.count, 1))

    def update(self, values_NA: np.ndarray) -> None:
        """Adds rows; float64 (N, A)."""
        values_NA = np.asarray(values_NA, dtype=np.float64)
        if values_NA.ndim != 2 or values_NA.shape[1] != self.width:
            raise SchemaError(f"statistics of width {self.width} cannot take rows of shape {values_NA.shape}")
        if not np.isfinite(values_NA).all():
            raise SchemaError("statistics cannot take NaN or infinity; drop and count such rows first")
        if not len(values_NA):
            return
        mean_A = values_NA.mean(0)
        self._moments(len(values_NA), mean_A, ((values_NA - mean_A) ** 2).sum(0))
        self.min_A = np.minimum(self.min_A, values_NA.min(0))
        self.max_A = np.maximum(self.max_A, values_NA.max(0))
        for start in range(0, len(values_NA), SKETCH_SIZE):
            self._levels[0] = np.concatenate([self._levels[0], values_NA[start : start + SKETCH_SIZE]])
            self._compact()

    def update_finite(self, values_NA: np.ndarray) -> None:
        """Adds the rows that are finite, bit for bit as if the others had never been; counts those in `dropped`."""
        values_NA = np.asarray(values_NA, dtype=np.float64)
        fine_N = np.isfinite(values_NA).all(-1)
        self.dropped += int((~fine_N).sum())
        self.update(values_NA[fine_N])

    def merge(self, other: Stats) -> None:
        """Adds another's rows, as if they had been given here; in any grouping the error bound holds for the sum."""
        if other.width != self.width:
            raise SchemaError(f"statistics of widths {self.width} and {other.width} cannot merge")
        self.dropped += other.dropped
        if not other.count:
            return
        self._moments(other.count, other.mean_A, other._m2_A)
        self.min_A = np.minimum(self.min_A, other.min_A)
        self.max_A = np.maximum(self.max_A, other.max_A)
        for level, values_NA in enumerate(other._levels):
            self._reach(level)
            self._levels[level] = np.concatenate([self._levels[level], values_NA])
        self._compact()

    def quantile(self, q: float) -> np.ndarray:
        """The value of rank q, float64 (A,); an actual row value, never interpolated."""
        if not self.count:
            raise StatsMissing("statistics of no rows have no quantiles")
        values_NA = np.concatenate(self._levels)
        weight_N = np.concatenate([np.full(len(v), 2.0**level) for level, v in enumerate(self._levels)])
        order_NA = np.argsort(values_NA, axis=0, kind="stable")
        rank_NA = np.cumsum(weight_N[order_NA], axis=0)
        at_A = (rank_NA < q * rank_NA[-1] - 1e-9).sum(0).clip(max=len(values_NA) - 1)
        return np.take_along_axis(np.take_along_axis(values_NA, order_NA, 0), at_A[None], 0)[0]

    def rank_error(self) -> float:
        """The proven bound on the error of `quantile`, as a share of the rows."""
        return (len(self._levels) - 1) / SKETCH_SIZE

    def to_json(self) -> dict:
        """Exact: floats survive the text."""
        return {
            "count": self.count,
            "dropped": self.dropped,
            "mean": self.mean_A.tolist(),
            "m2": self._m2_A.tolist(),
            "min": self.min_A.tolist() if self.count else [],
            "max": self.max_A.tolist() if self.count else [],
            "odd": self._odd,
            "levels": [values_NA.tolist() for values_NA in self._levels],
        }

    @staticmethod
    def from_json(data: Mapping) -> Stats:
        """The inverse of `to_json`."""
        stats = Stats(len(data["mean"]))
        stats.count, stats.dropped = int(data["count"]), int(data.get("dropped", 0))  # not in files of the first versions
        stats.mean_A, stats._m2_A = np.array(data["mean"], float), np.array(data["m2"], float)
        if stats.count:
            stats.min_A, stats.max_A = np.array(data["min"], float), np.array(data["max"], float)
        stats._odd = [int(x) for x in data["odd"]]
        stats._levels = [np.array(rows, float).reshape(-1, stats.width) for rows in data["levels"]]
        return stats

    def _moments(self, count: int, mean_A: np.ndarray, m2_A: np.ndarray) -> None:
        # Chan, Golub, LeVeque 1983: pairwise update, stable for long streams.
        total = self.count + count
        delta_A = mean_A - self.mean_A
        self._m2_A = self._m2_A + m2_A + delta_A**2 * (self.count * count / total)
        self.mean_A = self.mean_A + delta_A * (count / total)
        self.count = total

    def _reach(self, level: int) -> None:
        while len(self._levels) <= level:
            self._levels.append(np.zeros((0, self.width)))
            self._odd.append(0)

    def _compact(self) -> None:
        level = 0
        while level < len(self._levels):
            values_NA = self._levels[level]
            if len(values_NA) > SKETCH_SIZE:
                self._reach(level + 1)
                even = len(values_NA) // 2 * 2  # an odd one stays behind, so that no weight is lost
                ordered_NA = np.sort(values_NA[:even], axis=0)
                self._levels[level + 1] = np.concatenate([self._levels[level + 1], ordered_NA[self._odd[level] :: 2]])
                self._odd[level] ^= 1  # alternate, so that errors of one sign cancel
                self._levels[level] = values_NA[even:]
            level += 1


@dataclass(frozen=True)
class Normalizer:
    """y = (x - offset) / scale per dimension, in float64; nothing is clipped, so `denormalize` is its exact inverse.

    Imported policies alone depart from that, where the code they were trained with did (vla/interop/stats.py): `forward` has the (offset,
    scale) of `normalize` where those of the way back are others (an epsilon in one direction), and a scale may then be 0; `clip_in` and
    `clip_out` keep normalised numbers in -1..1 on the way in and out; `binary` numbers come out as 0 or 1.

    Degenerate dimensions follow one rule: where the spread (half of q01..q99, or the standard deviation) is below
    `DEGENERATE_SHARE` of half the full range, or is the trembling of a state that stands still (`vla.embodiment.TREMBLE`), the full
    range is used instead; where that is 0 too, or below `RARE` times the trembling, the scale is 1: nothing is made of it.
    `degenerate` names those dimensions for the report.
    """

    method: Method
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    degenerate: tuple[int, ...] = ()
    reason: str = ""
    forward: tuple[tuple[float, float], ...] = ()
    clip_in: bool = False
    clip_out: bool = False
    binary: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"unknown normalisation '{self.method}'; choose one of {METHODS}")
        if self.method == "identity" and not self.reason:
            raise UserError("identity normalisation must be asked for with a reason")
        pairs = self.forward or tuple(zip(self.offset, self.scale, strict=False))
        wrong = not len(self.offset) == len(self.scale) == len(pairs) or not np.isfinite([*self.offset, *self.scale, *sum(pairs, ())]).all()
        if wrong or any(scale <= 0 for _, scale in pairs) or min(self.scale, default=1) < 0:
            raise SchemaError("a normaliser needs one finite offset and one finite positive scale per dimension")

    @staticmethod
    def fit(stats: Stats, method: Method = "quantile", tremble_A: np.ndarray | float = 0.0) -> Normalizer:
        """`quantile` maps q01..q99 to -1..1; `zscore` maps to mean 0 and deviation 1. `tremble_A`: (A,), in the units of the
        rows, spreads that are none."""
        if method not in ("quantile", "zscore"):
            raise UserError(f"cannot fit '{method}'; choose quantile or zscore, or Normalizer.identity(width, reason)")
        if not stats.count:
            raise StatsMissing("no rows to fit a normaliser to")
        full_A = (stats.max_A - stats.min_A) / 2
        if method == "quantile":
            low_A, high_A = stats.quantile(0.01), stats.quantile(0.99)
            offset_A, spread_A = (low_A + high_A) / 2, (high_A - low_A) / 2
        else:
            offset_A, spread_A = stats.mean_A, stats.std_A
        # Rounding noise of a constant is no range.
        full_A = np.where(full_A <= 1e-9 * np.maximum(1.0, np.abs(stats.max_A)), 0.0, full_A)
        still_A = spread_A < tremble_A
        thin_A = (spread_A <= DEGENERATE_SHARE * full_A) | still_A
        offset_A = np.where(thin_A, (stats.max_A + stats.min_A) / 2, offset_A)
        scale_A = np.where(thin_A, np.where(full_A > 0, full_A, 1.0), spread_A)
        constant_A = (full_A == 0) | (still_A & (full_A < RARE * np.asarray(tremble_A)))
        offset_A, scale_A = np.where(constant_A, stats.mean_A, offset_A), np.where(constant_A, 1.0, scale_A)
        flagged = np.flatnonzero(thin_A | constant_A)
        return Normalizer(method, tuple(map(float, offset_A)), tuple(map(float, scale_A)), tuple(map(int, flagged)))

    @staticmethod
    def identity(width: int, reason: str) -> Normalizer:
        """Changes nothing; `reason`: why, for it must be asked for."""
        return Normalizer("identity", (0.0,) * width, (1.0,) * width, (), reason)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return len(self.offset)

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """(..., A) physical -> (..., A) normalised, float64."""
        self._check(values)
        offset_A, scale_A = self.fitted()
        normal = (np.asarray(values, np.float64) - offset_A) / scale_A
        return np.clip(normal, -1, 1) if self.clip_in else normal

    def fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """(offset, scale) of `normalize`, float64 (A,) each."""
        return tuple(np.array(self.forward).T) if self.forward else (np.array(self.offset), np.array(self.scale))

    def denormalize(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `normalize`; agrees within 4 units in the last place of |x| + |offset| (or of underflow, times the scale)."""
        self._check(values)
        normal = np.asarray(values, np.float64)
        normal = np.clip(normal, -1, 1) if self.clip_out else normal
        physical = normal * np.array(self.scale) + np.array(self.offset)
        if self.binary:
            physical[..., list(self.binary)] = physical[..., list(self.binary)] >= 0.5
        return physical

    def to_json(self) -> dict:
        """Exact: floats survive the text."""
        return {
            "method": self.method,
            "offset": list(self.offset),
            "scale": list(self.scale),
            "degenerate": list(self.degenerate),
            "reason": self.reason,
            "forward": [list(pair) for pair in self.forward],
            "clip_in": self.clip_in,
            "clip_out": self.clip_out,
            "binary": list(self.binary),
        }

    @staticmethod
    def from_json(data: Mapping) -> Normalizer:
        """The inverse of `to_json`."""
        return Normalizer(
            data["method"],
            tuple(map(float, data["offset"])),
            tuple(map(float, data["scale"])),
            tuple(map(int, data["degenerate"])),
            str(data["reason"]),
            tuple(
                (float(offset), float(scale)) for offset, scale in data.get("forward", ())
            ),  # the rest is not in files of the first versions
            bool(data.get("clip_in", False)),
            bool(data.get("clip_out", False)),
            tuple(map(int, data.get("binary", ()))),
        )

    def _check(self, values: np.ndarray) -> None:
        if values.shape[-1:] != (self.width,):
            raise SchemaError(f"values of shape {values.shape} do not fit a normaliser of width {self.width}")


@dataclass(frozen=True)
class RobotStats:
    """Statistics of one embodiment: packed state, and encoded action targets, under the key they were taken for."""

    key: StatsKey
    state: Stats
    action: Stats

    @staticmethod
    def empty(embodiment: Embodiment) -> RobotStats:
        """For all that this robot shows."""
        return RobotStats(StatsKey.of(embodiment), Stats(embodiment.state.size), Stats(embodiment.action.size))

    def merge(self, other: RobotStats) -> None:
        """Adds another part of the data. UserError where it is of another robot, frame, horizon or rate."""
        if other.key != self.key:
            raise UserError(f"statistics of {other.key} cannot merge into those of {self.key}")
        self.state.merge(other.state)
        self.action.merge(other.action)

    def to_json(self) -> dict:
        return {"key": self.key.to_json(), "state": self.state.to_json(), "action": self.action.to_json()}

    @staticmethod
    def from_json(data: Mapping) -> RobotStats:
        return RobotStats(StatsKey.from_json(data["key"]), Stats.from_json(data["state"]), Stats.from_json(data["action"]))


@dataclass(frozen=True)
class RobotNormalizer:
    """What a checkpoint stores per embodiment, by value."""

    key: StatsKey
    state: Normalizer
    action: Normalizer

    @staticmethod
    def fit(stats: RobotStats, robot: Embodiment, method: Method = "quantile") -> RobotNormalizer:
        """An arm that does nothing still trembles, always in the same way after a start: at full scale that is a clock which a policy
        learns to read, and which its own first command breaks. Actions keep their spread, however small: a step may be."""
        state = Normalizer.fit(stats.state, method, robot.state.tremble_A)
        return RobotNormalizer(stats.key, state, Normalizer.fit(stats.action, method))

    @staticmethod
    def not_yet(robot: Embodiment) -> RobotNormalizer:
        """Of a model that has seen no action of this robot: the identity, and why. Whoever keeps it says that it is untrained."""
        state, action = (Normalizer.identity(space.size, "no action was seen yet") for space in (robot.state, robot.action))
        return RobotNormalizer(StatsKey.of(robot), state, action)

    def check(self, embodiment: Embodiment) -> None:
        """Raises StatsMissing unless these numbers were taken for exactly this robot, frame, horizon and rate."""
        want = StatsKey.of(embodiment)
        if self.key != want:
            raise StatsMissing(f"statistics are for {self.key}; needed for {want}. Run `vla stats` for this embodiment.")
        if (self.state.width, self.action.width) != (embodiment.state.size, embodiment.action.size):
            raise StatsMissing(f"statistics of widths {self.state.width}, {self.action.width} do not fit '{embodiment.name}'")

    def to_json(self) -> dict:
        return {"key": self.key.to_json(), "state": self.state.to_json(), "action": self.action.to_json()}

    @staticmethod
    def from_json(data: Mapping) -> RobotNormalizer:
        return RobotNormalizer(StatsKey.from_json(data["key"]), Normalizer.from_json(data["state"]), Normalizer.from_json(data["action"]))


def dimension_names(space: Space) -> list[str]:
    """`position[0]`, ...: one name per number, for reports."""
    return [f"{field.name}[{i}]" if field.size > 1 else field.name for field in space.fields for i in range(field.size)]
