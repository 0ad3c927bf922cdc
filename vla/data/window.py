"""What a sample sees and what it must do: windows in seconds around one step of an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from vla.data.quarantine import BadSample
from vla.data.reader import StoredEpisode
from vla.embodiment import ROTATION_UNITS, Embodiment, Space, resample
from vla.errors import SchemaError


def history_steps(episode: StoredEpisode, step: int, offsets_s: Sequence[float]) -> list[int]:
    """The steps seen at `step` and the given offsets before it (seconds, <= 0): the latest at or before each time, within half
    a tick. Before the first step, the first."""
    if len(offsets_s) > 1 and not episode.finite_time:
        raise BadSample("nonfinite", "a time of the episode is NaN or infinity")
    half_tick_s = (0.5 + 1e-6) / float(episode.rate_hz)  # a hair more, so that rounding decides no tie
    now_s = episode.time_s[step]
    steps = []
    for offset_s in offsets_s:
        if offset_s == 0:
            steps.append(step)
        else:
            at = int(np.searchsorted(episode.time_s, now_s + offset_s + half_tick_s, side="right")) - 1
            steps.append(min(max(at, 0), step))
    return steps


def frame_at(step_N: np.ndarray, step: int) -> int:
    """Which frame of a camera is seen at a step: the latest one at or before it (before the first, the first)."""
    if step < len(step_N) and step_N.item(step) == step:  # a frame at every step so far: no search
        return step
    return max(int(np.searchsorted(step_N, step, side="right")) - 1, 0)


@dataclass(frozen=True)
class Targets:
    """Action chunks of one source in a robot's learned frames and rate. `recorded`: the space its rows were recorded in."""

    robot: Embodiment
    recorded: Space

    def __post_init__(self) -> None:
        have = [(f.name, f.size, f.unit) for f in self.recorded.fields]
        want = [(f.name, f.size, f.unit) for f in self.robot.command.fields]
        if have != want:
            raise SchemaError(f"recorded actions {have} are not those of '{self.robot.name}': {want}")

    @cached_property
    def plain(self) -> bool:
        """Whether a row means the same in every chunk: then encoding leaves it as recorded."""
        return [f.frame for f in self.recorded.fields] == [f.frame for f in self.robot.action.fields]

    def chunk(self, episode: StoredEpisode, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The chunk that starts at `step`: float64 (T, A), and bool (T,), False past the end (the last row repeats there).

        BadSample for NaN or infinity, SchemaError for what the robot's fields cannot be (a quaternion that is none).
        """
        assert episode.action is not None
        T, from_hz, to_hz = self.robot.horizon, episode.rate_hz, self.robot.rate_hz
        if self._same_rate(from_hz):
            rows, count = episode.action[step : step + T], min(T, episode.steps - step)
        else:
            recorded = episode.action[step : step + _rows_needed(T, from_hz, to_hz)]
            count = min(T, len(recorded) * to_hz // from_hz)
            rows = resample(recorded, self.recorded, from_hz, to_hz, max(count, 1))
        if not episode.finite_action and not np.isfinite(rows).all():
            raise BadSample("nonfinite", f"the chunk at step {step} holds NaN or infinity")
        if self._shift is not None and episode.state is not None and episode.finite_action and episode.finite_state:
            rows = rows - episode.state[step].take(self._shift[0]) * self._shift[1]
        elif not self.plain:
            state_P = np.zeros(0) if episode.state is None else episode.state[step]  # of a robot whose state nobody recorded
            rows = self.robot.encode(rows, state_P, self.recorded)
        if len(rows) < T:
            rows = np.concatenate([rows, np.repeat(rows[-1:], T - len(rows), axis=0)])
        return rows, self._valid[min(count, T)]

    def chunks(self, episodes: Sequence[StoredEpisode], steps: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray] | BadSample | SchemaError]:
        """`chunk` of many, to the bit, for a tenth of its time each; for those that it refuses, its error."""
        if not all(map(self._by_rows, episodes)):
            return list(map(self._chunk_or_error, episodes, steps))
        T, parts, valid = self.robot.horizon, [], []
        for episode, step in zip(episodes, steps, strict=True):
            rows = episode.action[step : step + T]  # type: ignore[index]  # it has actions, or there were no targets
            parts.append(rows)
            if len(rows) < T:
                parts.append(np.repeat(rows[-1:], T - len(rows), axis=0))
            valid.append(self._valid_rows[len(rows)])
        action_BTA = np.concatenate(parts).reshape(len(episodes), T, -1)
        if not self.plain:
            state_BP = np.concatenate([e.state[s : s + 1] for e, s in zip(episodes, steps, strict=True)])  # type: ignore[index]
            action_BTA -= (state_BP.take(self._shift[0], axis=1) * self._shift[1])[:, None]  # type: ignore[index]
        if not np.isfinite(action_BTA).all():  # which one, and why
            return list(map(self._chunk_or_error, episodes, steps))
        return list(zip(action_BTA, valid, strict=True))

    def _chunk_or_error(self, episode: StoredEpisode, step: int) -> tuple[np.ndarray, np.ndarray] | BadSample | SchemaError:
        try:
            return self.chunk(episode, step)
        except (BadSample, SchemaError) as error:
            return error

    def _by_rows(self, episode: StoredEpisode) -> bool:
        """Whether its chunks are its rows, or its rows less its state."""
        return self._same_rate(episode.rate_hz) and (self.plain or (self._shift is not None and episode.state is not None))

    def _same_rate(self, rate_hz: Fraction) -> bool:
        if rate_hz is self._own_rate[0]:  # which costs a tenth of comparing them; a reader hands out one object for equal rates
            return True
        if rate_hz == self.robot.rate_hz:
            self._own_rate[0] = rate_hz
            return True
        return False

    @cached_property
    def _own_rate(self) -> list[Fraction]:
        """The object that stands for the robot's rate in the episode seen last."""
        return [self.robot.rate_hz]

    def _same(self, name: str) -> bool:
        a, b = self.robot.state.field(name), self.robot.action.field(name)
        return (a.size, a.unit) == (b.size, b.unit)

    @cached_property
    def _shift(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(column of the state, 1 or 0) for each action column, where encoding is to take the state from some of them: what `encode`
        does, bit for bit, for a tenth of its time. None where there is more to it."""
        state, action = self.robot.state, self.robot.action
        if self.plain or any(f.unit in ROTATION_UNITS for f in (*self.recorded.fields, *state.fields)):
            return None
        column, factor = np.zeros(action.size, np.int64), np.zeros(action.size)
        for name, where in action.slices().items():
            old, new = self.recorded.field(name).frame, action.field(name).frame
            if (old, new) == ("absolute", "from_state") and name in state.slices() and self._same(name):
                column[where], factor[where] = np.arange(*state.slices()[name].indices(state.size)), 1.0
            elif old != new:
                return None
        return column, factor

    @cached_property
    def _valid_rows(self) -> list[np.ndarray]:
        return list(self._valid)

    @cached_property
    def _valid(self) -> np.ndarray:
        """bool (T + 1, T): row n has the first n True. Read-only, since rows are handed out many times."""
        table = np.arange(self.robot.horizon) < np.arange(self.robot.horizon + 1)[:, None]
        table.flags.writeable = False
        return table


def _rows_needed(steps: int, from_hz: Fraction, to_hz: Fraction) -> int:
    """Recorded rows that `steps` rows at another rate reach into, and one more to interpolate towards."""
    return -(-steps * from_hz // to_hz) + 1
