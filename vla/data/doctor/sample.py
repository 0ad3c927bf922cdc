"""The episodes that the doctor looks at: a sample whose size is bounded, whatever the dataset's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from vla.data.images import decode_frame
from vla.data.keyed import mix, name_key
from vla.data.reader import Dataset, StoredEpisode
from vla.data.remote import RemoteDataset
from vla.embodiment import Field, Space

Progress = Callable[[str], None]
"""Called with one line about what is being looked at."""

MAX_ROWS = 2000
"""Rows of one episode that are looked at, from its first."""
BEYOND = 1e9
"""No number of a robot is larger; what is (an outlier, told as one) is cut here, so that its square is still a number."""
THUMB = 32
"""Frames are looked at in so many pixels, square."""


@dataclass(frozen=True)
class Budget:
    """How much is looked at. `episodes` for numbers, `filmed` of them for pictures, `frames` per camera and episode;
    `rows` scanned for extremes; `compared` episodes searched for duplicates. `seed` picks the episodes. `shards`: of a dataset at a URL,
    so many are fetched, and all else is of these."""

    episodes: int = 64
    filmed: int = 10
    frames: int = 40
    rows: int = 2_000_000
    compared: int = 2_000
    seed: int = 0
    shards: int = 8

    @staticmethod
    def quick() -> Budget:
        return Budget(episodes=16, filmed=4, frames=24, rows=200_000, compared=200, shards=2)


@dataclass(frozen=True)
class Film:
    """Consecutive frames of one camera: `step` (n,), grey float32 (n, THUMB, THUMB) in 0..1, mean colour picture (8, 8, 3)."""

    step: np.ndarray
    grey: np.ndarray
    colour: np.ndarray


@dataclass
class Sampled:
    """What is looked at of one dataset; everything is read when it is first asked for, and kept."""

    dataset: Dataset
    budget: Budget
    val_fraction: float
    name: str
    progress: Progress = field(default=lambda line: None)

    @cached_property
    def shard_N(self) -> list[int]:
        """The shards looked at: any beginning of the list is spread over the dataset."""
        numbers = _spread_order(len(self.dataset.shard_names))
        return numbers[: self.budget.shards] if isinstance(self.dataset, RemoteDataset) else numbers

    @cached_property
    def at_hand_N(self) -> np.ndarray:
        """The episodes of those shards."""
        return np.flatnonzero(np.isin(self.dataset.shard_E, self.shard_N))

    @cached_property
    def episode_N(self) -> np.ndarray:
        return pick(self.at_hand_N, self.budget.episodes, self.dataset.info.name, self.budget.seed)

    @cached_property
    def traces(self) -> list[StoredEpisode]:
        """The episodes looked at, their first MAX_ROWS; a number that is none (counted elsewhere) holds its value of the row before."""
        found = []
        for index in self.episode_N:
            trace = self.dataset.episode(int(index))
            rows = {kind: _held(values) for kind in ("state", "action") if (values := getattr(trace, kind)) is not None}
            found.append(replace(trace, time_s=trace.time_s[:MAX_ROWS], anchors=trace.anchors[trace.anchors < MAX_ROWS], **rows))
        return found

    @property
    def state_space(self) -> Space | None:
        return self.dataset.info.recorded_state

    @property
    def action_space(self) -> Space | None:
        return self.dataset.info.recorded_action

    @cached_property
    def moves(self) -> bool:
        """Whether there are both states and actions to hold against each other."""
        return bool(self.state_space and self.action_space and self.state_space.size and self.action_space.size)

    def state(self, name: str) -> list[np.ndarray]:
        """One array (steps, size) per trace."""
        assert self.state_space is not None
        where = self.state_space.slices()[name]
        return [trace.state[:, where] for trace in self.traces if trace.state is not None]

    def action(self, name: str) -> list[np.ndarray]:
        """One array (steps, size) per trace."""
        assert self.action_space is not None
        where = self.action_space.slices()[name]
        return [trace.action[:, where] for trace in self.traces if trace.action is not None]

    @cached_property
    def films(self) -> list[tuple[StoredEpisode, dict[str, Film]]]:
        """The filmed episodes with a run of consecutive frames of every camera, where most of the state's motion is."""
        found = []
        if not self.budget.filmed:
            return []
        chosen = self.traces[:: max(len(self.traces) // self.budget.filmed, 1)][: self.budget.filmed]
        for trace in chosen:
            self.progress(f"{self.name}: frames of episode '{trace.id}'")
            films = {camera: self._film(trace, camera) for camera in self.dataset.cameras}
            if all(film is not None for film in films.values()):
                found.append((trace, {camera: film for camera, film in films.items() if film is not None}))
        return found

    def thumbnail(self, index: int, camera: str, number: int) -> np.ndarray:
        """Frame `number` of a camera in an episode, float32 (THUMB, THUMB, 3) in 0..1."""
        return shrunk(decode_frame(self.dataset.frame(index, camera, number)))

    def _film(self, trace: StoredEpisode, camera: str) -> Film | None:
        table = trace.cameras[camera]
        first, count = busiest(trace, table.step[table.step < trace.steps], self.budget.frames)
        if count < 3:
            return None
        grey, colour = [], []
        for number in range(first, first + count):
            picture = self.thumbnail(trace.index, camera, number)
            grey.append(picture.mean(-1))
            colour.append(picture.reshape(8, THUMB // 8, 8, THUMB // 8, 3).mean((1, 3)))
        return Film(np.asarray(table.step[first : first + count]), np.stack(grey), np.mean(colour, axis=0))


def _held(rows: np.ndarray) -> np.ndarray:
    rows = rows[:MAX_ROWS].copy() if len(rows) > MAX_ROWS else rows  # a copy lets the rest go
    if (np.abs(rows) < BEYOND).all():  # NaN is not below anything
        return rows
    fine = np.isfinite(rows)
    last = np.maximum.accumulate(np.where(fine, np.arange(len(rows))[:, None], 0), axis=0)
    return np.clip(np.nan_to_num(np.take_along_axis(rows, last, 0), posinf=0.0, neginf=0.0), -BEYOND, BEYOND)


def pick(episode_N: np.ndarray, count: int, name: str, seed: int) -> np.ndarray:
    """Up to `count` of some episodes in storage order, a keyed choice: the same for the same dataset, spread over all of them."""
    total = len(episode_N)
    if total <= count:
        return episode_N
    edge = np.linspace(0, total, count + 1).astype(np.int64)  # one of each stretch
    width = np.diff(edge)
    draw = mix(seed, np.repeat(np.uint64(name_key(name)), count), np.arange(count))
    return episode_N[edge[:-1] + (draw % width.astype(np.uint64)).astype(np.int64)]


def _spread_order(count: int) -> list[int]:
    """0, the middle, the quarters, ...: any beginning of it is spread over the whole."""
    bits = max(count - 1, 0).bit_length()
    turned = sorted(range(1 << bits), key=lambda i: int(f"{i:0{max(bits, 1)}b}"[::-1], 2))
    return [i for i in turned if i < count]


def busiest(trace: StoredEpisode, step_F: np.ndarray, count: int) -> tuple[int, int]:
    """(first, how many) frames of the run in which the state moves most."""
    if len(step_F) <= count or trace.state is None or not trace.state.shape[1]:
        return 0, min(len(step_F), count)
    with np.errstate(invalid="ignore"):
        seen = trace.state[step_F] / np.maximum(np.nanstd(trace.state, axis=0), 1e-9)
    moved = np.nan_to_num(np.abs(np.diff(seen, axis=0)).sum(-1))
    total = np.concatenate([[0.0], np.cumsum(moved)])
    return int(np.argmax(total[count - 1 :] - total[: len(total) - count + 1])), count


def shrunk(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (THUMB, THUMB, 3) in 0..1, by area."""
    from PIL import Image

    small = Image.fromarray(image).resize((THUMB, THUMB), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def named_alike(sample: Sampled) -> Iterator[tuple[Field, Field]]:
    """(action field, state field) of one name."""
    if sample.moves:
        assert sample.state_space is not None and sample.action_space is not None
        states = {field.name: field for field in sample.state_space.fields}
        for action in sample.action_space.fields:
            if action.name in states:
                yield action, states[action.name]
