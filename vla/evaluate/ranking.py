"""Many policies at once: which differ (compact letters) and how they rank (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from vla.errors import UserError
from vla.evaluate.compare import Compared, compare
from vla.evaluate.result import EvalResult, Rate, stable_hash
from vla.evaluate.statistics import CONFIDENCE, Interval

RESAMPLES = 2000
_ITERATIONS = 300
_PRIOR_WINS = 0.5
"""Added to each side of each pair, so that a policy that never lost has a finite strength (as Haldane's correction)."""


@dataclass(frozen=True)
class Ranked:
    """One policy among several. `letters`: policies that share a letter are not shown to differ. `strength`: Bradley-Terry log-odds of
    winning an episode that only one of two solves, against the average of all, with its interval; None where seeds differ."""

    name: str
    rate: Rate
    letters: str
    strength: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Pair:
    """Two of them, by name. `adjusted`: the p-value after Holm's correction for the number of pairs."""

    a: str
    b: str
    compared: Compared
    adjusted: float


@dataclass(frozen=True)
class Ranking:
    """`policies`: best first. `notes`: what a reader must know."""

    policies: tuple[Ranked, ...]
    pairs: tuple[Pair, ...]
    level: float
    notes: tuple[str, ...]


def rank(results: Mapping[str, EvalResult], level: float = 1 - CONFIDENCE) -> Ranking:
    """Raises UserError if two of them share no task of one suite."""
    if len(results) < 2:
        raise UserError(f"{len(results)} evaluation to rank; give at least 2")
    chosen = [(a, b, compare(results[a], results[b])) for a, b in combinations(results, 2)]
    adjusted = holm([compared.pooled.comparison.p_value for _, _, compared in chosen])
    pairs = tuple(Pair(a, b, compared, p) for (a, b, compared), p in zip(chosen, adjusted, strict=True))
    names = sorted(results, key=lambda name: -results[name].pooled.rate)
    letters = compact_letters(names, [(pair.a, pair.b) for pair in pairs if pair.adjusted < level])
    notes = list(dict.fromkeys(note for pair in pairs for note in pair.compared.notes))
    tasks, success_EK = _shared(results)
    strengths: list[tuple[float | None, Interval | None]] = [(None, None)] * len(results)
    if len(success_EK):
        strengths = list(zip(*bradley_terry(tasks, success_EK), strict=True))
    else:
        notes.append("no episode was run by all of them, so there is no Bradley-Terry ranking; give all the same --seed")
    by_name = dict(zip(results, strengths, strict=True))
    policies = tuple(Ranked(name, results[name].pooled, letters[name], *by_name[name]) for name in names)
    return Ranking(policies, pairs, level, tuple(notes))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, so that any false rejection among them keeps the level (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def compact_letters(names: Sequence[str], different: Collection[tuple[str, str]]) -> dict[str, str]:
    """Letters such that two names share one exactly if their pair is not in `different` (Piepho 2004, insert and absorb)."""
    groups = [frozenset(names)]
    for a, b in different:
        split = [part for group in groups for part in ([group - {a}, group - {b}] if {a, b} <= group else [group])]
        unique = list(dict.fromkeys(split))
        groups = [group for group in unique if not any(group < other for other in unique)]
    groups.sort(key=lambda group: sorted(names.index(name) for name in group))
    return {name: "".join(_letter(i) for i, group in enumerate(groups) if name in group) for name in names}


def bradley_terry(tasks: Sequence[str], success_EK: np.ndarray, confidence: float = CONFIDENCE) -> tuple[list[float], list[Interval]]:
    """Strengths (log-odds, mean 0) of K policies and their intervals, from who solved which of the same E episodes.

    A policy beats another on an episode that it alone of the two solves; draws say nothing. Maximum likelihood, by Hunter's iteration
    (2004). Intervals: percentiles over episodes drawn again within their tasks, all policies together, since they share the episodes.
    """
    wins_EKK = (success_EK[:, :, None] & ~success_EK[:, None, :]).astype(np.float64)
    weight_RE = np.concatenate([np.ones((1, len(tasks))), _resampled(tasks)])
    episodes, policies = success_EK.shape
    wins_RKK = (weight_RE @ wins_EKK.reshape(episodes, -1)).reshape(-1, policies, policies)
    strength_RK = _strengths(wins_RKK)
    low_K, high_K = np.quantile(strength_RK[1:], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return strength_RK[0].tolist(), [Interval(float(low), float(high)) for low, high in zip(low_K, high_K, strict=True)]


def _strengths(wins_RKK: np.ndarray) -> np.ndarray:
    policies = wins_RKK.shape[-1]
    wins_RKK = wins_RKK + _PRIOR_WINS * (1 - np.eye(policies))
    games_RKK, won_RK = wins_RKK + wins_RKK.swapaxes(1, 2), wins_RKK.sum(2)
    power_RK = np.ones_like(won_RK)
    for _ in range(_ITERATIONS):
        power_RK = won_RK / (games_RKK / (power_RK[:, :, None] + power_RK[:, None, :])).sum(2)
        power_RK /= np.exp(np.log(power_RK).mean(1, keepdims=True))
    return np.log(power_RK)


def _resampled(tasks: Sequence[str]) -> np.ndarray:
    """How often each episode was drawn, float64 (RESAMPLES, E)."""
    rng, names = np.random.default_rng(stable_hash("bradley_terry")), np.array(tasks)
    weight_RE = np.zeros((RESAMPLES, len(tasks)))
    for task in dict.fromkeys(tasks):
        own = np.flatnonzero(names == task)
        weight_RE[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=RESAMPLES)
    return weight_RE


def _shared(results: Mapping[str, EvalResult]) -> tuple[list[str], np.ndarray]:
    """The episodes that all have run: their tasks, and success bool (E, K)."""
    outcomes = [{(row.task, row.seed): row.success for row in result.rows} for result in results.values()]
    keys = [key for key in outcomes[0] if all(key in of_one for of_one in outcomes)]
    return [task for task, _ in keys], np.array([[of_one[key] for of_one in outcomes] for key in keys], dtype=bool)


def _letter(index: int) -> str:
    return chr(ord("a") + index % 26) + "'" * (index // 26)
