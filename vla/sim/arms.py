"""Arms of robosuite (Zhu et al. 2020), with reactive scripted experts. robosuite is optional: its pins need `--no-deps`.

All wear the Panda's hand, so that the gripper's command and state mean the same for each; on the Panda it is the default.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from vla.embodiment import load_embodiment
from vla.errors import UnknownName, UserError
from vla.sim.env import SimEnv, Task
from vla.sim.rendering import Cameras, aim_camera

if TYPE_CHECKING:
    import mujoco

INSTALL = "pip install --no-deps robosuite==1.5.2 opencv-python-headless && pip install numba qpsolvers quadprog termcolor pynput"
_MOVE_M, _TURN_RAD = 0.05, 0.5
"""What a command of 1.0 means; see the embodiment."""
_OPEN, _CLOSE = -1.0, 1.0
_DOWN = Rotation.from_matrix([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
"""The grip site looking straight down, with the fingers opening along the world's y."""


ROBOTS = {
    "panda": "Panda",
    "robosuite_ur5e": "UR5e",
    "robosuite_iiwa": "IIWA",
    "robosuite_kinova3": "Kinova3",
}
"""Embodiment -> robosuite's name."""


class ArmEnv(SimEnv):
    """Tasks `lift` (robosuite's Lift) and `stack` (its Stack). Objects lie as robosuite places them, drawn by the seed. Option
    `embodiment`: which arm."""

    def __init__(self, task: Task, image_size: int) -> None:
        robot = task.options.get("embodiment", "panda")
        super().__init__(task, load_embodiment(robot), image_size, noise_A=[1, 1, 1, 0.3, 0.3, 0.3, 0])
        names = {"lift": "Lift", "stack": "Stack"}
        if task.name not in names:
            raise UnknownName("robosuite task", task.name, names)
        self._env = _make(names[task.name], ROBOTS[robot], int(self.embodiment.rate_hz))
        aim_camera(self._env.sim.model._model, "agentview", lookat=(-0.04, 0.0, 0.9), fovy_deg=36)
        self._cameras: Cameras | None = None

    def cameras(self) -> dict[str, np.ndarray]:
        if self._cameras is None:  # a GL context costs a second: none until somebody looks
            views = {"third_person": "agentview", "wrist": "robot0_eye_in_hand"}
            self._cameras = Cameras(
                self._env.sim.model._model, views, self.image_size, (0,), self.camera_turn_deg
            )  # 0: shapes for collisions
        return self._cameras.draw(self._env.sim.data._data, self.roles)

    def model(self) -> mujoco.MjModel:
        return self._env.sim.model._model

    def state(self) -> np.ndarray:
        hand, turn, gripper = self._hand()
        matrix = turn.as_matrix()
        return np.concatenate([hand, matrix[:, 0], matrix[:, 1], [gripper]])

    def expert(self) -> Callable[[], np.ndarray]:
        act = {"lift": self._lift, "stack": self._stack}[self.task]
        return lambda: self.embodiment.limit(act())

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
        self._env.close()

    def _start(self, seed: int) -> None:
        # One generator draws everything at reset, and its parts hold references to it: it is set, not replaced.
        self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._env.reset()

    def _advance(self, command_A: np.ndarray) -> bool:
        self._env.step(command_A)
        return bool(self._env._check_success())

    def _hand(self) -> tuple[np.ndarray, Rotation, float]:
        data = self._env.sim.data
        site = self._env.robots[0].eef_site_id["right"]
        fingers = np.array([data.get_joint_qpos(f"gripper0_right_finger_joint{i}") for i in (1, 2)])
        turn = Rotation.from_matrix(data.site_xmat[site].reshape(3, 3))
        return data.site_xpos[site].copy(), turn, float(abs(fingers).sum())

    def _at(self, body: str) -> np.ndarray:
        return np.array(self._env.sim.data.get_body_xpos(body))

    def _holds(self, cube: object) -> bool:
        return bool(self._env._check_grasp(gripper=self._env.robots[0].gripper, object_geoms=cube))

    def _lift(self) -> np.ndarray:
        if self._holds(self._env.cube):
            return self._go(np.array([0, 0, 0.1]), _CLOSE, speed=0.25)
        return self._pick(self._at("cube_main"))

    def _stack(self) -> np.ndarray:
        above, held = self._at("cubeB_main") - self._at("cubeA_main"), self._holds(self._env.cubeA)
        aside = np.linalg.norm(above[:2])
        if not held:
            if aside < 0.02 and above[2] < -0.035:  # it stands on the other: back off upwards
                return self._go(np.array([0, 0, 0.05]), _OPEN, speed=0.3)
            return self._pick(self._at("cubeA_main"))
        if aside > 0.008:
            high = above[2] + 0.09
            return self._go(np.array([*(above[:2] if high < 0.03 else (0, 0)), high]), _CLOSE, speed=0.3)
        down = above[2] + 0.046  # half of each cube, and a millimetre
        return self._go(np.array([*above[:2], down]), _CLOSE if down < -0.003 else _OPEN, speed=0.2)

    def _pick(self, cube: np.ndarray) -> np.ndarray:
        """Over the cube, down, and shut the fingers."""
        error = cube - self._hand()[0]
        aside = np.linalg.norm(error[:2])
        if aside > (0.01 if error[2] < -0.02 else 0.03):
            return self._go(error + [0, 0, 0.06], _OPEN, speed=0.3)
        if error[2] < -0.01:
            return self._go(error, _OPEN, speed=0.25)
        return self._go(error, _CLOSE, speed=0.1)

    def _go(self, error: np.ndarray, gripper: float, speed: float) -> np.ndarray:
        """A command along the error, slower near its end and never faster than `speed`, that keeps the hand upright."""
        move = 1.5 * error / _MOVE_M
        move *= min(1.0, speed / (np.linalg.norm(move) + 1e-9))
        turn = (_DOWN * self._hand()[1].inv()).as_rotvec() / _TURN_RAD
        return np.concatenate([move, np.clip(turn, -0.3, 0.3), [gripper]])


def _make(name: str, robot: str, rate_hz: int) -> object:
    if importlib.util.find_spec("robosuite") is None:
        raise UserError(f"the {robot} arm needs robosuite, which is not installed. Run: {INSTALL}")
    logging.disable(logging.WARNING)  # importing it warns about files and packages that a Panda does not need
    import robosuite

    logging.disable(logging.NOTSET)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return robosuite.make(
        name,
        robots=robot,
        gripper_types="PandaGripper",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        control_freq=rate_hz,
        hard_reset=False,
        ignore_done=True,
        seed=0,
    )
