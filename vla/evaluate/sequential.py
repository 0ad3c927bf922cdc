"""A comparison that may stop early: an exact sequential McNemar test whose stopping rule is fixed before the first episode.

Policies run the same episodes, one pair at a time. Only pairs that differ say anything, and if neither policy is better, each of these is a
fair coin, whatever the episodes' difficulty and however the outcomes of a pair hang together. So, given which pairs differ, the chance
of every course of events is known exactly, with no nuisance parameter, and a budget of error can be spent along the way to the last
bit (Wald 1947, chapter 6, reduces two proportions to this coin; Lan and DeMets 1983, Biometrika 70, 659-663, spend the budget). STEP
(Snyder et al. 2025, arXiv:2503.10966) spends such a budget over independent episodes, where the common success rate remains unknown
and the level has to hold for all of its values; pairing by seed removes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla.errors import UserError

Verdict = Literal["A", "B", "none"]


@dataclass(frozen=True)
class StoppingRule:
    """`pairs`: the most that will be run. `level`: the largest probability that a difference is declared where there is none, over both
    sides and all looks together. `shape`: after n pairs, level * (n / pairs)**shape may have been spent (1: evenly; 3: late)."""

    pairs: int
    level: float = 0.05
    shape: float = 1.0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UserError(f"a comparison of {self.pairs} pairs decides nothing; give at least 1")
        if not 0 < self.level < 1:
            raise UserError(f"level {self.level} must be between 0 and 1; 0.05 is usual")
        if not self.shape > 0:
            raise UserError(f"shape {self.shape} of the spending must be positive; 1 spends evenly")

    def budget(self, pairs: int) -> float:
        """What one side may have spent after so many pairs."""
        return self.level / 2 * (min(pairs, self.pairs) / self.pairs) ** self.shape

    def __str__(self) -> str:
        how = "evenly over them" if self.shape == 1 else f"as (n/{self.pairs})^{self.shape:g}"
        return (
            f"sequential McNemar test, at most {self.pairs} pairs, level {self.level:g} over both sides and all looks, spent {how}; "
            "fixed before the first episode"
        )


class Sequential:
    """The test, one pair at a time: `add` until it returns "A" or "B" (that one is better), or `finished` (no difference is shown).

    The order of the pairs must not depend on their outcomes. Valid for pairs of different tasks too: it then refutes that on no task
    the declared policy is better.
    """

    def __init__(self, rule: StoppingRule) -> None:
        self.rule = rule
        self.pairs = self.only_a = self.only_b = 0
        self.verdict: Verdict = "none"
        self.spent = 0.0
        """By one side so far; the other has spent the same."""
        self._alive_W = np.ones(1)  # probability of w wins of A among the pairs that differ and of no stop yet, if neither is better

    @property
    def finished(self) -> bool:
        """Whether it has a verdict, or no pair is left."""
        return self.verdict != "none" or self.pairs >= self.rule.pairs

    def add(self, a: bool, b: bool) -> Verdict:
        """The outcomes of the next pair."""
        assert not self.finished, "the comparison has ended"
        self.pairs += 1
        if a != b:
            self.only_a, self.only_b = self.only_a + a, self.only_b + b
            alive_W = self._alive_W / 2
            self._alive_W = np.append(alive_W, 0.0) + np.append(0.0, alive_W)
        stop = self._least_to_stop()
        self.verdict = "A" if self.only_a >= stop else "B" if self.only_b >= stop else "none"
        return self.verdict

    def _least_to_stop(self) -> int:
        """So many wins or more of one side end it now. Takes their probability off the budget of both sides."""
        differ = len(self._alive_W) - 1
        left, stop = self.rule.budget(self.pairs) - self.spent, differ + 1
        # Never below one half, where the two sides would meet.
        while stop - 1 > differ / 2 and self._alive_W[stop - 1] <= left + 1e-15:
            stop -= 1
            left -= self._alive_W[stop]
            self.spent += self._alive_W[stop]
            self._alive_W[stop] = self._alive_W[differ - stop] = 0.0
        return stop
