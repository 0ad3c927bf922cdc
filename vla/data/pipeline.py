"""Position -> sample. Everything about a sample follows from its position, the seed and the mixture; nothing is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from vla.data.images import FrameCache, decode_frame
from vla.data.keyed import mix, uniform
from vla.data.latents import read_latents
from vla.data.memory import Canvas
from vla.data.mixture import Mixture, Source
from vla.data.order import Order, OrderSource
from vla.data.quarantine import BadRecord, BadSample, Quarantine, TooManyBad
from vla.data.reader import StoredEpisode
from vla.data.remote import check_room
from vla.data.split import Split
from vla.data.window import Targets, frame_at, history_steps
from vla.embodiment import Embodiment
from vla.errors import Damaged, SchemaError, StatsMissing, UnknownName, UserError
from vla.types import Observation, Sample

MAX_SUBSTITUTES = 16
MAX_ROW_CACHE_BYTES = 32 << 20
Ledger = Callable[[int, str, str, int], None]
"""Called with (position, source, episode, step) for every sample, as its batch is handed out."""
Place = tuple[int, int, int, int]
_Waiting = tuple[np.ndarray, np.ndarray | None, Any, tuple[str, int, str, int]]
"""A frame to be decoded: (where to, the frame if it is in the cache, else its bytes, its key in the cache)."""


class Pipeline:
    """Samples of a mixture, in the robots' learned frames.

    `embodiments`: by name, the robots to learn; a source's rows are encoded for the one it was recorded on, and its spaces and
    camera roles must be that robot's. `split`: training episodes or held-out ones. `history_s`: offsets of what is seen,
    seconds, rising to 0. `future_gap_s`: (low, high) for frame pairs; each sample draws its gap. `latents`: hash of the model whose
    cached codes come along; every source must have them that its mixture does not mark `latents: false`.
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
        latents: str | None = None,
        cache_bytes: int = 1 << 30,
        max_bad_rate: float = 0.01,
        ledger: Ledger | None = None,
    ) -> None:
        self.mixture, self.seed, self.ledger = mixture, seed, ledger
        self.history_s = _history(history_s)
        self.future_gap_s = _gap(future_gap_s)
        every = [_Feed.open(s, embodiments, Split(s.dataset, split, mixture.val_fraction), latents) for s in mixture.sources]
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
        for pool in {id(feed.source.dataset.pool): feed.source.dataset.pool for feed in self._feeds}.values():
            pool.episode_bytes = max(pool.episode_bytes, min(cache_bytes // 64, MAX_ROW_CACHE_BYTES))
        self.quarantine = Quarantine(max_bad_rate)
        self._at = np.zeros(1, np.int64)

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
        bad: list[BadRecord] = []
        if canvas is None:
            return [self._sample_or_substitute(*place, bad) for place in places], bad
        # All reading first, then all decoding: each is faster with its own code in the processor's caches.
        waiting: list[_Waiting] = []
        samples, ends = [], []
        for place in places:
            samples.append(self._sample_or_substitute(*place, bad, canvas, waiting))
            ends.append(len(waiting))
        for row, (low, high) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            self._at[0] = places[row][0]
            if not all(self._decode(frame) for frame in waiting[low:high]):
                samples[row] = self._sample_or_substitute(*places[row], bad)
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
        return self._build(-1, feed, int(episode[0]), int(number[0]), gap_s)

    def batches(self, start_position: int = 0, **options: Any) -> Iterator[tuple[np.ndarray, Any]]:
        """See `vla.data.batches.batches`, which this calls with `self`."""
        from vla.data.batches import batches

        return batches(self, start_position, **options)

    def begin_worker(self, workers: int, number: int, at: np.ndarray) -> None:
        """In one of so many loader processes: takes its share of the cache, and locks of its own. `at`, int64 (1,): where to note the
        position that is being made."""
        self.cache.limit_bytes //= workers
        self._at = at
        for feed in self._feeds:
            feed.source.dataset.pool.forked()

    def _sample_or_substitute(
        self,
        position: int,
        source: int,
        episode: int,
        anchor: int,
        bad: list[BadRecord],
        canvas: Canvas | None = None,
        waiting: list[_Waiting] | None = None,
    ) -> Sample:
        feed = self._feeds[source]
        self._at[0] = position
        for attempt in range(MAX_SUBSTITUTES):
            try:
                return self._build(position, feed, episode, anchor, None, canvas, waiting)
            except BadSample as error:
                bad.append(self._record(position, feed, episode, anchor, error.cause, str(error)))
            except Damaged as error:
                bad.append(self._record(position, feed, episode, anchor, "altered", str(error)))
            except SchemaError as error:  # what `check_episode` would have refused, from another writer
                bad.append(self._record(position, feed, episode, anchor, "schema", str(error)))
            canvas = waiting = None
            index = np.array([self.order.substitute(position, source, attempt)])
            (episode,), (anchor,) = (part.tolist() for part in feed.split.locate(index))
        raise TooManyBad(f"position {position}: {MAX_SUBSTITUTES} samples in a row are bad; the last: {bad[-1]}. Run `vla check`.")

    def _record(self, position: int, feed: _Feed, episode: int, anchor: int, cause: str, detail: str) -> BadRecord:
        try:
            stored = feed.source.dataset.episode(episode)
            name, step = stored.id, int(stored.anchors[anchor])
        except Damaged:  # not even its name can be read
            name, step = f"#{episode}", -1
        return BadRecord(cause, feed.source.name, name, step, position, detail)

    def _build(
        self,
        position: int,
        feed: _Feed,
        index: int,
        anchor: int,
        gap_s: float | None,
        canvas: Canvas | None = None,
        waiting: list[_Waiting] | None = None,
    ) -> Sample:
        episode = feed.source.dataset.episode(index)
        future, actual_gap_s = None, 0.0
        if gap_s is not None:
            ahead = _nearest(episode.time_s[episode.anchors], episode.time_s[episode.anchors[anchor]] + gap_s)
        elif self.future_gap_s is not None:
            anchor, ahead = self._pair(position, episode, anchor)
        if gap_s is not None or self.future_gap_s is not None:
            later = int(episode.anchors[ahead])
            future = {role: self._images(feed, index, episode, role, [later])[0] for role in feed.roles}
            actual_gap_s = float(episode.time_s[later] - episode.time_s[episode.anchors[anchor]])
        step = int(episode.anchors[anchor])
        observation = self._observation(position, feed, index, episode, step, canvas, waiting)
        action_TA, valid_T = None, feed.nothing_valid_T
        if feed.targets is not None:
            action_TA, valid_T = feed.targets.chunk(episode, step)
        latent_N = None
        if feed.latents is not None:
            latent_N = feed.latents[feed.first_anchor_E[index] + anchor].astype(np.int64)
            latent_N = latent_N if (latent_N >= 0).all() else None
        return Sample(position, feed.source.name, episode.id, step, observation, action_TA, valid_T, latent_N, future, actual_gap_s)

    def _observation(
        self,
        position: int,
        feed: _Feed,
        index: int,
        episode: StoredEpisode,
        step: int,
        canvas: Canvas | None,
        waiting: list[_Waiting] | None,
    ) -> Observation:
        steps = [step] if len(self.history_s) == 1 else history_steps(episode, step, self.history_s)
        images = {role: self._images(feed, index, episode, role, steps, canvas, waiting) for role in feed.roles}
        if episode.state is None:
            state = np.zeros((len(steps), 0))
        else:
            state = episode.state[step : step + 1] if len(steps) == 1 else episode.state[steps]
            if not episode.finite_state and not np.isfinite(state).all():
                raise BadSample("nonfinite", f"state at step {step} holds NaN or infinity")
        texts = episode.instructions(step)
        text = texts[0] if len(texts) == 1 else texts[int(mix(self.seed, position, 0x7E87)[0] % len(texts))] if texts else ""
        return Observation(images, state, text, feed.robot.name if feed.robot else "", self.history_s)

    def _images(
        self,
        feed: _Feed,
        index: int,
        episode: StoredEpisode,
        role: str,
        steps: Sequence[int],
        canvas: Canvas | None = None,
        waiting: list[_Waiting] | None = None,
    ) -> np.ndarray:
        """What a camera shows at steps: uint8 (F, H, W, 3), not to be written to. Cut from the canvas where it has room, and then
        perhaps still to be decoded."""
        step_N, shape = episode.cameras[role].step, feed.frame_shape.get(role)
        numbers = [frame_at(step_N, step) for step in steps]
        if waiting is not None and canvas is not None:
            if shape is None:
                shape = feed.frame_shape[role] = self._image(feed, index, role, numbers[0]).shape
            out = canvas.take((len(steps), *shape))
            if out is not None:
                for f, number in enumerate(numbers):
                    key = (feed.source.name, index, role, number)
                    image = self.cache.get(key) if self.cache.limit_bytes else None
                    waiting.append((out[f], image, None if image is not None else feed.source.dataset.frame(index, role, number), key))
                return out
        frames = [self._image(feed, index, role, number) for number in numbers]
        feed.frame_shape[role] = frames[0].shape
        out = frames[0][None] if len(frames) == 1 else np.stack(frames)
        out.flags.writeable = False
        return out

    def _image(self, feed: _Feed, index: int, role: str, number: int) -> np.ndarray:
        """One frame, uint8 (H, W, 3)."""
        key = (feed.source.name, index, role, number)
        image = self.cache.get(key) if self.cache.limit_bytes else None
        if image is None:
            image = decode_frame(feed.source.dataset.frame(index, role, number))
            self.cache.offer(key, image)
        return image

    def _decode(self, frame: _Waiting) -> bool:
        """Fills in a frame that was left for later. False if it is bad, or of another size than the last one's."""
        out, image, data, key = frame
        if image is not None:
            if image.shape == out.shape:
                out[...] = image
            return image.shape == out.shape
        try:
            done = decode_frame(data, out) is out
        except (BadSample, Damaged):  # met again, and counted, when the sample is made on its own
            return False
        if done and self.cache.limit_bytes and self.cache.has_room(out.nbytes):
            self.cache.offer(key, out.copy())
        return done

    def _pair(self, position: int, episode: StoredEpisode, anchor: int) -> tuple[int, int]:
        """(now, later) anchors about a drawn gap apart. An anchor too near the end is exchanged for an earlier one, drawn evenly,
        so that no pair is shorter than asked for; only an episode shorter than the gap gives its first and last."""
        assert self.future_gap_s is not None
        low, high = self.future_gap_s
        gap_s = low + (high - low) * float(uniform(self.seed, position, 0x6A9)[0])
        time_s = episode.time_s[episode.anchors]
        if len(time_s) < 2:
            raise BadSample("short", f"episode '{episode.id}' has a single frame; a pair needs two")
        half_tick_s = 0.5 / float(episode.rate_hz)
        room = int(np.searchsorted(time_s, time_s[-1] - gap_s + half_tick_s, side="right"))
        if room == 0:
            return 0, len(time_s) - 1
        if anchor >= room:
            anchor = int(mix(self.seed, position, 0x9A12)[0] % np.uint64(room))
        return anchor, max(_nearest(time_s, time_s[anchor] + gap_s), anchor + 1)


@dataclass(frozen=True)
class _Feed:
    """One source, ready to be sampled: its split, what its numbers mean, and the roles it shows, in the robot's order."""

    source: Source
    split: Split
    robot: Embodiment | None
    targets: Targets | None
    roles: tuple[str, ...]
    latents: np.ndarray | None
    nothing_valid_T: np.ndarray
    frame_shape: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of each role's last frame: what the next will have

    @staticmethod
    def open(source: Source, embodiments: Mapping[str, Embodiment], split: Split, latents: str | None) -> _Feed:
        dataset, info = source.dataset, source.dataset.info
        robot, targets = info.robot, None
        roles = source.cameras or dataset.cameras
        if robot is not None:
            if robot.name in embodiments:
                robot = embodiments[robot.name]
            elif info.supervision != "none":
                raise UnknownName("embodiment", robot.name, embodiments, f"Source '{source.name}' was recorded on it.")
            if set(roles) != set(robot.cameras):
                raise SchemaError(
                    f"source '{source.name}' shows the camera roles {sorted(roles)}; '{robot.name}' has {sorted(robot.cameras)}. "
                    "Name the roles to use in the mixture (`cameras:`), or rename them in the embodiment or the data."
                )
            roles = robot.cameras
            if info.recorded_state is not None and info.recorded_state != robot.state:
                raise SchemaError(
                    f"source '{source.name}' recorded the state {info.recorded_state.to_json()}; '{robot.name}' has {robot.state.to_json()}"
                )
            if info.recorded_action is not None:
                targets = Targets(robot, info.recorded_action)
        codes = None
        if latents is not None and source.latents:
            try:
                codes = read_latents(dataset, latents)
            except StatsMissing as error:
                raise StatsMissing(f"{error} If source '{source.name}' is to have none, say `latents: false` in the mixture.") from error
        nothing_T = np.zeros(robot.horizon if robot else 0, bool)
        return _Feed(source, split, robot, targets, tuple(roles), codes, nothing_T)

    @cached_property
    def whole(self) -> Split:
        return Split(self.source.dataset, "all", 0.0)

    @cached_property
    def first_anchor_E(self) -> np.ndarray:
        anchors_E = self.source.dataset.anchors_E
        return np.cumsum(anchors_E) - anchors_E


def _nearest(time_s: np.ndarray, want_s: float) -> int:
    return int(np.abs(time_s - want_s).argmin())


def _history(offsets_s: Sequence[float]) -> tuple[float, ...]:
    offsets = tuple(float(offset) for offset in offsets_s)
    if not offsets or offsets[-1] != 0 or list(offsets) != sorted(set(offsets)):
        raise UserError(f"history {list(offsets_s)}: give offsets in seconds that rise to 0, such as (-0.5, 0.0)")
    return offsets


def _gap(gap_s: tuple[float, float] | None) -> tuple[float, float] | None:
    if gap_s is not None and not 0 < gap_s[0] <= gap_s[1] < float("inf"):
        raise UserError(f"future gap {gap_s}: give (low, high) in seconds with 0 < low <= high")
    return gap_s
