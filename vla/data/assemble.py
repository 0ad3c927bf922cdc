"""Places -> samples, many at once: what is the same work for each sample of a batch is done for all of them together.

The stages are those of one sample: find its episode and steps, gather its numbers, read its pictures, decode them. All of a batch go through
one stage before the next begins, which costs a third of going sample by sample: rows are gathered into one array, pictures into one block, and
each stage runs with its own code in the processor's caches. What is wrong with one sample stops that one alone (`Draft.error`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import simplejpeg

from vla.data.feed import Feed
from vla.data.images import FrameCache, decode_frame
from vla.data.keyed import mix, uniform
from vla.data.memory import Canvas
from vla.data.quarantine import BadSample
from vla.data.reader import StoredEpisode
from vla.data.window import frame_at, history_steps
from vla.errors import Damaged, SchemaError
from vla.types import Observation, Sample

BAD = (BadSample, Damaged, SchemaError)
"""What one sample may fail with while the others go on; SchemaError is what `check_episode` would have refused, from another writer."""

Known = Callable[[str, str, int, str], bool]
"""(source, episode, step, instruction): whether what that sample's pictures show is known, so that they need not be read."""

MAX_STRETCH = 2.0
"""Frames further apart than this many times the gap of a pair are no pair: the video has a hole there, or too few frames a second."""


class Draft:
    """A sample in the making. `error`: why there is none; else `sample` once it is built."""

    __slots__ = (
        "action_TA",
        "ahead",
        "anchor",
        "episode",
        "error",
        "feed",
        "future",
        "images",
        "index",
        "position",
        "sample",
        "seen",
        "state_FP",
        "step",
        "text",
        "valid_T",
    )

    def __init__(self, position: int, feed: Feed, index: int, anchor: int) -> None:
        self.position, self.feed, self.index, self.anchor = position, feed, index, anchor
        self.error: BadSample | Damaged | SchemaError | None = None
        self.ahead: int | None = None  # the anchor ahead, of a pair
        self.images: dict[str, np.ndarray] = {}
        self.future: dict[str, np.ndarray] | None = None
        self.action_TA: np.ndarray | None = None
        self.episode: StoredEpisode
        self.step: int
        self.seen: list[int]  # its steps with a history: the last is `step`
        self.state_FP: np.ndarray
        self.text: str
        self.valid_T: np.ndarray
        self.sample: Sample


_View = tuple[Draft, str, dict[str, np.ndarray], Sequence[Any], list[Any]]
"""What one camera shows a draft at some steps: (draft, role, where the images go, keys in the cache, frames: encoded or of the cache)."""


