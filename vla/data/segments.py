"""A long episode as runs of steps that fit a shard, each an episode of its own; the reader joins them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vla.data import format as fmt
from vla.types import Episode, Frames, Span, VideoFrames


@dataclass(frozen=True)
class Segment:
    """A run of steps of one episode, as an episode of its own; spans and frame steps count from `first_step`."""

    episode: Episode
    parent: str
    index: int
    count: int
    first_step: int


def segments(episode: Episode, max_bytes: int) -> Iterator[Segment]:
    """The episode whole if it fits the cap, else in runs of steps that do; a single step is never divided."""
    row = sum(8 * values.shape[-1] for values in (episode.state, episode.action) if values is not None)
    bytes_of_step = np.full(episode.steps, 8 + row, np.int64)
    may_cut = np.ones(episode.steps, bool)
    for frames in episode.frames.values():
        member = fmt.pack_camera(frames)
        np.add.at(bytes_of_step, frames.step, member.size + 16)
        if member.key is not None:
            may_cut &= _at_key_frames(np.asarray(frames.step), member.key, episode.steps)
    room = max(max_bytes - 1024 * (4 + len(episode.frames)), 1)
    cuts, used, latest = [0], 0, (0, 0)  # latest: the last step since the cut at which one may be, and the bytes up to it
    for step, size in enumerate(bytes_of_step):
        latest = (step, used) if may_cut[step] and used else latest
        if used and used + size > room and latest[0] > cuts[-1]:
            cuts.append(latest[0])
            used -= latest[1]
        used += int(size)
    if len(cuts) == 1:
        yield Segment(episode, episode.id, 0, 1, 0)
        return
    videos = {camera: _pieces(frames, cuts) for camera, frames in episode.frames.items() if isinstance(frames, VideoFrames)}
    for index, (start, stop) in enumerate(zip(cuts, [*cuts[1:], episode.steps], strict=True)):
        part = _slice(episode, start, stop, f"{episode.id}-{index}", {camera: pieces[index] for camera, pieces in videos.items()})
        yield Segment(part, episode.id, index, len(cuts), start)


def _at_key_frames(step_N: np.ndarray, key_N: np.ndarray, steps: int) -> np.ndarray:
    """bool (steps,): where a video's next frame is a key frame, or there is none: a group of pictures is never divided."""
    following = np.searchsorted(step_N, np.arange(steps))
    return np.append(key_N == np.arange(len(key_N)), True)[following]


def _pieces(frames: VideoFrames, cuts: list[int]) -> list[bytes]:
    from vla.data.gop import cut_mp4

    return cut_mp4(frames.mp4, np.searchsorted(frames.step, cuts).tolist())


def _slice(episode: Episode, start: int, stop: int, new_id: str, videos: Mapping[str, bytes]) -> Episode:
    texts = {
        kind: tuple(
            Span(span.text, max(span.start, start) - start, min(span.stop, stop) - start)
            for span in spans
            if span.start < stop and span.stop > start
        )
        for kind, spans in (("instructions", episode.instructions), ("reasoning", episode.reasoning))
    }
    frames: dict[str, Frames | VideoFrames] = {}
    for camera, every in episode.frames.items():
        first, last = np.searchsorted(every.step, (start, stop))
        step = np.asarray(every.step)[first:last] - start
        frames[camera] = Frames(step, every.jpeg[first:last]) if isinstance(every, Frames) else VideoFrames(step, videos[camera])
    rows = {kind: values[start:stop] for kind in ("state", "action") if (values := getattr(episode, kind)) is not None}
    return replace(episode, id=new_id, **texts, time_s=episode.time_s[start:stop], frames=frames, **rows)
