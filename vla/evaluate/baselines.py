"""Policies without a checkpoint, to tell what a success rate is worth: a floor, a null and a ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla.embodiment import Embodiment
from vla.types import Chunk, Observation


class Actor(Protocol):
    """What an evaluation needs of a policy; `vla.policy.Policy` is one."""

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        """One chunk per observation; a row's chunk depends on its own observation and key alone."""
        ...


@dataclass(frozen=True)
class Random:
    """Uniform within the limits, afresh at every step."""

    robot: Embodiment

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        low_A, high_A = self.robot.bounds()
        shape = (self.robot.horizon, self.robot.command.size)
        return [Chunk(np.random.default_rng(key).uniform(low_A, high_A, shape), self.robot.name, self.robot.rate_hz) for key in keys]


@dataclass(frozen=True)
class Hold:
    """No motion: zero for fields relative to a state or step; for absolute ones the state of that name, else mid-range."""

    robot: Embodiment

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        return [self._chunk(observation.state[-1]) for observation in observations]

    def _chunk(self, state_P: np.ndarray) -> Chunk:
        state = self.robot.state.unpack(state_P)
        command_A = np.mean(self.robot.bounds(), axis=0)
        for field in self.robot.command.fields:
            where = self.robot.command.slices()[field.name]
            if field.frame != "absolute":
                command_A[where] = 0.0
            elif field.name in state and self.robot.state.field(field.name).unit == field.unit:
                command_A[where] = state[field.name]
        chunk_TA = np.repeat(command_A[None], self.robot.horizon, axis=0)
        return Chunk(self.robot.limit(chunk_TA), self.robot.name, self.robot.rate_hz)


@dataclass(frozen=True)
class Expert:
    """The suite's scripted expert, which knows where objects are. It runs inside the simulator's process; nothing is rendered."""


BASELINES = ("random", "hold", "expert")


def baseline(name: str, robot: Embodiment) -> Actor | Expert:
    """A policy without a checkpoint, by name: random, hold or expert."""
    made: dict[str, Actor | Expert] = {"random": Random(robot), "hold": Hold(robot), "expert": Expert()}
    return made[name]
