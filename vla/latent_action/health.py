"""Is a codebook in use, and do its codes mean motion? Perplexity, dead entries, a linear probe, and the diagnosis of a collapse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla.errors import UserError


class Collapsed(UserError):
    """The codes of a latent-action model have stopped to tell frame pairs apart."""

    exit_code = 1


@dataclass(frozen=True)
class Usage:
    """How often each entry of each code was chosen: `count_NK`. Usages add up, over batches or sources."""

    count_NK: np.ndarray

    @staticmethod
    def of(code_XN: np.ndarray, vocabulary: int) -> Usage:
        """From codes (anything, N); rows of -1 (no code) are left out."""
        coded_XN = code_XN[(code_XN >= 0).all(1)]
        return Usage(np.stack([np.bincount(column, minlength=vocabulary) for column in coded_XN.T.astype(np.int64)]).astype(np.float64))

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.count_NK + other.count_NK)

    def scaled(self, factor: float) -> Usage:
        """To forget slowly: `usage.scaled(0.98) + new`."""
        return Usage(self.count_NK * factor)

    @property
    def perplexity_N(self) -> np.ndarray:
        """exp(entropy) of each code: between 1 (always the same entry) and K (all equally often)."""
        share_NK = self.count_NK / np.maximum(self.count_NK.sum(1, keepdims=True), 1e-12)
        return np.exp(-(share_NK * np.log(np.maximum(share_NK, 1e-12))).sum(1))

    @property
    def perplexity_share(self) -> float:
        """Mean perplexity over the codes, as a share of the vocabulary."""
        return float(self.perplexity_N.mean() / self.count_NK.shape[1])

    @property
    def dead_share(self) -> float:
        """Share of entries that were never chosen."""
        return float((self.count_NK == 0).mean())

    def to_json(self) -> dict:
        return {
            "perplexity_share": self.perplexity_share,
            "perplexity": self.perplexity_N.tolist(),
            "dead_share": self.dead_share,
            "count": self.count_NK.astype(int).tolist(),
        }


def check_collapse(usage: Usage, unexplained: float, change: float, floor: float, min_share: float) -> None:
    """Raises Collapsed, with the likely cause, where perplexity is below `min_share` of the vocabulary.

    `unexplained`: share of the change that the forward decoder leaves. `change`: mean square change of the target between the
    frames of a pair, `floor`: what counts as none.
    """
    if usage.perplexity_share >= min_share:
        return
    K = usage.count_NK.shape[1]
    used = ", ".join(f"{value:.1f}" for value in usage.perplexity_N)
    what = (
        f"the codes have collapsed: perplexity {usage.perplexity_share:.0%} of the vocabulary, below the threshold of {min_share:.0%} "
        f"(effective entries per code {used} of {K}, {usage.dead_share:.0%} of entries never chosen)"
    )
    if change < 2 * floor:
        raise Collapsed(
            f"{what}. The frames of a pair hardly differ (mean square change {change:.2g}): a still camera on a still scene, repeated "
            "frames, or too short a gap. Look at the frames with `vla show`; choose another camera or a longer gap_s."
        )
    if unexplained > 0.95:
        raise Collapsed(
            f"{what}, and the forward decoder predicts no better than no change ({unexplained:.0%} of it unexplained). Training has "
            "not started to work: lower the learning rate, or give it more steps before the check."
        )
    raise Collapsed(
        f"{what}, though the forward decoder explains {1 - unexplained:.0%} of the change: a few entries are enough for this video. "
        "Lower `vocabulary` or `codes`, or use FSQ, which has no codebook to collapse."
    )
