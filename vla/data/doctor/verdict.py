"""Weighing what the data are declared to be against what else they could be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARE = 0.05
"""A mistake in fewer episodes than this share (and fewer than two) is noise."""


@dataclass(frozen=True)
class Verdict:
    """`winner`: number of the hypothesis that beats the declared one; `episodes`: where, or () for the dataset as a whole.

    `declared`, `found`: root mean square errors of the two.
    """

    winner: int
    episodes: tuple[int, ...]
    declared: float
    found: float

    def where(self, names: Sequence[str]) -> str:
        if not self.episodes:
            return "in the whole dataset"
        more = f" and {len(self.episodes) - 4} more" if len(self.episodes) > 4 else ""
        return f"in {len(self.episodes)} episodes ({', '.join(names[e] for e in self.episodes[:4])}{more})"


def weigh(square_EH: np.ndarray, rows_E: np.ndarray, ratio: float) -> Verdict | None:
    """`square_EH`: summed square errors of each hypothesis in each episode, the declared one first; `rows_E`: of how many rows.

    A rival wins if its error is less than the declared one's over `ratio`, over all episodes or in some of them.
    """
    if not len(square_EH) or rows_E.sum() < 1:
        return None
    total_H = np.sqrt(square_EH.sum(0) / rows_E.sum())
    best = int(total_H.argmin())
    if best and total_H[0] > ratio * max(total_H[best], 1e-12):
        return Verdict(best, (), float(total_H[0]), float(total_H[best]))
    root_EH = np.sqrt(square_EH / np.maximum(rows_E, 1)[:, None])
    best_E = root_EH.argmin(1)
    # An episode in which nothing happens fits everything: its error says nothing beside those of the others.
    lost_E = (best_E > 0) & (root_EH[:, 0] > ratio * np.maximum(root_EH.min(1), 1e-12)) & (root_EH[:, 0] > 2 * np.median(root_EH.min(1)))
    if lost_E.sum() < max(2, SHARE * len(lost_E)):
        return None
    winner = int(np.bincount(best_E[lost_E]).argmax())
    chosen = np.flatnonzero(lost_E)
    rms_H = np.sqrt(square_EH[chosen].sum(0) / rows_E[chosen].sum())
    return Verdict(winner, tuple(map(int, chosen)), float(rms_H[0]), float(rms_H[winner]))
