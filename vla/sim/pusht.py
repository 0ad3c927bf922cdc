"""PushT (Chi et al. 2023) by gym-pusht: plane physics, drawn without OpenGL. There is no scripted expert."""

from __future__ import annotations

import importlib.util
import os
import warnings

import numpy as np

from vla.embodiments.pusht import EMBODIMENT
from vla.errors import UserError
from vla.sim.env import SimEnv, Task

INSTALL = "pip install 'pymunk<7' pygame shapely opencv-python-headless && pip install --no-deps gym-pusht"
"""Its own requirements ask for another build of OpenCV, which would replace the one that is there."""


class PushTEnv(SimEnv):
    """Task `push`: the T covers more than 95% of its outline (gym-pusht's threshold). Disc and T lie where gym-pusht's seed puts them."""

    def __init__(self, task: Task, image_size: int) -> None:
        super().__init__(task, EMBODIMENT, image_size, noise_A=[50, 50])
        if importlib.util.find_spec("gym_pusht") is None:
            raise UserError(f"the pusht suite needs gym-pusht, which is not installed. Run: {INSTALL}")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        with warnings.catch_warnings():  # about packaging, from pygame's imports
            warnings.simplefilter("ignore")
            from gym_pusht.envs.pusht import PushTEnv as Wrapped

        self._env = Wrapped(observation_width=image_size, observation_height=image_size)

    def cameras(self) -> dict[str, np.ndarray]:
        return {"third_person": self._env._render()}

    def state(self) -> np.ndarray:
        return np.array(self._env.agent.position, dtype=np.float64)

    def _start(self, seed: int) -> None:
        self._env.reset(seed=seed)

    def _advance(self, command_A: np.ndarray) -> bool:
        return bool(self._env.step(command_A)[4]["is_success"])
