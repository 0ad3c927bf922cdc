"""How many draws of a block each source gets: exact shares, caps as breakpoints, all of it precomputed.

Weights are put on a grid of 1 / (block * PERIOD), so that quotas repeat after PERIOD blocks, with no error left. Within a
period each block gives a source the floor or the ceiling of its share. Who gets the ceiling is the Pfair scheduling problem:
each source a task of weight frac(share), the left-over draws of a block the processors. PD2 (Anderson, Srinivasan 2004) solves
it with every source's running total within one draw of its ideal, always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla.errors import UserError

PERIOD = 1000


@dataclass(frozen=True)
class Phase:
    """Blocks `start`.. (until the next phase) follow `total_PS` cyclically: draws of each source before block p of a period.

    `before_S`: draws of each source before the phase. A block holds as many draws as its row of quotas adds up to.
    """

    start: int
    blocks: int | None
    before_S: np.ndarray
    total_PS: np.ndarray


def plan(weight_S: Sequence[float] | np.ndarray, cap_S: Sequence[int | None], block: int) -> list[Phase]:
    """Phases of a mixture in which source s gives at most `cap_S[s]` draws (None: no limit), reached exactly.

    A source at its cap leaves, and the others share its place in proportion. With every source capped the last phase ends:
    its `blocks` is then a number, else None.
    """
    weight_S = np.asarray(weight_S, np.float64)
    if not len(weight_S) or not np.isfinite(weight_S).all() or (weight_S <= 0).any():
        raise UserError(f"weights must be positive numbers; got {weight_S.tolist()}")
    if block < 1:
        raise UserError(f"block of {block} positions; it must be at least 1")
    unlimited = np.iinfo(np.int64).max
    left_S = np.array([unlimited if cap is None else cap for cap in cap_S], np.int64)
    capped_S = left_S < unlimited
    phases, start, before_S = [], 0, np.zeros(len(weight_S), np.int64)
    while (left_S > 0).any():
        total_PS = _period(np.where(left_S > 0, weight_S, 0.0), block)
        blocks = _blocks_until(total_PS, left_S, capped_S)
        if blocks is None:
            phases.append(Phase(start, None, before_S, total_PS))
            return phases
        if blocks:
            phases.append(Phase(start, blocks, before_S, total_PS))
            drawn_S = blocks // PERIOD * total_PS[-1] + total_PS[blocks % PERIOD]
            start, before_S = start + blocks, before_S + drawn_S
            left_S = np.where(capped_S, left_S - drawn_S, left_S)
        quota_S = _last_block(total_PS[blocks % PERIOD + 1] - total_PS[blocks % PERIOD], left_S, weight_S, block)
        phases.append(Phase(start, 1, before_S, np.stack([np.zeros_like(quota_S), quota_S])))
        start, before_S = start + 1, before_S + quota_S
        left_S = np.where(capped_S, left_S - quota_S, left_S)
    return phases


def largest_remainder(share_S: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that add up to `total`, each the floor or ceiling of its share; ties go to the earlier source."""
    floor_S = np.floor(share_S).astype(np.int64)
    order = np.argsort(-(share_S - floor_S), kind="stable")
    floor_S[order[: total - int(floor_S.sum())]] += 1
    return floor_S


def _period(weight_S: np.ndarray, block: int) -> np.ndarray:
    """(PERIOD + 1, S): draws of each source before each block of a period; the last row is the whole period's."""
    draws_S = largest_remainder(weight_S / weight_S.sum() * (block * PERIOD), block * PERIOD)
    draws_S[np.argmax(draws_S)] -= int(((draws_S == 0) & (weight_S > 0)).sum())  # nobody with a weight gets nothing
    draws_S[(draws_S == 0) & (weight_S > 0)] = 1
    extra_S = draws_S % PERIOD
    quota_PS = np.tile(draws_S // PERIOD, (PERIOD, 1))
    quota_PS += _pfair(extra_S, int(extra_S.sum()) // PERIOD)
    return np.concatenate([np.zeros((1, len(weight_S)), np.int64), np.cumsum(quota_PS, axis=0)])


def _pfair(extra_S: np.ndarray, per_block: int) -> np.ndarray:
    """(PERIOD, S) of 0 and 1: `per_block` ones a row, `extra_S[s]` ones in column s, spread evenly (PD2)."""
    chosen_PS = np.zeros((PERIOD, len(extra_S)), np.int64)
    task = np.flatnonzero(extra_S)
    if not per_block:
        return chosen_PS
    e, idle, done = extra_S[task], PERIOD - extra_S[task], np.zeros(len(task), np.int64)
    for p in range(PERIOD):
        deadline = _ceil_divide((done + 1) * PERIOD, e)
        overlaps = (done + 1) * PERIOD % e != 0
        group = np.where(2 * e >= PERIOD, _ceil_divide(_ceil_divide(deadline * idle, PERIOD) * PERIOD, idle), 0)
        late = np.where(done * PERIOD // e <= p, 0, 1)  # not released yet: only behind all others
        first = np.lexsort((-group, ~overlaps, deadline, late))[:per_block]
        assert not late[first].any(), "Pfair: fewer tasks released than draws to give"
        chosen_PS[p, task[first]] = 1
        done[first] += 1
    return chosen_PS


def _blocks_until(total_PS: np.ndarray, left_S: np.ndarray, capped_S: np.ndarray) -> int | None:
    """Blocks before the first one that some capped source could not fill; None if there is no such source."""
    blocks = []
    for s in np.flatnonzero(capped_S & (left_S > 0)):
        periods, rest = divmod(int(left_S[s]), int(total_PS[-1, s]))
        blocks.append(periods * PERIOD + int(np.searchsorted(total_PS[:, s], rest, side="right")) - 1)
    return min(blocks) if blocks else None


def _last_block(quota_S: np.ndarray, left_S: np.ndarray, weight_S: np.ndarray, block: int) -> np.ndarray:
    """A block in which some sources run out: they give what they have, the others fill it in proportion."""
    quota_S = np.minimum(quota_S, left_S)
    while (missing := block - int(quota_S.sum())) > 0:
        open_S = left_S > quota_S
        if not open_S.any():
            break
        share_S = np.where(open_S, weight_S, 0.0)
        more_S = largest_remainder(share_S / share_S.sum() * missing, missing)
        quota_S = quota_S + np.minimum(more_S, left_S - quota_S)
    return quota_S


def _ceil_divide(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    return -(-a // b)
