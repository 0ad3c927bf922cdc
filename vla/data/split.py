"""Which samples of a dataset belong to training or validation, and where each lies."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vla.data.format import held_out
from vla.data.reader import Dataset

SplitName = Literal["train", "val", "all"]


class Split:
    """The anchors of a dataset's training episodes, of its held-out ones, or of all, numbered in storage order.

    `episode_E`: the episodes; `anchors_per_shard`: int64, for the order's shard windows.
    """

    def __init__(self, dataset: Dataset, name: SplitName, val_fraction: float) -> None:
        held_E = held_out(dataset.key_E, val_fraction)
        keep_E = {"train": ~held_E, "val": held_E, "all": np.ones_like(held_E)}[name]
        self.episode_E = np.flatnonzero(keep_E)
        self._end_E = np.cumsum(dataset.anchors_E[self.episode_E])
        shards = dataset.shard_E[self.episode_E]
        per_shard = np.bincount(shards, dataset.anchors_E[self.episode_E], minlength=len(dataset.shard_names))
        self.anchors_per_shard = per_shard[per_shard > 0].astype(np.int64)

    @property
    def anchors(self) -> int:
        return int(self._end_E[-1]) if len(self._end_E) else 0

    def locate(self, index_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers -> (episode numbers in the dataset, anchor numbers within the episode), int64."""
        row_N = np.searchsorted(self._end_E, index_N, side="right")
        first_N = np.where(row_N > 0, self._end_E[row_N - 1], 0)
        return self.episode_E[row_N], index_N - first_N
