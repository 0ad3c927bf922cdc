"""Between a server's answer and a motor: the robot's own limits, and no faith in the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDING = 1e-6
"""Share of a range by which a value may overshoot (float32 on the wire); it is clipped. Anything beyond is refused."""


class Unsafe(ValueError):
    """A chunk or command that must not reach a motor; the message says which number and why."""


class Stale(RuntimeError):
    """There is no fresh command. Hold or stop; whatever was sent last must not be repeated as motion."""


@dataclass(frozen=True)
class Limits:
    """The robot's limits, one entry per number of a command, in the command's units.

    `max_change_per_s`: the fastest a command may change (for a position: speed; for a delta: change of the delta per second).
    `math.inf` there means no limit, and has to be written.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    max_change_per_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.max_change_per_s) > 0:
            raise ValueError("low, high and max_change_per_s must have the same, positive length")
        if not np.isfinite([self.low, self.high]).all() or not np.less(self.low, self.high).all():
            raise ValueError("low and high must be finite, with low < high")
        if not np.greater(self.max_change_per_s, 0).all():
            raise ValueError("max_change_per_s must be positive")


class Guard:
    """Admits chunks of actions and plays them by the clock.

    `rate_hz`: rate of the commands. `max_age_s`: the oldest observation on which the robot may still move. `max_chunk`: the
    most rows a chunk may have. One thread may `admit` while another calls `command`. Times are of one monotonic clock.
    """

    def __init__(self, limits: Limits, rate_hz: float, max_age_s: float, max_chunk: int) -> None:
        if not (rate_hz > 0 and max_age_s > 0 and max_chunk > 0):
            raise ValueError("rate_hz, max_age_s and max_chunk must be positive")
        self._low_A, self._high_A = np.array(limits.low), np.array(limits.high)
        self._change_A = np.array(limits.max_change_per_s) / rate_hz
        self._slack_A = ROUNDING * (self._high_A - self._low_A)
        self._rate_hz, self._max_age_s, self._max_chunk = rate_hz, max_age_s, max_chunk
        self._last_A: np.ndarray | None = None
        self._last_s: float | None = None
        self._chunk: tuple[np.ndarray, float] | None = None  # (actions, observed_s), replaced as one
        self._newest_s = -np.inf

    @property
    def width(self) -> int:
        """Numbers of a command."""
        return len(self._low_A)

    def start(self, command: Any) -> None:
        """Call before the first chunk and after every pause, with the command (A,) that describes where the robot is now."""
        command_A = np.asarray(command, dtype=np.float64)
        if command_A.shape != self._low_A.shape or not np.isfinite(command_A).all():
            raise Unsafe(f"the starting command must be {len(self._low_A)} finite numbers")
        self._chunk, self._last_A, self._last_s = None, command_A, None

    def stop(self) -> None:
        """Forgets the chunk; `command` raises Stale until another is admitted. Call it when the server is lost."""
        self._chunk = None

    def admit(self, actions: Any, observed_s: float, now_s: float) -> None:
        """Takes a chunk (T, A), row i meant for observed_s + i / rate_hz, or raises Unsafe and keeps the one before."""
        action_TA = self._checked(actions)
        if observed_s <= self._newest_s:
            raise Unsafe(f"the observation of {observed_s:.3f} s is not newer than the last one's, {self._newest_s:.3f} s")
        if not 0 <= now_s - observed_s <= self._max_age_s:
            raise Unsafe(f"the observation is {now_s - observed_s:.3f} s old; allowed are 0 to {self._max_age_s} s")
        first = self._row(observed_s, now_s)
        if first >= len(action_TA):
            raise Unsafe(f"all {len(action_TA)} actions were for the time before now")
        if self._last_A is None:
            raise Unsafe("call start(command) before the first chunk")
        path = np.concatenate([self._last_A[None], action_TA[first:]])
        self._check_change(np.abs(np.diff(path, axis=0)), periods=1.0)
        if self._last_s is None:
            self._last_s = now_s
        self._newest_s = observed_s
        self._chunk = (action_TA, observed_s)

    def command(self, now_s: float) -> np.ndarray:
        """The command (A,) for this moment. Raises Stale if there is none, Unsafe if reaching it would be too fast a change."""
        if self._chunk is None:
            raise Stale("no chunk")
        action_TA, observed_s = self._chunk
        row = self._row(observed_s, now_s)
        if not 0 <= now_s - observed_s <= self._max_age_s or row >= len(action_TA):
            self._chunk = None
            raise Stale(f"the chunk of {observed_s:.3f} s is over at {now_s:.3f} s")
        command_A = action_TA[row]
        assert self._last_A is not None and self._last_s is not None
        # A control loop may miss a tick, and then a step is twice as far; after a longer gap no step is.
        periods = min(max((now_s - self._last_s) * self._rate_hz, 1.0), 2.0)
        self._check_change(np.abs(command_A - self._last_A)[None], periods)
        self._last_A, self._last_s = command_A, now_s
        return command_A.copy()

    def _row(self, observed_s: float, now_s: float) -> int:
        # A clock read a hair early must not repeat the row before.
        return int(np.floor((now_s - observed_s) * self._rate_hz + 1e-6))

    def _checked(self, actions: Any) -> np.ndarray:
        given = np.asarray(actions)
        longest, width = self._max_chunk, len(self._low_A)
        if given.dtype.kind not in "iuf" or given.ndim != 2 or not 1 <= len(given) <= longest or given.shape[1] != width:
            raise Unsafe(f"actions of shape {given.shape}, type {given.dtype}; allowed are (1 to {longest}, {width}) numbers")
        action_TA = given.astype(np.float64)
        if not np.isfinite(action_TA).all():
            raise Unsafe(f"action {_where(~np.isfinite(action_TA))} is not finite")
        outside = (action_TA < self._low_A - self._slack_A) | (action_TA > self._high_A + self._slack_A)
        if outside.any():
            row, column = _where(outside)
            allowed = f"{self._low_A[column]:g} to {self._high_A[column]:g}"
            raise Unsafe(f"action {(row, column)} is {action_TA[row, column]:g}; allowed is {allowed}")
        return np.clip(action_TA, self._low_A, self._high_A)

    def _check_change(self, change_TA: np.ndarray, periods: float) -> None:
        fast = change_TA > self._change_A * periods + self._slack_A
        if fast.any():
            row, column = _where(fast)
            speed = change_TA[row, column] * self._rate_hz / periods
            allowed = self._change_A[column] * self._rate_hz
            raise Unsafe(f"number {column} would change by {speed:g} per second, {row} rows from now; allowed is {allowed:g}")


def _where(mask_TA: np.ndarray) -> tuple[int, int]:
    """Row and column of the first True."""
    row, column = np.argwhere(mask_TA)[0]
    return int(row), int(column)
