"""CALVIN (Mees et al. 2022): 1000 sequences of five instructions, of 360 steps each (`calvin_agent/evaluation/evaluate_policy.py`).

An episode is a sequence: the scene is set once, instructions follow one another as each is done, and the first that is not done in its 360
steps ends it. Its score is how many were done, so the mean score of 1000 is the published average length; success is all five. What a
policy had planned is void when the instruction changes. Pictures are drawn only where a policy looks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla.embodiments.calvin_panda import EMBODIMENT
from vla.errors import UserError
from vla.sim.env import SimEnv, State, Suite, Task
from vla.sim.external import lanczos, need

SEQUENCES, LENGTH, STEPS = 1000, 5, 360
DATASET = "CALVIN_DATASET"
"""Environment variable: a folder such as task_ABC_D, whose `validation` holds the scene's settings."""
INSTALL = "Install calvin_env and calvin_models from its repository (mees/calvin)."
TERMINATION = (
    "An episode is a sequence of five instructions, given one after another; it ends when one is not done within 360 control steps, and is "
    "a success when all five are. Its score is how many were done. It is a failure also when its simulator crashes or gives no answer in "
    "time (see the row's reason)."
)


def suite() -> Suite:
    """One task: the sequences."""
    task = Task("sequence", "as calvin words it", _make, max_steps=LENGTH * STEPS, layouts=SEQUENCES)
    summary = "CALVIN's 1000 sequences of five instructions (CALVIN and its data have to be there)"
    return Suite("calvin", summary, EMBODIMENT, (task,), licence="MIT", episodes=SEQUENCES, termination=TERMINATION, mujoco=False)


def _make(task: Task, image_size: int) -> SimEnv:
    return CalvinEnv(task, image_size)


class CalvinEnv(SimEnv):
    """Episode i is the i-th of CALVIN's own sequences, which do not depend on any seed of ours."""

    def __init__(self, task: Task, image_size: int) -> None:
        for module in ("calvin_env", "calvin_agent"):
            need(module, "CALVIN", INSTALL)
        folder = Path(os.environ.get(DATASET, "")) / "validation"
        if not (folder / ".hydra" / "merged_config.yaml").is_file():
            raise UserError(f"CALVIN's scene is not in {folder}. Set {DATASET} to a folder of its data, such as task_ABC_D.")
        from calvin_agent.evaluation.utils import get_env_state_for_initial_condition
        from calvin_env.envs.play_table_env import get_env

        super().__init__(task, EMBODIMENT, image_size, noise_A=np.zeros(7))
        self._start_state = get_env_state_for_initial_condition
        self._env = get_env(folder, show_gui=False)
        self._cameras = self._env.cameras
        self._oracle, self._words = _oracle_and_words()
        self._sequence: tuple[str, ...] = ()
        self._done = self._spent = 0
        self._before: Any = None

    def step(self, action: np.ndarray) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """The reward is 1 at each instruction that is done."""
        done = self._done
        state, _, terminated, truncated, info = super().step(action)
        return state, float(self._done - done), terminated, truncated or self._spent >= STEPS, info

    def cameras(self) -> dict[str, np.ndarray]:
        images, _ = self._env.get_camera_obs()
        views = {"third_person": "rgb_static", "wrist": "rgb_gripper"}
        return {role: lanczos(np.asarray(images[name], dtype=np.uint8), self.image_size) for role, name in views.items()}

    def state(self) -> np.ndarray:
        """Its `robot_obs` without the last number, which is the gripper's last command."""
        return np.asarray(self._env.get_state_obs()["robot_obs"][:14], dtype=np.float64)

    def close(self) -> None:
        self._env.close()

    def _start(self, seed: int) -> None:
        condition, self._sequence = _sequences()[seed]
        robot, scene = self._start_state(condition)
        self._unseen(lambda: self._env.reset(robot_obs=robot, scene_obs=scene))
        self._done = 0
        self._tell()

    def _advance(self, command_A: np.ndarray) -> bool:
        action = np.array([*command_A[:6], 1.0 if command_A[6] >= 0 else -1.0])
        _, _, _, info = self._unseen(lambda: self._env.step(action))
        self._spent += 1
        if not self._oracle.get_task_info_for_set(self._before, info, {self._sequence[self._done]}):
            return False
        self._done += 1
        if self._done < LENGTH:
            self._tell()
        return self._done == LENGTH

    def _tell(self) -> None:
        """The next instruction of the sequence."""
        self.instruction = self._words[self._sequence[self._done]][0]
        self.orders += 1
        self._spent, self._before = 0, self._env.get_info()

    def _unseen(self, act: Any) -> Any:
        """CALVIN draws all cameras in each step: there are none meanwhile."""
        self._env.cameras = []
        try:
            return act()
        finally:
            self._env.cameras = self._cameras


@functools.cache
def _sequences() -> list[tuple[Any, tuple[str, ...]]]:
    from calvin_agent.evaluation.multistep_sequences import get_sequences

    return list(get_sequences(SEQUENCES))


def _oracle_and_words() -> tuple[Any, Mapping[str, Any]]:
    """CALVIN's judge of what was done, and the first of its validation sentences for each task."""
    import calvin_agent
    import hydra
    from omegaconf import OmegaConf

    folder = Path(calvin_agent.__file__).resolve().parents[1] / "conf"
    judge = OmegaConf.load(folder / "callbacks/rollout/tasks/new_playtable_tasks.yaml")
    return hydra.utils.instantiate(judge), OmegaConf.load(folder / "annotations/new_playtable_validation.yaml")
