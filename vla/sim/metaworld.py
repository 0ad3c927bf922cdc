"""Meta-World's 50 Sawyer tasks (Yu et al. 2019; McLean et al. 2025) and its own scripted experts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vla.embodiments.metaworld_sawyer import EMBODIMENT
from vla.errors import UnknownName
from vla.sim.env import SimEnv, Task
from vla.sim.rendering import Cameras, aim_camera, tracked

if TYPE_CHECKING:
    import mujoco

_RESET_BY_TASKS = ("body_pos", "body_quat", "site_pos", "geom_pos", "geom_quat", "geom_rgba")


class MetaWorldEnv(SimEnv):
    """Task names are Meta-World's without the version: `door-open`. Objects and goals are placed afresh for each seed."""

    def __init__(self, task: Task, image_size: int) -> None:
        from metaworld import policies
        from metaworld.env_dict import ENV_CLS_MAP

        super().__init__(task, EMBODIMENT, image_size, noise_A=[1, 1, 1, 0])
        if f"{task.name}-v3" not in ENV_CLS_MAP:
            raise UnknownName("Meta-World task", task.name, [name.removesuffix("-v3") for name in ENV_CLS_MAP])
        self._env = ENV_CLS_MAP[f"{task.name}-v3"]()
        self._env.max_path_length = task.max_steps + 1  # ours ends the episode; theirs would raise
        _draw_fresh_positions(self._env)
        self._policy_class = getattr(policies, _POLICY_NAMES.get(task.name) or _policy_name(task.name))
        # Meta-World mounted corner3 upside down and lets half of the image show the table's edges.
        aim_camera(self._env.model, "corner3", lookat=(0.03, 0.72, 0.14), fovy_deg=33)
        views = {"third_person": "corner3", "wrist": "gripperPOV"}
        self._cameras: Cameras | None = None
        self._views = views
        self._pristine = {name: getattr(self._env.model, name).copy() for name in _RESET_BY_TASKS}
        self._seen = np.zeros(39)

    def cameras(self) -> dict[str, np.ndarray]:
        return self._looking().draw(self._env.data, self.roles)

    def model(self) -> mujoco.MjModel:
        return self._env.model

    def state(self) -> np.ndarray:
        return self._seen[:4].astype(np.float64)

    def tracks(self) -> np.ndarray:
        data = self._env.data
        hand = [data.body("hand").xpos, data.site("leftEndEffector").xpos, data.site("rightEndEffector").xpos]
        return tracked(self._looking(), data, hand)

    def expert(self) -> Callable[[], np.ndarray]:
        """Meta-World's own scripted policy for the task, as a function that returns the next command."""
        policy = self._policy_class()

        def act() -> np.ndarray:
            with warnings.catch_warnings():  # that commands will be clipped, at almost every step
                warnings.simplefilter("ignore")
                return self.embodiment.limit(np.asarray(policy.get_action(self._seen.copy()), dtype=np.float64))

        return act

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()

    def _looking(self) -> Cameras:
        if self._cameras is None:  # a GL context costs a second: none until somebody looks
            self._cameras = Cameras(self._env.model, self._views, self.image_size, turn_deg=self.camera_turn_deg)
        return self._cameras

    def _start(self, seed: int) -> None:
        for name, values in self._pristine.items():  # tasks move bodies in the model itself
            getattr(self._env.model, name)[:] = values
        self._env.seed(seed)
        self._seen, _ = self._env.reset()

    def _advance(self, command_A: np.ndarray) -> bool:
        self._seen, _, _, _, info = self._env.step(command_A)
        return bool(info["success"])


def _draw_fresh_positions(env: object) -> None:
    """By default Meta-World draws one of 50 frozen layouts; here the seed draws each one. The goal goes to the expert."""
    env._freeze_rand_vec = False  # type: ignore[attr-defined]
    env.seeded_rand_vec = True  # type: ignore[attr-defined]
    env._set_task_called = True  # type: ignore[attr-defined]
    env._partially_observable = False  # type: ignore[attr-defined]
    env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal clipped to zero


_POLICY_NAMES = {"peg-insert-side": "SawyerPegInsertionSideV3Policy"}


def _policy_name(task: str) -> str:
    return "Sawyer" + "".join(part.capitalize() for part in task.split("-")) + "V3Policy"
