"""A suite without a simulator, whose tasks misbehave on request: a dot that has to reach a spot on a line.

Task options: `kill` (the process ends itself), `hang` (it never answers), `broken` (its environment cannot be built): each names
which episodes by `seed % 3`, or all of them with -1; and `after`, the step it happens at.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from vla.embodiment import Embodiment, Field, Space
from vla.sim.env import SimEnv, Suite, Task

_SPACE = Space((Field("move", 2, "command", "step"),))
DOT = Embodiment("dot", ("third_person", "wrist"), Space((Field("at", 2, "m"),)), _SPACE, _SPACE, Fraction(10), 4, ((-1.0, 1.0),) * 2)
STEP_M = 0.02


class DotEnv(SimEnv):
    def __init__(self, task: Task, image_size: int) -> None:
        super().__init__(task, DOT, image_size, noise_A=[1, 1])
        self.options, self._seed = task.options, 0
        self.at_P, self.goal_P = np.zeros(2), np.zeros(2)
        if "broken" in task.options:
            raise OSError("no such mesh: dot.stl")

    def cameras(self) -> dict[str, np.ndarray]:
        image = np.zeros((self.image_size, self.image_size, 3), dtype=np.uint8)
        image[self._pixel(self.goal_P)] = (255, 0, 0)
        image[self._pixel(self.at_P)] = (0, 255, 0)
        return {"third_person": image, "wrist": image[::-1].copy()}

    def state(self) -> np.ndarray:
        return self.at_P.copy()

    def expert(self) -> Callable[[], np.ndarray]:
        return lambda: np.clip((self.goal_P - self.at_P) / STEP_M, -1, 1)

    def _start(self, seed: int) -> None:
        self._seed, self.at_P = seed, np.zeros(2)
        angle, distance_m = np.random.default_rng(seed).uniform((0, 0.15), (2 * np.pi, 0.3))
        self.goal_P = distance_m * np.array([np.cos(angle), np.sin(angle)])

    def _advance(self, command_A: np.ndarray) -> bool:
        if self.steps == self.options.get("after", 0):
            if self.options.get("kill") in (-1, self._seed % 3):
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.options.get("hang") in (-1, self._seed % 3):
                time.sleep(600)
        self.at_P = self.at_P + STEP_M * command_A
        return bool(np.linalg.norm(self.goal_P - self.at_P) < self.options.get("near_m", 0.02))

    def _pixel(self, place_P: np.ndarray) -> tuple[int, int]:
        row, column = ((place_P + 1) / 2 * (self.image_size - 1)).astype(int).clip(0, self.image_size - 1)
        return int(row), int(column)


def _task(name: str, **options: float) -> Task:
    return Task(name, f"go to the spot {name}", DotEnv, max_steps=24, options=options)


SUITE = Suite(
    "toy",
    "A dot on a line",
    DOT,
    (
        _task("easy", near_m=0.13),
        _task("hard"),
        _task("kills", kill=0, after=6),
        _task("hangs", hang=0, after=6),
        _task("broken", broken=1),
    ),
)
