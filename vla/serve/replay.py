"""A recorded episode as a policy: what a robot did once, it is told again. For checking cameras, limits and the wire without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla.embodiment import Embodiment, Space, convert
from vla.errors import UserError
from vla.serve.wire import step_of
from vla.types import Chunk, Observation


@dataclass(frozen=True)
class Replay:
    """A request gets the commands from the step on that its session has come to (`Session.step`), whatever it sees. `action`: float64
    (steps, A), in the frames of `recorded`; `state`: (steps, P) as recorded, which frames are converted with."""

    robot: Embodiment
    action: np.ndarray
    recorded: Space
    state: np.ndarray | None

    @staticmethod
    def of(spec: str, robot: Embodiment | None) -> Replay:
        """`DATASET` or `DATASET:NUMBER`. `robot`: by default the one that the dataset was recorded with."""
        from vla.data.reader import Dataset

        folder, colon, number = spec.rpartition(":")
        if not colon or not number.isdigit():
            folder, number = spec, "0"
        dataset = Dataset.open(Path(folder))
        if int(number) >= len(dataset):
            raise UserError(f"{folder} has {len(dataset)} episodes; give one of 0 to {len(dataset) - 1}")
        robot = robot or dataset.info.robot
        if robot is None:
            raise UserError(f"{folder} names no robot; give --embodiment")
        episode, recorded = dataset.read(int(number)), dataset.info.recorded_action
        if episode.action is None or recorded is None:
            raise UserError(f"episode {number} of {folder} has no actions to replay")
        if episode.rate_hz != robot.rate_hz:
            raise UserError(f"the episode was recorded at {episode.rate_hz} Hz, and '{robot.name}' runs at {robot.rate_hz} Hz")
        return Replay(robot, episode.action, recorded, episode.state)

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        """UserError when a session is past the episode's end."""
        return [self._chunk(step_of(key)) for key in keys]

    def _chunk(self, step: int) -> Chunk:
        rows_TA = self.action[step : step + self.robot.horizon]
        if not len(rows_TA):
            raise UserError(f"the episode of {len(self.action)} steps is over; connect again, or reset, to replay it from its start")
        state_P = np.zeros(self.robot.state.size) if self.state is None else self.state[step]
        command_TA = convert(rows_TA, self.recorded, self.robot.command, state_P, self.robot.state)
        return Chunk(self.robot.limit(command_TA), self.robot.name, self.robot.rate_hz)
