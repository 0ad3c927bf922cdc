"""LeRobot's statistics: min, max, mean, std, count and five quantiles, of each episode and of all of them.

Numbers go through the mergeable sketch of `vla.normalize`, so the quantiles of the whole are those of its
rows (LeRobot averages the episodes'). Pictures are described per channel on 0..1, from a few frames of each episode, as LeRobot does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla.normalize import Stats

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
FRAMES_SAMPLED = 16
PIXELS_SKIPPED = 4


@dataclass
class FeatureStats:
    """Statistics by feature; they merge. `pictures`: (3, 256) how often each channel had each value, and frames counted."""

    numbers: dict[str, Stats] = field(default_factory=dict)
    pictures: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)

    def merge(self, other: FeatureStats) -> None:
        for name, stats in other.numbers.items():
            self.numbers.setdefault(name, Stats.empty(stats.width)).merge(stats)
        for name, (counted, frames) in other.pictures.items():
            before, sampled = self.pictures.get(name, (np.zeros((3, 256), np.int64), 0))
            self.pictures[name] = (before + counted, sampled + frames)

    def entries(self) -> dict[str, dict[str, Any]]:
        """As LeRobot's stats.json has them."""
        found = {}
        for name, stats in self.numbers.items():
            quantiles = {key: stats.quantile(q).tolist() for key, q in QUANTILES.items()}
            moments = {"min": stats.min_A, "max": stats.max_A, "mean": stats.mean_A, "std": stats.std_A}
            found[name] = {**{key: values.tolist() for key, values in moments.items()}, "count": [stats.count], **quantiles}
        return {**found, **{name: _of_pictures(counted, frames) for name, (counted, frames) in self.pictures.items()}}

    def add_rows(self, name: str, values: np.ndarray) -> None:
        """A column: (steps,) or (steps, width)."""
        wide = np.asarray(values, np.float64).reshape(len(values), -1)
        self.numbers.setdefault(name, Stats.empty(wide.shape[1])).update(wide)

    def add_picture(self, name: str, image: np.ndarray) -> None:
        counted, frames = self.pictures.get(name, (np.zeros((3, 256), np.int64), 0))
        small = image[::PIXELS_SKIPPED, ::PIXELS_SKIPPED].reshape(-1, 3)
        here = np.stack([np.bincount(small[:, channel], minlength=256) for channel in range(3)])
        self.pictures[name] = (counted + here, frames + 1)


def sampled(pictures: int) -> frozenset[int]:
    """Numbers of the pictures of an episode that are described."""
    return frozenset(np.linspace(0, pictures - 1, min(pictures, FRAMES_SAMPLED)).astype(int).tolist())


def _of_pictures(counted: np.ndarray, frames: int) -> dict[str, Any]:
    value, total = np.arange(256) / 255, counted.sum(1)
    mean = (counted * value).sum(1) / total
    std = np.sqrt(((value - mean[:, None]) ** 2 * counted).sum(1) / total)
    low, high = (counted > 0).argmax(1), 255 - (counted[:, ::-1] > 0).argmax(1)
    rank = counted.cumsum(1)
    quantiles = {key: value[(rank < q * total[:, None]).sum(1)] for key, q in QUANTILES.items()}
    rows = {"min": value[low], "max": value[high], "mean": mean, "std": std, **quantiles}
    return {**{key: row.reshape(3, 1, 1).tolist() for key, row in rows.items()}, "count": [frames]}
