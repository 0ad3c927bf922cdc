"""The Fetch arm of gymnasium-robotics (Plappert et al. 2018), with reactive scripted experts.

The experts are slow on purpose: at full speed a reach takes 2 to 6 steps, less than one chunk.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vla.embodiments.fetch import EMBODIMENT
from vla.errors import UnknownName
from vla.sim.env import SimEnv, Task
from vla.sim.rendering import Cameras, free_camera, tracked

if TYPE_CHECKING:
    import mujoco

_STEP_M = 0.05
"""How far a command of 1.0 moves the gripper's target; see the embodiment."""
_OPEN, _CLOSE = 1.0, -1.0
_LIFTED_M = 0.08
_LEAST_WAY_M = 0.1
"""To the goal at the start: success is within 50 mm of it, and some of gymnasium-robotics' layouts begin there."""


class FetchEnv(SimEnv):
    """Tasks `reach`, `push` and `lift`. Option `marker_m`: radius at which the goal's red marker is drawn."""

    def __init__(self, task: Task, image_size: int) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # importing it prints news about other robots
            from gymnasium_robotics.envs.fetch import pick_and_place, push, reach

        super().__init__(task, EMBODIMENT, image_size, noise_A=[1, 1, 1, 0])
        classes = {
            "reach": reach.MujocoFetchReachEnv,
            "push": push.MujocoFetchPushEnv,
            "lift": pick_and_place.MujocoFetchPickAndPlaceEnv,
        }
        if task.name not in classes:
            raise UnknownName("Fetch task", task.name, classes)
        self._env = classes[task.name](reward_type="sparse")
        self._cameras: Cameras | None = None
        model = self._env.model
        marker = model.site("target0")
        marker.size[:] = task.options.get("marker_m", 0.02)
        if task.name == "push":
            marker.type, marker.size[1] = 5, 0.002  # a disc (mjGEOM_CYLINDER) on the table; a ball would hide the block
        if task.name == "lift":
            marker.rgba[3] = 0  # there is no place to bring the block to
        model.geom_rgba[model.geom_bodyid == model.body("robot0:mocap").id, 3] = 0  # the controller's cross-hairs
        if task.name != "reach":
            model.site("object0").rgba[3] = 0
            model.mat("block_mat").rgba[:] = (0.1, 0.2, 0.8, 1)  # dark grey, it looks like the gripper

    def cameras(self) -> dict[str, np.ndarray]:
        """Role -> uint8 (H, W, 3), rendered now."""
        return self._looking().draw(self._env.data, self.roles)

    def model(self) -> mujoco.MjModel:
        return self._env.model

    def state(self) -> np.ndarray:
        fingers = [self._env.data.joint(f"robot0:{side}_gripper_finger_joint").qpos[0] for side in "lr"]
        return np.concatenate([self._hand(), fingers])

    def tracks(self) -> np.ndarray:
        data = self._env.data
        hand = [data.body(f"robot0:{name}").xpos for name in ("gripper_link", "l_gripper_finger_link", "r_gripper_finger_link")]
        return tracked(self._looking(), data, hand)

    def expert(self) -> Callable[[], np.ndarray]:
        act = {"reach": self._reach, "push": self._push, "lift": self._lift}[self.task]
        return lambda: self.embodiment.limit(act())

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()

    def _looking(self) -> Cameras:
        if self._cameras is None:  # a GL context costs a second: none until somebody looks
            views = {
                "third_person": free_camera((1.33, 0.75, 0.5), 0.85, 180, -35),
                "side": free_camera((1.33, 0.75, 0.5), 0.85, 90, -15),
            }
            self._cameras = Cameras(self._env.model, views, self.image_size, turn_deg=self.camera_turn_deg)
        return self._cameras

    def _start(self, seed: int) -> None:
        self._env.reset(seed=seed)
        while self.task != "lift" and np.linalg.norm(self._env.goal - self._moved()) < _LEAST_WAY_M:
            self._env.reset()  # draws on from the seed
        self._table_z = self._block()[2] if self.task != "reach" else 0.0
        # Here and not when drawing, as gymnasium-robotics does: a forward pass in the middle changes what follows.
        model = self._env.model
        model.site("target0").pos[:] = self._env.goal - model.body("floor0").pos
        self._env._mujoco.mj_forward(model, self._env.data)

    def _advance(self, command_A: np.ndarray) -> bool:
        _, _, _, _, info = self._env.step(command_A)
        if self.task == "lift":
            return bool(self._block()[2] - self._table_z > _LIFTED_M)
        return bool(info["is_success"])

    def _hand(self) -> np.ndarray:
        return self._env.data.site("robot0:grip").xpos.copy()

    def _block(self) -> np.ndarray:
        return self._env.data.site("object0").xpos.copy()

    def _moved(self) -> np.ndarray:
        """What has to get to the goal."""
        return self._hand() if self.task == "reach" else self._block()

    def _reach(self) -> np.ndarray:
        return _towards(self._env.goal - self._hand(), _CLOSE, speed=0.2)

    def _push(self) -> np.ndarray:
        """Goes behind the block as seen from the goal, down, and through it; rises again when it has slipped past."""
        hand, block, goal = self._hand(), self._block(), self._env.goal
        ahead = (goal - block)[:2] / (np.linalg.norm((goal - block)[:2]) + 1e-9)
        offset = (hand - block)[:2]
        along = offset @ ahead
        aside = np.linalg.norm(offset - along * ahead)
        low = hand[2] < self._table_z + 0.03
        if low and along < 0 and aside < 0.02:
            sideways = offset - along * ahead  # a pushed block turns away from the finger: follow it harder than it turns
            target = hand[:2] + 0.04 * ahead - 3 * sideways
            return _towards(np.array([*target, self._table_z]) - hand, _CLOSE, speed=0.3)
        behind = np.array([*(block[:2] - 0.09 * ahead), self._table_z])
        above = np.linalg.norm((behind - hand)[:2]) > 0.015
        behind[2] += 0.1 if above else 0.0
        if above and hand[2] < self._table_z + 0.06:
            behind[:2] = hand[:2]  # straight up first
        return _towards(behind - hand, _CLOSE, speed=0.5)

    def _lift(self) -> np.ndarray:
        hand, block = self._hand(), self._block()
        fingers = self.state()[3:].max()
        away = np.linalg.norm((block - hand)[:2])
        if away > 0.012:
            above = block + [0, 0, 0.07 if hand[2] - block[2] > 0.05 or away > 0.05 else hand[2] - block[2]]
            return _towards(above - hand, _OPEN, speed=0.35)
        if hand[2] - block[2] > 0.012:
            return _towards(block - hand, _OPEN, speed=0.3)
        if fingers > 0.027:
            return _towards(block - hand, _CLOSE, speed=0.2)
        return np.array([0, 0, 0.3, _CLOSE])


def _towards(error: np.ndarray, gripper: float, speed: float) -> np.ndarray:
    """A command along the error, slowing down near its end and never faster than `speed` (1 is 50 mm a step)."""
    move = 0.6 * error / _STEP_M
    length = np.linalg.norm(move)
    return np.concatenate([move * min(1.0, speed / (length + 1e-9)), [gripper]])
