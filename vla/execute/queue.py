"""The queue of commands between a policy, which speaks in chunks, and a motor, which takes one command a step."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import SchemaError, UserError
from vla.execute.ensemble import Ensemble, Newest
from vla.types import Chunk

EXECUTED_SHARE = Fraction(5, 6)
"""Share of a chunk that is executed where nobody says how much: its last steps are the least sure ones, and one whose successor is late
has something to go on with."""


def usually_executed(horizon: int) -> int:
    """Commands of a chunk of so many, at least one."""
    return max(1, int(horizon * EXECUTED_SHARE))


class NoCommand(RuntimeError):
    """No chunk covers this step. The caller decides what the robot does (hold, stop); the queue never invents a motion."""


class ChunkQueue:
    """Executes `execute` commands of each chunk, then wants a new one.

        while not done:
            if queue.wants_chunk:
                queue.put(policy.act(observation()))
            step(queue.pop())

    Every command that leaves is finite and within the robot's limits, whatever the chunks held. A chunk may also come late: `put`
    says for which step its first row was meant, and rows whose time has gone are never executed. The newest chunk is the one for the
    latest step, and so of the newest observation, whenever it came; of two for one step, the one that came last.
    """

    def __init__(self, robot: Embodiment, execute: int, ensemble: Ensemble | None = None) -> None:
        if execute < 1:
            raise UserError(f"execute at least 1 command of each chunk, not {execute}")
        self.robot, self.execute, self.ensemble = robot, execute, ensemble or Newest()
        self.step = 0
        """Commands popped so far; the step that the next `pop` is for."""
        self._chunks: list[tuple[int, np.ndarray]] = []  # (step of the first row, commands), oldest step first

    @property
    def started(self) -> bool:
        """Whether a chunk has ever come."""
        return bool(self._chunks) or self.step > 0

    @property
    def wants_chunk(self) -> bool:
        """True before the first chunk, when `execute` steps have passed since the newest one's start, and when it has run out."""
        if not self._chunks:
            return True
        start, command_TA = self._chunks[-1]
        return self.step - start >= min(self.execute, len(command_TA))

    def put(self, chunk: Chunk, first_step: int | None = None) -> None:
        """Adds a chunk whose first row is for `first_step` (by default: for the next `pop`)."""
        if (chunk.embodiment, chunk.rate_hz) != (self.robot.name, self.robot.rate_hz):
            raise SchemaError(
                f"a chunk for '{chunk.embodiment}' at {chunk.rate_hz} Hz came to '{self.robot.name}' at {self.robot.rate_hz} Hz"
            )
        self.robot.command.check(chunk.action_TA, f"{self.robot.name} chunk")
        start = self.step if first_step is None else first_step
        at = bisect_right(self._chunks, start, key=lambda held: held[0])  # an answer may be overtaken by that to a newer observation
        self._chunks.insert(at, (start, np.array(chunk.action_TA, dtype=np.float64)))
        self._chunks = [(at, command_TA) for at, command_TA in self._chunks if at + len(command_TA) > self.step]

    def pop(self) -> np.ndarray:
        """The command (A,) for this step, float64, within limits. Raises NoCommand if no chunk covers it."""
        candidates = [command_TA[self.step - at] for at, command_TA in self._chunks if at <= self.step < at + len(command_TA)]
        if not candidates:
            raise NoCommand(f"{self.robot.name}: no chunk covers step {self.step}")
        command_A = self.ensemble.combine(np.stack(candidates), self.robot.command)
        self.step += 1
        return self.robot.limit(command_A)

    def remaining(self) -> np.ndarray:
        """What the newest chunk still says, from this step on: float64 (0..T, A). Real-time chunking continues from it."""
        if not self._chunks:
            return np.zeros((0, self.robot.command.size))
        start, command_TA = self._chunks[-1]
        return command_TA[max(0, self.step - start) :].copy()
