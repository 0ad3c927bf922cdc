"""Intervals and tests for success counts. Two-sided throughout; `confidence` is 0.95 unless said otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import optimize, stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Lower and upper bound of a share or a difference."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Success of A less that of B: `difference` and its interval, and the p-value of no difference. `test`, `interval_of`: which."""

    difference: float
    interval: Interval
    p_value: float
    test: str
    interval_of: str


def wilson(successes: int, episodes: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a proportion (Wilson 1927): near its nominal coverage on average, never outside [0, 1]."""
    return _proportion(successes, episodes, confidence, "wilson")


def clopper_pearson(successes: int, episodes: int, confidence: float = CONFIDENCE) -> Interval:
    """Exact interval of a proportion (Clopper and Pearson 1934): never below its nominal coverage, so wider."""
    return _proportion(successes, episodes, confidence, "exact")


def compare_paired(both: int, only_a: int, only_b: int, neither: int, confidence: float = CONFIDENCE) -> Comparison:
    """Two policies on the same episodes (same task, same seed): how many each solved.

    p-value: exact McNemar test, a binomial test on the pairs that differ. Interval: Tango's score interval.
    """
    pairs = both + only_a + only_b + neither
    differ = only_a + only_b
    p_value = float(stats.binomtest(only_a, differ, 0.5).pvalue) if differ else 1.0
    interval = tango(only_a, only_b, pairs, confidence)
    return Comparison((only_a - only_b) / pairs, interval, p_value, "McNemar, exact", "Tango score, paired")


def compare_unpaired(a: int, episodes_a: int, b: int, episodes_b: int, confidence: float = CONFIDENCE) -> Comparison:
    """Two policies on different episodes. p-value: Barnard's exact test (more powerful than Fisher's, which conditions on what
    the experiment did not fix). Interval: Newcombe's hybrid of two Wilson intervals."""
    table = [[a, b], [episodes_a - a, episodes_b - b]]
    # With all or none successful the score statistic is 0/0: nothing speaks against equality.
    same = a + b in (0, episodes_a + episodes_b)
    p_value = 1.0 if same else float(min(1.0, stats.barnard_exact(table, pooled=True).pvalue))
    interval = newcombe(a, episodes_a, b, episodes_b, confidence)
    return Comparison(a / episodes_a - b / episodes_b, interval, p_value, "Barnard, exact", "Newcombe hybrid score")


def tango(only_a: int, only_b: int, pairs: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval for the difference (only_a - only_b) / pairs of paired proportions (Tango 1998, Stat. Med. 17, 891-908)."""
    if pairs < 1 or min(only_a, only_b) < 0 or only_a + only_b > pairs:
        raise ValueError(f"{only_a} and {only_b} differing pairs out of {pairs}")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    estimate = (only_a - only_b) / pairs

    def excess(difference: float, side: float) -> float:
        return _tango_score(only_a, only_b, pairs, difference) - side * z

    # The score falls from +inf to -inf over (-1, 1); at an estimate of -1 or 1 the interval ends there.
    edge = 1 - 1e-12
    low = -1.0 if excess(-edge, +1) <= 0 else optimize.brentq(excess, -edge, min(estimate, edge), args=(+1,), xtol=1e-12)
    high = 1.0 if excess(edge, -1) >= 0 else optimize.brentq(excess, max(estimate, -edge), edge, args=(-1,), xtol=1e-12)
    return Interval(float(low), float(high))


def newcombe(a: int, episodes_a: int, b: int, episodes_b: int, confidence: float = CONFIDENCE) -> Interval:
    """Hybrid score interval for the difference of independent proportions (Newcombe 1998, Stat. Med. 17, 873-890, method 10)."""
    share_a, share_b = a / episodes_a, b / episodes_b
    wilson_a, wilson_b = wilson(a, episodes_a, confidence), wilson(b, episodes_b, confidence)
    down = math.hypot(share_a - wilson_a.low, wilson_b.high - share_b)
    up = math.hypot(wilson_a.high - share_a, share_b - wilson_b.low)
    return Interval(share_a - share_b - down, share_a - share_b + up)


def _proportion(successes: int, episodes: int, confidence: float, method: str) -> Interval:
    found = stats.binomtest(successes, episodes).proportion_ci(confidence, method)
    return Interval(float(found.low), float(found.high))


def _tango_score(only_a: int, only_b: int, pairs: int, difference: float) -> float:
    """The standardised distance of the data from a true difference, with the nuisance parameter (the probability that B alone
    succeeds) at its most likely value under that difference: equations (3) and (5) of the paper."""
    two_n = 2 * pairs
    linear = -only_a - only_b + (two_n - only_a + only_b) * difference
    constant = -only_b * difference * (1 - difference)
    # The larger root is the likely one, and a probability. Rounding may push a zero discriminant below zero.
    q = (math.sqrt(max(0.0, linear**2 - 4 * two_n * constant)) - linear) / (2 * two_n)
    variance = pairs * (2 * q + difference * (1 - difference))
    distance = only_a - only_b - pairs * difference
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0
