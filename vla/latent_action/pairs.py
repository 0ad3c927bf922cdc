"""Which frames of a dataset make the pair of each anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vla.data.reader import Dataset, StoredEpisode
from vla.data.window import frame_at
from vla.errors import SchemaError


class Pair(NamedTuple):
    """Episode number, step of the anchor, and the numbers of the camera's frames now and later. `apart_s`: time between the two."""

    episode: int
    step: int
    now: int
    later: int
    apart_s: float = 0.0


def anchor_pairs(dataset: Dataset, camera: str, gap_s: float, episodes: Sequence[int] | None = None) -> Iterator[Pair]:
    """One pair per anchor, in storage order (of `episodes`, if given). SchemaError where frames lie too far apart for such a gap."""
    for index in range(len(dataset)) if episodes is None else episodes:
        episode = dataset.episode(index)
        spacing_s = np.median(np.diff(episode.time_s[episode.anchors])) if len(episode.anchors) > 1 else 0.0
        if spacing_s > 1.5 * gap_s:
            raise SchemaError(
                f"{dataset.info.name}: episode '{episode.id}' has a frame every {spacing_s:.3g} s; pairs are to be "
                f"{gap_s:g} s apart. Train a model with a longer gap_s for such video."
            )
        steps = episode.cameras[camera].step
        now, time_s = [frame_at(steps, int(step)) for step in episode.anchors], episode.time_s[episode.anchors]
        for number, later in enumerate(later_anchors(episode, gap_s)):
            yield Pair(index, int(episode.anchors[number]), now[number], now[later], float(time_s[later] - time_s[number]))


def later_anchors(episode: StoredEpisode, gap_s: float) -> np.ndarray:
    """For each anchor of an episode, the number of the anchor nearest to `gap_s` later: a later one, or the episode's last."""
    time_s = episode.time_s[episode.anchors]
    after = np.searchsorted(time_s, time_s + gap_s).clip(max=len(time_s) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(time_s + gap_s - time_s[before] < time_s[after] - time_s - gap_s, before, after)
    return np.maximum(nearest, np.arange(1, len(time_s) + 1).clip(max=len(time_s) - 1))


def in_batches(pairs: Iterator[Pair], size: int) -> Iterator[list[Pair]]:
    """Lists of `size` pairs; the last may be shorter."""
    held: list[Pair] = []
    for pair in pairs:
        held.append(pair)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
