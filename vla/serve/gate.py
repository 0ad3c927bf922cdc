"""The last thing before an answer leaves: what is not finite, out of limits, of another robot or too fast a change is never sent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla.embodiment import Embodiment
from vla.normalize import dimension_names
from vla.serve.wire import Refusal
from vla.types import Chunk

ROUNDING = 1e-9
"""Share of a change that arithmetic may overshoot. Limits have none: `Embodiment.limit` clips exactly."""


@dataclass(frozen=True)
class Gate:
    """`max_change_per_s`, `max_jerk_per_s2`: per number of a command, the fastest that it may change and that its change may change
    from row to row (for a position: speed and acceleration); None: not looked at, since an embodiment does not say it."""

    robot: Embodiment
    max_change_per_s: tuple[float, ...] | None = None
    max_jerk_per_s2: tuple[float, ...] | None = None

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return self.robot.bounds()

    def __post_init__(self) -> None:
        from vla.errors import UserError

        for name, given in (("max-change", self.max_change_per_s), ("max-jerk", self.max_jerk_per_s2)):
            if given is not None and (len(given) != self.robot.command.size or not all(value > 0 for value in given)):
                raise UserError(f"--{name} must be {self.robot.command.size} positive numbers, one per number of a command (inf: no limit)")
        _ = self._bounds  # a robot without limits is sent nothing: found out at the start

    def check(self, chunk: Chunk) -> np.ndarray:
        """The chunk's actions, float64 (T, A), or Refusal (unsafe) naming the first number that may not pass."""
        action_TA, robot = chunk.action_TA, self.robot
        if (chunk.embodiment, chunk.rate_hz) != (robot.name, robot.rate_hz):
            raise Refusal("unsafe", "the policy acted for another robot or rate")
        if action_TA.dtype != np.float64 or action_TA.ndim != 2 or action_TA.shape[1] != robot.command.size:
            raise Refusal("unsafe", f"the policy gave {action_TA.dtype} {action_TA.shape}; a chunk is (T, {robot.command.size}) float64")
        if not 1 <= len(action_TA) <= robot.horizon:
            raise Refusal("unsafe", f"the policy gave {len(action_TA)} actions; a chunk is 1 to {robot.horizon}")
        self._refuse(~np.isfinite(action_TA), "is not finite")
        low_A, high_A = self._bounds
        self._refuse((action_TA < low_A) | (action_TA > high_A), "is out of limits")
        rate_hz = float(robot.rate_hz)
        if self.max_change_per_s is not None:
            change = np.abs(np.diff(action_TA, axis=0)) * rate_hz
            self._refuse(change > np.array(self.max_change_per_s) * (1 + ROUNDING), "jumps faster than allowed")
        if self.max_jerk_per_s2 is not None:
            jerk = np.abs(np.diff(action_TA, n=2, axis=0)) * rate_hz**2
            self._refuse(jerk > np.array(self.max_jerk_per_s2) * (1 + ROUNDING), "jerks harder than allowed")
        return action_TA

    def _refuse(self, bad_TA: np.ndarray, why: str) -> None:
        if bad_TA.any():
            row, column = (int(number) for number in np.argwhere(bad_TA)[0])
            raise Refusal("unsafe", f"the policy's action {row}, {dimension_names(self.robot.command)[column]}, {why}; nothing was sent")