class Assembler:
    """`at`, int64 (1,): the position that is being made, for whoever watches a loader process. `known`: asked of each sample."""

    def __init__(
        self,
        seed: int,
        history_s: tuple[float, ...],
        future_gap_s: tuple[float, float] | None,
        cache: FrameCache,
        known: Known | None = None,
        goal_gap_s: tuple[float, float] | None = None,
    ) -> None:
        self.seed, self.history_s, self.future_gap_s, self.cache, self.known = seed, history_s, future_gap_s, cache, known
        self.goal_gap_s = goal_gap_s
        self.at = np.zeros(1, np.int64)

    def build(self, drafts: Sequence[Draft], canvas: Canvas | None = None, gap_s: float | None = None) -> None:
        """Makes the sample of each draft, or says why not. Images lie in `canvas` one after the other, as far as it has room.

        `gap_s`: pairs so far apart, instead of the pipeline's drawn gaps.
        """
        of_feed: dict[int, list[Draft]] = {}
        for draft in drafts:
            self._locate(draft, gap_s)
            if draft.error is None:
                of_feed.setdefault(id(draft.feed), []).append(draft)
        for some in of_feed.values():
            self._numbers(some[0].feed, some)
        views: list[_View] = []
        for draft in drafts:
            self._read(draft, views)
        for draft in drafts:  # behind all others, so that what a model sees now lies together
            if draft.ahead is not None:
                self._read_ahead(draft, views)
        self._show(views, self._places(views, canvas))
        for draft in drafts:
            if draft.error is None:
                draft.sample = self._sample(draft)

    def _show(self, views: Sequence[_View], places: Sequence[np.ndarray | None]) -> None:
        """Decodes what was read. Each picture drops all else from the processor's caches, so that every step between two costs
        several times what it would alone: the usual one, a JPEG into its place, is decoded here, and all others by `_shown`."""
        at, decode = memoryview(self.at), simplejpeg.decode_jpeg
        alone = len(self.history_s) == 1 and not self.cache.limit_bytes
        for view, out in zip(views, places, strict=True):
            draft, role, into, _, frames = view
            if draft.error is None:
                at[0] = draft.position
                try:
                    if alone and out is not None and type(jpeg := frames[0]) is bytes:
                        try:
                            if decode(jpeg, "RGB", buffer=out[0]).shape == out.shape[1:]:
                                into[role] = out
                                continue
                        except ValueError:
                            pass
                    into[role] = self._shown(view, out)
                except BAD as error:
                    draft.error = error

    def _locate(self, draft: Draft, gap_s: float | None) -> None:
        self.at[0] = draft.position
        try:
            episode = draft.episode = draft.feed.source.dataset.episode(draft.index)
            if gap_s is not None:
                draft.ahead = _nearest(episode.time_s[episode.anchors], episode.time_s[episode.anchors[draft.anchor]] + gap_s)
            elif self.future_gap_s is not None:
                draft.anchor, draft.ahead = self._pair(draft.position, episode, draft.anchor)
            elif self.goal_gap_s is not None:
                draft.ahead = self._goal(draft.position, episode, draft.anchor)
            draft.step = step = episode.anchors.item(draft.anchor)
            draft.seen = [step] if len(self.history_s) == 1 else history_steps(episode, step, self.history_s)
            texts = episode.instructions(step)
            drawn = int(mix(self.seed, draft.position, 0x7E87)[0] % len(texts)) if len(texts) > 1 else 0
            draft.text = texts[drawn] if texts else ""
        except BAD as error:
            draft.error = error

    def _numbers(self, feed: Feed, drafts: list[Draft]) -> None:
        """States and action chunks of drafts of one source."""
        states = self._states(drafts)
        for draft, state_FP in zip(drafts, states, strict=True):
            draft.state_FP, draft.valid_T = state_FP, feed.nothing_valid_T
        if not np.isfinite(states).all():
            for draft in drafts:
                if not np.isfinite(draft.state_FP).all():
                    draft.error = BadSample("nonfinite", f"state at step {draft.step} holds NaN or infinity")
            drafts = [draft for draft in drafts if draft.error is None]
        if feed.targets is not None and drafts:
            chunks = feed.targets.chunks([draft.episode for draft in drafts], [draft.step for draft in drafts])
            for draft, chunk in zip(drafts, chunks, strict=True):
                if isinstance(chunk, tuple):
                    draft.action_TA, draft.valid_T = chunk
                else:
                    draft.error = chunk

    def _states(self, drafts: list[Draft]) -> np.ndarray:
        """float64 (B, F, P)."""
        F, parts = len(self.history_s), []
        for draft in drafts:
            state, step = draft.episode.state, draft.step
            if state is None:  # then no episode of the source has any
                return np.zeros((len(drafts), F, 0))
            parts.append(state[step : step + 1] if F == 1 else state[draft.seen])
        return np.concatenate(parts).reshape(len(drafts), F, -1)

    def _read(self, draft: Draft, views: list[_View]) -> None:
        """Reads what the cameras show at the draft's step and its history."""
        if draft.error is None and not self._knows(draft):
            self._read_steps(draft, draft.seen, draft.images, views)

    def _knows(self, draft: Draft) -> bool:
        return self.known is not None and self.known(draft.feed.source.name, draft.episode.id, draft.step, draft.text)

    def _read_ahead(self, draft: Draft, views: list[_View]) -> None:
        if draft.error is None:
            draft.future = {}
            self._read_steps(draft, [draft.episode.anchors.item(draft.ahead)], draft.future, views)

    def _read_steps(self, draft: Draft, steps: Sequence[int], into: dict[str, np.ndarray], views: list[_View]) -> None:
        self.at[0] = draft.position
        feed, index, episode = draft.feed, draft.index, draft.episode
        frame_of, name, cameras = feed.source.dataset.frame_of, feed.source.name, episode.cameras
        cached = self.cache.get if self.cache.limit_bytes else None
        try:
            for role in feed.roles:
                if cached is None and len(steps) == 1:  # as below, without lists of one
                    number = frame_at(cameras[role].step, steps[0])
                    views.append((draft, role, into, (number,), [frame_of(episode, role, number)]))
                    continue
                numbers = [frame_at(cameras[role].step, step) for step in steps]
                if cached is None:
                    views.append((draft, role, into, numbers, [frame_of(episode, role, number) for number in numbers]))
                    continue
                keys = [(name, index, role, number) for number in numbers]
                images = map(cached, keys)
                frames = [frame_of(episode, role, n) if image is None else image for n, image in zip(numbers, images, strict=True)]
                views.append((draft, role, into, keys, frames))
        except BAD as error:
            draft.error = error

    def _places(self, views: Sequence[_View], canvas: Canvas | None) -> Sequence[np.ndarray | None]:
        """Where each is to be decoded to; None where there is no room, or its size is not known before it is."""
        if canvas is None:
            return [None] * len(views)
        places: list[np.ndarray | None] = []
        for shape, run in groupby([view[0].feed.frame_shape.get(view[1]) or self._learned(view) for view in views]):
            count = sum(1 for _ in run)
            places += canvas.take_many(count, (len(self.history_s), *shape)) if shape else [None] * count
        return places

    def _learned(self, view: _View) -> tuple[int, ...] | None:
        """The size of a camera's frames, where none was seen before; None where the first does not decode."""
        draft, role, _, keys, frames = view
        if draft.error is None:
            try:
                frames[0] = self._image(keys[0], frames[0])
            except BAD as error:
                draft.error = error
            else:
                draft.feed.frame_shape[role] = frames[0].shape
        return draft.feed.frame_shape.get(role)

    def _shown(self, view: _View, out: np.ndarray | None) -> np.ndarray:
        """uint8 (F, H, W, 3), not to be written to; `out` if it has the frames' size."""
        draft, role, _, keys, frames = view
        if out is not None and all(map(self._decode, keys, frames, out)):
            return out
        images = [self._image(key, frame) for key, frame in zip(keys, frames, strict=True)]
        if any(image.shape != images[0].shape for image in images):
            raise BadSample("schema", f"camera '{role}' shows images of different sizes: {sorted({image.shape for image in images})}")
        draft.feed.frame_shape[role] = images[0].shape
        shown = images[0][None] if len(images) == 1 else np.stack(images)
        shown.flags.writeable = False
        return shown

    def _decode(self, key: Any, frame: Any, out: np.ndarray) -> bool:
        """Decodes a frame into `out`. False if it has another size."""
        if isinstance(frame, np.ndarray):
            if frame.shape == out.shape:
                out[...] = frame
            return frame.shape == out.shape
        done = decode_frame(frame, out) is out
        if done and self.cache.limit_bytes and self.cache.has_room(out.nbytes):
            self.cache.offer(key, out.copy())
        return done

    def _image(self, key: Any, frame: Any) -> np.ndarray:
        """One frame, uint8 (H, W, 3)."""
        if isinstance(frame, np.ndarray):
            return frame
        image = decode_frame(frame)
        if self.cache.limit_bytes:
            self.cache.offer(key, image)
        return image

    def _sample(self, draft: Draft) -> Sample:
        feed, episode, step = draft.feed, draft.episode, draft.step
        future, gap_s = None, 0.0
        if draft.ahead is not None and draft.future is not None:
            future = {role: image_FHW3[0] for role, image_FHW3 in draft.future.items()}
            gap_s = float(episode.time_s[episode.anchors[draft.ahead]] - episode.time_s[step])
        observation = _made(
            Observation,
            images=draft.images,
            state=draft.state_FP,
            instruction=draft.text,
            embodiment=feed.robot.name if feed.robot else "",
            offsets_s=self.history_s,
            geometry={},
        )
        latent_N = None
        if feed.latents is not None:
            latent_N = feed.latents[feed.first_anchor_E[draft.index] + draft.anchor].astype(np.int64)
            latent_N = latent_N if (latent_N >= 0).all() else None
        return _made(
            Sample,
            position=draft.position,
            source=feed.source.name,
            episode=episode.id,
            step=step,
            observation=observation,
            action_TA=draft.action_TA,
            valid_T=draft.valid_T,
            latent_N=latent_N,
            future=future,
            gap_s=gap_s,
            reasoning=episode.reasoning(step),
        )

    def _pair(self, position: int, episode: StoredEpisode, anchor: int) -> tuple[int, int]:
        """(now, later) anchors about a drawn gap apart. An anchor too near the end is exchanged for an earlier one, drawn evenly,
        so that no pair is shorter than asked for; only an episode shorter than the gap gives its first and last."""
        assert self.future_gap_s is not None
        if not episode.finite_time:
            raise BadSample("nonfinite", "a time of the episode is NaN or infinity")
        if len(episode.anchors) < 2:
            raise BadSample("short", f"episode '{episode.id}' has a single frame; a pair needs two")
        gap_s = self._drawn_s(position, self.future_gap_s)
        room = _room(episode, gap_s)
        if room == 0:
            return 0, len(episode.anchors) - 1
        if anchor >= room:
            anchor = int(mix(self.seed, position, 0x9A12)[0] % np.uint64(room))
        ahead, apart_s = _ahead(episode, anchor, gap_s)
        if apart_s > MAX_STRETCH * gap_s:
            after = f"after step {episode.anchors[anchor]}"
            raise BadSample("time", f"episode '{episode.id}' has no frame for {apart_s:.3g} s {after}; the pair is {gap_s:.3g} s")
        return anchor, ahead

    def _goal(self, position: int, episode: StoredEpisode, anchor: int) -> int | None:
        """The anchor about a drawn gap ahead; None where there is none. The sample stays where it is: an end that no goal lies behind is
        learned by words, and what lacks a goal alone is no bad sample. A whole episode shorter than the gap is the way to its end."""
        assert self.goal_gap_s is not None
        if not episode.finite_time or len(episode.anchors) < 2:
            return None
        gap_s = self._drawn_s(position, self.goal_gap_s)
        room = _room(episode, gap_s)
        if anchor >= room:
            return len(episode.anchors) - 1 if room == anchor == 0 else None
        ahead, apart_s = _ahead(episode, anchor, gap_s)
        return ahead if apart_s <= MAX_STRETCH * gap_s else None

    def _drawn_s(self, position: int, gap_s: tuple[float, float]) -> float:
        low, high = gap_s
        return low + (high - low) * float(uniform(self.seed, position, 0x6A9)[0])


def _room(episode: StoredEpisode, gap_s: float) -> int:
    """How many anchors, from the first on, have the gap before them; half a tick more or less is none."""
    time_s = episode.time_s[episode.anchors]
    room = int(np.searchsorted(time_s, time_s[-1] - gap_s + 0.5 / float(episode.rate_hz), side="right"))
    return min(room, len(time_s) - 1)  # nothing lies ahead of the last, however short the gap


def _ahead(episode: StoredEpisode, anchor: int, gap_s: float) -> tuple[int, float]:
    """The anchor nearest a gap ahead, never the same, and how far ahead it is."""
    time_s = episode.time_s[episode.anchors]
    ahead = max(_nearest(time_s, time_s[anchor] + gap_s), anchor + 1)
    return ahead, float(time_s[ahead] - time_s[anchor])


def _nearest(time_s: np.ndarray, want_s: float) -> int:
    return int(np.abs(time_s - want_s).argmin())


T = TypeVar("T")


def _made(kind: type[T], **fields: Any) -> T:
    """A frozen dataclass from all of its fields, in a quarter of the time: its own `__init__` sets each by a call."""
    made = object.__new__(kind)
    object.__setattr__(made, "__dict__", fields)
    return made
