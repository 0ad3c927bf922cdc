"""Position -> sample. Everything about a sample follows from its position, the seed and the mixture; nothing is remembered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from vla.data.assemble import Assembler, Draft, Known
from vla.data.feed import Feed
from vla.data.images import FrameCache
from vla.data.memory import Canvas
from vla.data.mixture import Mixture
from vla.data.order import Order, OrderSource
from vla.data.quarantine import BadRecord, BadSample, Quarantine, TooManyBad
from vla.data.remote import check_room
from vla.data.split import Split
from vla.embodiment import Embodiment
from vla.errors import Damaged, UnknownName, UserError
from vla.types import Sample

MAX_SUBSTITUTES = 16
MAX_ROW_CACHE_BYTES = 32 << 20
Ledger = Callable[[int, str, str, int], None]
"""Called with (position, source, episode, step) for every sample, as its batch is handed out."""
Place = tuple[int, int, int, int]


class Pipeline:
    """Samples of a mixture, in the robots' learned frames.

    `embodiments`: by name, the robots to learn; a source's rows are encoded for the one it was recorded on, and its spaces and
    camera roles must be that robot's. `split`: training episodes or held-out ones. `history_s`: offsets of what is seen,
    seconds, rising to 0. `future_gap_s`: (low, high) for frame pairs; each sample draws its gap, and one too near the end gives its place
    to an earlier one. `goal_gap_s`: the same for goals, but every sample keeps its place, and has no future where none lies so far ahead.
    `latents`: hash of the model whose cached codes come along; every source must have them that its mixture does not mark `latents: false`.
    `cache_bytes`: decoded frames (and, a little, rows) kept in memory. `max_bad_rate`: share of bad samples that stops the run.

    `sources`: name -> number, for the books. `order`, `quarantine` may be looked at. `without`: names of the sources that have no
    episode in this split (a small dataset may have none held out).
    """

    def __init__(
        self,
        mixture: Mixture,
        embodiments: Mapping[str, Embodiment],
        split: Literal["train", "val"] = "train",
        seed: int = 0,
        block: int = 10_000,
        window: int | None = None,
        history_s: Sequence[float] = (0.0,),
        future_gap_s: tuple[float, float] | None = None,
        goal_gap_s: tuple[float, float] | None = None,
        latents: str | None = None,
        cache_bytes: int = 1 << 30,
        max_bad_rate: float = 0.01,
        ledger: Ledger | None = None,
    ) -> None:
        self.mixture, self.seed, self.ledger = mixture, seed, ledger
        self.history_s = _history(history_s)
        self.future_gap_s, self.goal_gap_s = _gap(future_gap_s), _gap(goal_gap_s)
        if future_gap_s is not None and goal_gap_s is not None:
            raise UserError("a sample has one future: give future_gap_s (pairs of frames) or goal_gap_s (goals), not both")
        every = [Feed.open(s, embodiments, Split(s.dataset, split, mixture.val_fraction), latents) for s in mixture.sources]
        self.without = tuple(feed.source.name for feed in every if not feed.split.anchors)
        self._feeds = [feed for feed in every if feed.split.anchors]
        if not self._feeds or (split == "train" and self.without):
            fix = "write val_fraction: 0 to hold none out" if split == "val" else "lower it"
            raise UserError(
                f"mixture '{mixture.name}': no {split} episodes in {', '.join(self.without)} with val_fraction "
                f"{mixture.val_fraction:g}; {fix}, or add episodes"
            )
        rows = [
            OrderSource(f.source.name, f.source.share, f.split.anchors_per_shard, f.source.max_epochs, f.source.window) for f in self._feeds
        ]
        if split == "val":  # a cap is about what training sees too often
            rows = [replace(row, max_epochs=None) for row in rows]
        check_room({f.source.name: (f.source.dataset, row.window or window) for f, row in zip(self._feeds, rows, strict=True)})
        self.order = Order(rows, seed, block, window)
        self.sources = {feed.source.name: number for number, feed in enumerate(self._feeds)}
        self.cache = FrameCache(cache_bytes)
        self.assembler = Assembler(seed, self.history_s, self.future_gap_s, self.cache, goal_gap_s=self.goal_gap_s)
        for pool in {id(feed.source.dataset.pool): feed.source.dataset.pool for feed in self._feeds}.values():
            pool.episode_bytes = max(pool.episode_bytes, min(cache_bytes // 64, MAX_ROW_CACHE_BYTES))
        self.quarantine = Quarantine(max_bad_rate)

    def sample(self, position: int) -> Sample:
        """The sample at a position: a pure function of it. A bad one is counted and replaced, by the same rule every time."""
        return self.samples([position])[0]

    def samples(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        """Several at once, which is cheaper; float64 actions, uint8 images that must not be written to."""
        samples, bad = self.collect(self.look_up(positions))
        self.quarantine.add(len(samples) + len(bad), bad)
        return samples

    def look_up(self, positions: Sequence[int] | np.ndarray) -> list[Place]:
        """Where positions lie: rows of (position, source number, episode number in its dataset, anchor number in the episode)."""
        position_N = np.asarray(positions, np.int64)
        source_N, index_N = self.order.at(position_N)
        episode_N, anchor_N = np.zeros_like(index_N), np.zeros_like(index_N)
        for number in np.unique(source_N):
            rows = source_N == number
            episode_N[rows], anchor_N[rows] = self._feeds[number].split.locate(index_N[rows])
        return list(zip(position_N.tolist(), source_N.tolist(), episode_N.tolist(), anchor_N.tolist(), strict=True))

    def collect(self, places: Sequence[Place], canvas: Canvas | None = None) -> tuple[list[Sample], list[BadRecord]]:
        """The samples there, and the bad ones that were replaced, which are not counted yet (loader processes count at home).

        Images are decoded into `canvas`, one after the other, as far as it has room.
        """
        drafts = [Draft(position, self._feeds[source], episode, anchor) for position, source, episode, anchor in places]
        self.assembler.build(drafts, canvas)
        bad: list[BadRecord] = []
        samples = [
            draft.sample if draft.error is None else self._substitute(draft, place[1], bad)
            for draft, place in zip(drafts, places, strict=True)
        ]
        return samples, bad

    def where(self, position: int) -> str:
        """What lies at a position, for people: source, shard, episode and step. Reads nothing but the episode's entry in the index."""
        ((_, number, episode, anchor),) = self.look_up([position])
        dataset = self._feeds[number].source.dataset
        record = self._record(position, self._feeds[number], episode, anchor, "", "")
        shard = dataset.shard_names[int(dataset.shard_E[episode])]
        return f"position {position}: source '{record.source}', {shard}, episode '{record.episode}' step {record.step}"

    def at_anchor(self, source: str, anchor: int, gap_s: float | None = None) -> Sample:
        """The sample at anchor number `anchor` of a whole dataset (held-out episodes included, storage order), for labelling.

        With `gap_s`, `future` is the anchor nearest that far ahead, or the episode's last: `Sample.gap_s` says how far it is.
        """
        if source not in self.sources:
            raise UnknownName("source", source, self.sources)
        feed = self._feeds[self.sources[source]]
        episode, number = feed.whole.locate(np.array([anchor]))
        draft = Draft(-1, feed, int(episode[0]), int(number[0]))
        self.assembler.build([draft], gap_s=gap_s)
        if draft.error is not None:
            raise draft.error
        return draft.sample

    def leaving_out(self, known: Known) -> Pipeline:
        """The same samples, those without images for which `known(source, episode, step, instruction)` says that they are not needed."""
        other = copy.copy(self)
        other.assembler = Assembler(self.seed, self.history_s, self.future_gap_s, self.cache, known, self.goal_gap_s)
        return other

    def batches(self, start_position: int = 0, **options: Any) -> Iterator[tuple[np.ndarray, Any]]:
        """See `vla.data.batches.batches`, which this calls with `self`."""
        from vla.data.batches import batches

        return batches(self, start_position, **options)

    def begin_worker(self, workers: int, number: int, at: np.ndarray) -> None:
        """In one of so many loader processes: takes its share of the cache, and locks of its own. `at`, int64 (1,): where to note the
        position that is being made."""
        self.cache.limit_bytes //= workers
        self.assembler.at = at
        for feed in self._feeds:
            feed.source.dataset.pool.forked()

    def _substitute(self, draft: Draft, source: int, bad: list[BadRecord]) -> Sample:
        """Another sample of the same source for a bad one, and for that if it is bad as well."""
        position, feed = draft.position, draft.feed
        for attempt in range(MAX_SUBSTITUTES):
            if draft.error is None:
                return draft.sample
            cause = draft.error.cause if isinstance(draft.error, BadSample) else "altered" if isinstance(draft.error, Damaged) else "schema"
            bad.append(self._record(position, feed, draft.index, draft.anchor, cause, str(draft.error)))
            index = np.array([self.order.substitute(position, source, attempt)])
            (episode,), (anchor,) = (part.tolist() for part in feed.split.locate(index))
            draft = Draft(position, feed, episode, anchor)
            self.assembler.build([draft])
        raise TooManyBad(f"position {position}: {MAX_SUBSTITUTES} samples in a row are bad; the last: {bad[-1]}. Run `vla check`.")

    def _record(self, position: int, feed: Feed, episode: int, anchor: int, cause: str, detail: str) -> BadRecord:
        try:
            stored = feed.source.dataset.episode(episode)
            name, step = stored.id, int(stored.anchors[anchor])
        except Damaged:  # not even its name can be read
            name, step = f"#{episode}", -1
        return BadRecord(cause, feed.source.name, name, step, position, detail)


def _history(offsets_s: Sequence[float]) -> tuple[float, ...]:
    offsets = tuple(float(offset) for offset in offsets_s)
    if not offsets or offsets[-1] != 0 or list(offsets) != sorted(set(offsets)):
        raise UserError(f"history {list(offsets_s)}: give offsets in seconds that rise to 0, such as (-0.5, 0.0)")
    return offsets


def _gap(gap_s: tuple[float, float] | None) -> tuple[float, float] | None:
    if gap_s is not None and not 0 < gap_s[0] <= gap_s[1] < float("inf"):
        raise UserError(f"future gap {gap_s}: give (low, high) in seconds with 0 < low <= high")
    return gap_s
