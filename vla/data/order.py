"""The order of training data as a function: position -> (source, sample of that source). No buffer, no state, no epoch loop.

Positions come in blocks with exact quotas of each source (`quota`), permuted within the block by key. The k-th draw of a
source is sample k mod n of a keyed permutation of its n samples, another one each epoch. So any position can be asked for
alone, resuming is one integer, and every world size and number of workers sees the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vla.data.keyed import mix, name_key, permute
from vla.data.quota import Phase, plan
from vla.errors import UserError


@dataclass(frozen=True)
class OrderSource:
    """`samples_per_shard`: int64, how many samples each of its shards holds, in storage order (one entry if it matters not).

    `name` keys its permutation, so that adding another source reshuffles nothing. `max_epochs` may be a fraction. `window`: its own,
    instead of the order's.
    """

    name: str
    weight: float
    samples_per_shard: np.ndarray
    max_epochs: float | None = None
    window: int | None = None

    @property
    def samples(self) -> int:
        return int(self.samples_per_shard.sum())


class Order:
    """`at(positions)` answers in O(positions); memory is O(sources + shards).

    `window`: with a number, each epoch goes through the shards in windows of so many (both in keyed order), which keeps
    reads near each other on network storage; None permutes all samples of a source at once.
    """

    def __init__(self, sources: Sequence[OrderSource], seed: int, block: int = 10_000, window: int | None = None) -> None:
        empty = [source.name for source in sources if source.samples < 1]
        names = [source.name for source in sources]
        if empty or not sources or len(set(names)) < len(names):
            raise UserError(f"an order needs sources with samples and unique names; empty: {empty}, all: {names}")
        windows = [window if source.window is None else source.window for source in sources]
        if any(shards is not None and shards < 1 for shards in windows):
            raise UserError(f"windows of {windows} shards; each must be at least 1")
        self.sources, self.seed, self.block, self.window = tuple(sources), seed, block, window
        weights = [source.weight for source in sources]
        caps = [None if s.max_epochs is None else max(int(s.max_epochs * s.samples), 1) for s in sources]
        self._phases = plan(weights, caps, block)
        self._start_P = np.array([phase.start for phase in self._phases])
        self._samples_S = np.array([source.samples for source in sources], np.int64)
        self._key_S = np.array([name_key(name) for name in names], np.uint64)
        self._shards = [_Shards(source.samples_per_shard, w) if w else None for source, w in zip(sources, windows, strict=True)]

    @property
    def length(self) -> int | None:
        """How many positions there are; None (endless) unless every source is capped."""
        last = self._phases[-1]
        if last.blocks is None:
            return None
        return int((last.before_S + _drawn(last, np.array([last.blocks]))[0]).sum())

    def at(self, position_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 (N,) positions, in any order -> (source number (N,), sample number within the source (N,)), both int64."""
        position_N = np.asarray(position_N, np.int64)
        length = self.length
        if len(position_N) and (position_N.min() < 0 or (length is not None and position_N.max() >= length)):
            raise UserError(f"position {position_N.max()} is outside the order of {length} positions; raise max_epochs")
        source_N, draw_N = self._draws(position_N)
        samples_N = self._samples_S[source_N]
        epoch_N, index_N = np.divmod(draw_N, samples_N)
        key_N = mix(self.seed, self._key_S[source_N], epoch_N)
        whole_N = np.array([shards is None for shards in self._shards])[source_N]
        index_N[whole_N] = permute(index_N[whole_N], samples_N[whole_N], key_N[whole_N])
        for key in np.unique(key_N[~whole_N]):  # one per source and epoch touched
            rows = np.flatnonzero(key_N == key)
            shards = self._shards[source_N[rows[0]]]
            assert shards is not None
            index_N[rows] = shards.at(index_N[rows], key)
        return source_N, index_N

    def substitute(self, position: int, source: int, attempt: int) -> int:
        """Which sample of the same source stands in for a bad one: a function of the position and the attempt alone."""
        return int(mix(self.seed, self._key_S[source : source + 1], position, attempt, 0x5AB)[0] % np.uint64(self._samples_S[source]))

    def quotas(self, block_number: int) -> np.ndarray:
        """Draws of each source in one block, int64 (S,)."""
        phase = self._phases[int(np.searchsorted(self._start_P, block_number, side="right")) - 1]
        before, after = _drawn(phase, np.array([block_number, block_number + 1]) - phase.start)
        return after - before

    def drawn(self, positions: int) -> np.ndarray:
        """Draws of each source in the first `positions` positions, to within a block: float64 (S,). For reports."""
        block_number, rest = divmod(positions, self.block)
        phase = self._phases[int(np.searchsorted(self._start_P, block_number, side="right")) - 1]
        before_S = phase.before_S + _drawn(phase, np.array([block_number - phase.start]))[0]
        return before_S + self.quotas(block_number) * (rest / self.block)

    def _draws(self, position_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many draws of that source came before in its count), int64 (N,) both."""
        block_N, offset_N = np.divmod(position_N, self.block)
        block_U, where_N = np.unique(block_N, return_inverse=True)
        phase_U = np.searchsorted(self._start_P, block_U, side="right") - 1
        first_US = np.zeros((len(block_U), len(self.sources)), np.int64)
        quota_US = np.zeros_like(first_US)
        for number in np.unique(phase_U):
            phase, rows = self._phases[number], np.flatnonzero(phase_U == number)
            local = block_U[rows] - phase.start
            first_US[rows] = phase.before_S + _drawn(phase, local)
            quota_US[rows] = phase.before_S + _drawn(phase, local + 1) - first_US[rows]
        end_US = np.cumsum(quota_US, axis=1)
        slot_N = permute(offset_N, end_US[where_N, -1], mix(self.seed, block_N, 0xB10C))
        source_N = (slot_N[:, None] >= end_US[where_N]).sum(1)
        rank_N = slot_N - (end_US - quota_US)[where_N, source_N]
        return source_N, first_US[where_N, source_N] + rank_N


def _drawn(phase: Phase, local_U: np.ndarray) -> np.ndarray:
    """Draws of each source in the first so many blocks of a phase, (U, S)."""
    period_U, row_U = np.divmod(local_U, len(phase.total_PS) - 1)
    return period_U[:, None] * phase.total_PS[-1] + phase.total_PS[row_U]


@dataclass
class _Shards:
    """One source whose epochs go through windows of shards."""

    samples_per_shard: np.ndarray
    window: int
    _epochs: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._first = np.cumsum(self.samples_per_shard) - self.samples_per_shard

    def at(self, index_N: np.ndarray, key: np.uint64) -> np.ndarray:
        shard_order, end = self._epoch(key)
        last = np.minimum(np.arange(self.window - 1, len(end) + self.window - 1, self.window), len(end) - 1)
        window_end = end[last]
        window_N = np.searchsorted(window_end, index_N, side="right")
        begin_N = np.where(window_N > 0, window_end[window_N - 1], 0)
        inside_N = permute(index_N - begin_N, window_end[window_N] - begin_N, mix(np.array([key]), window_N)) + begin_N
        place_N = np.searchsorted(end, inside_N, side="right")
        shard_N = shard_order[place_N]
        return self._first[shard_N] + inside_N - (end[place_N] - self.samples_per_shard[shard_N])

    def _epoch(self, key: np.uint64) -> tuple[np.ndarray, np.ndarray]:
        """(shards in this epoch's order, samples up to the end of each)."""
        found = self._epochs.get(int(key))
        if found is None:
            count = len(self.samples_per_shard)
            inverse = permute(np.arange(count), np.full(count, count), mix(np.array([key]), 0x54A2D))
            found = (inverse, np.cumsum(self.samples_per_shard[inverse]))
            while len(self._epochs) > 3:  # neighbouring epochs meet at a border; more would only grow
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[int(key)] = found
        return found
