"""ALOHA's two arms on gym-aloha's models and rewards (Zhao et al. 2023), with experts that plan by inverse kinematics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from vla.embodiments.aloha import EMBODIMENT
from vla.errors import UnknownName
from vla.sim.env import SimEnv, Task
from vla.sim.kinematics import Arm
from vla.sim.rendering import Cameras, aim_camera

if TYPE_CHECKING:
    import mujoco

_LEVELS = {"lift": 2, "transfer": 4}
"""Task -> reward level of gym-aloha's transfer task: 2 the right gripper holds the cube off the table, 4 the left one does."""
_HELD_STEPS, _HEIGHT_M = 10, 0.07
"""For so long (0.2 s) the level must hold with the cube's centre so high (50 mm above where it lay): a knock is no success."""
_MIDDLE = np.array([0.1, 0.5])
"""Of the square in which gym-aloha draws the cube's place, (x, y) in metres."""
_OVER_STEPS = 70
"""Control steps until the hand is over the cube."""
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_BASES = {"left": np.array([-0.469, 0.5]), "right": np.array([0.469, 0.5])}
"""Where the arms stand (x, y) in metres."""


class AlohaEnv(SimEnv):
    """Tasks `lift` (the right arm lifts the cube) and `transfer` (and hands it to the left arm).

    Options `spread`: side of the square that the cube lies in, over gym-aloha's of 0.2 m (1 by default); `view_deg`: how much the
    third-person camera sees. In the 42 degrees that show both arms, 0.05 m on the table are 3 of 64 px: no small policy learned to look.
    """

    def __init__(self, task: Task, image_size: int) -> None:
        from dm_control import mujoco
        from gym_aloha.constants import ASSETS_DIR
        from gym_aloha.tasks.sim import TransferCubeTask

        noise = np.array([0.1] * 6 + [0])  # rad; grippers carry none, nor does an arm that has nothing to do
        noise_A = np.concatenate([noise * (task.name == "transfer"), noise])
        super().__init__(task, EMBODIMENT, image_size, noise_A, noise_decay=0.95)  # faster noise the arms do not even follow
        if task.name not in _LEVELS:
            raise UnknownName("ALOHA task", task.name, _LEVELS)
        self._physics = mujoco.Physics.from_xml_path(str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"))
        self._task, self._spread = TransferCubeTask(), float(task.options.get("spread", 1.0))
        model = self._physics.model.ptr
        aim_camera(model, "angle", lookat=(0.1, 0.5, 0.08), fovy_deg=float(task.options.get("view_deg", 42)))
        aim_camera(model, "right_wrist", lookat=(0.2, 0.0, 0.0), fovy_deg=65)
        self._arms = {side: Arm(model, [f"vx300s_{side}/{name}" for name in _JOINTS], f"cali_{side}_site1") for side in _BASES}
        self._cameras: Cameras | None = None
        self._held = 0

    def cameras(self) -> dict[str, np.ndarray]:
        if self._cameras is None:  # a GL context costs a second: none until somebody looks
            views = {"third_person": "angle", "wrist_right": "right_wrist"}
            self._cameras = Cameras(self._physics.model.ptr, views, self.image_size, turn_deg=self.camera_turn_deg)
        return self._cameras.draw(self._physics.data.ptr, self.roles)

    def model(self) -> mujoco.MjModel:
        return self._physics.model.ptr

    def state(self) -> np.ndarray:
        return np.asarray(self._task.get_qpos(self._physics), dtype=np.float64)

    def noise_scale(self) -> float:
        # While the hand comes over the cube: else the way it has come tells where the cube is, and no policy learns to look.
        return 1.0 if self.steps < _OVER_STEPS - 10 else 0.2

    def expert(self) -> Callable[[], np.ndarray]:
        """The scripted expert of this episode: a function that returns the next command."""
        rows = iter(self._plan())
        last = self.state()

        def act() -> np.ndarray:
            nonlocal last
            last = next(rows, last)
            return last

        return act

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()

    def _start(self, seed: int) -> None:
        from gym_aloha.tasks import sim
        from gym_aloha.utils import sample_box_pose

        pose = sample_box_pose(seed)
        pose[:2] = _MIDDLE + self._spread * (pose[:2] - _MIDDLE)
        sim.BOX_POSE[0] = pose  # how gym-aloha passes it
        self._physics.reset()
        self._task.initialize_episode(self._physics)
        self._physics.forward()
        self._held = 0

    def _advance(self, command_A: np.ndarray) -> bool:
        from gym_aloha.constants import DT

        self._task.before_step(command_A, self._physics)
        self._physics.step(round(DT / self._physics.timestep()))
        high = self._physics.named.data.qpos["red_box_joint"][2] >= _HEIGHT_M
        self._held = self._held + 1 if high and self._task.get_reward(self._physics) >= _LEVELS[self.task] else 0
        return self._held >= _HELD_STEPS

    def _plan(self) -> np.ndarray:
        """The whole demonstration as commands (T, 14), from where the cube lies now."""
        cube = self._physics.named.data.qpos["red_box_joint"][:3].copy()
        cube[2] = 0.02  # it is dropped from a little above the table
        ways = _transfer_ways(cube) if self.task == "transfer" else _lift_ways(cube)
        state = self.embodiment.state.unpack(self.state())
        arms = [_follow(_BASES[side], arm, state[f"{side}_arm"], state[f"{side}_gripper"], ways[side]) for side, arm in self._arms.items()]
        steps = max(map(len, arms))
        return np.concatenate([np.pad(rows, ((0, steps - len(rows)), (0, 0)), mode="edge") for rows in arms], axis=-1)


@dataclass(frozen=True)
class _Way:
    """A waypoint: in `steps` control steps the tool comes to be `at` a place, its nose `down_deg` below the horizontal.

    The motion begins `early` steps before the one before has ended: an arm that stops on its way shows a state in which both
    staying and going on are right, and a policy stays.
    """

    steps: int
    at: Sequence[float]
    down_deg: float
    opening: float
    roll_deg: float = 0.0
    early: int = 0


def _lift_ways(cube: np.ndarray) -> dict[str, list[_Way]]:
    """The right arm opens on its way over the cube, goes down around it, shuts and lifts."""
    pick = [
        _Way(_OVER_STEPS, cube + [0, 0, 0.09], down_deg=60, opening=1),
        _Way(55, cube + [0, 0, -0.008], down_deg=60, opening=1, early=25),
        _Way(25, cube + [0, 0, -0.008], down_deg=60, opening=0, early=8),
        _Way(60, cube + [0, 0, 0.12], down_deg=60, opening=0, early=8),
    ]
    return {"left": [], "right": pick}


def _transfer_ways(cube: np.ndarray) -> dict[str, list[_Way]]:
    """Both arms meet over the middle; the left one comes rolled by 90 degrees, so that its fingers fit between the right one's."""
    meet = np.array([0.0, 0.5, 0.25])
    right = [
        *_lift_ways(cube)["right"],
        _Way(60, meet, down_deg=0, opening=0),
        _Way(90, meet, down_deg=0, opening=0),
        _Way(20, meet, down_deg=0, opening=1),
        _Way(40, meet + [0.1, 0, 0], down_deg=0, opening=1),
    ]
    left = [
        _Way(150, meet + [-0.12, 0, 0], down_deg=0, opening=1, roll_deg=90),
        _Way(90, meet + [-0.12, 0, 0], down_deg=0, opening=1, roll_deg=90),
        _Way(50, meet + [0.01, 0, 0], down_deg=0, opening=1, roll_deg=90),
        _Way(30, meet + [0.01, 0, 0], down_deg=0, opening=0, roll_deg=90),
        _Way(60, meet + [0.01, 0, 0], down_deg=0, opening=0, roll_deg=90),
    ]
    return {"left": left, "right": right}


def _follow(base: np.ndarray, arm: Arm, angles: np.ndarray, opening: np.ndarray, ways: Sequence[_Way]) -> np.ndarray:
    """Smooth commands (T, 7) of one arm through the waypoints, minimum-jerk in position.

    The hand points away from the arm's base. Otherwise forearm and wrist would share out a turn that near the singular start pose
    is almost arbitrary, and nobody can learn an arbitrary label.
    """
    at, turn = arm.pose(angles)
    start = np.array([*at, *turn.as_euler("ZYX", degrees=True)[1:], *opening])  # position, nose down, roll, opening
    goals = np.array([start, *([*way.at, way.down_deg, way.roll_deg, way.opening] for way in ways)])
    poses, begin = start[None], 0
    for way, change in zip(ways, np.diff(goals, axis=0), strict=True):
        begin = max(0, begin - way.early)
        poses = np.pad(poses, ((0, max(0, begin + way.steps + 1 - len(poses))), (0, 0)), mode="edge")
        time = np.clip((np.arange(len(poses)) - begin) / way.steps, 0, 1)[:, None]
        poses = poses + time**3 * (10 - 15 * time + 6 * time**2) * change
        begin += way.steps
    rows = []
    for pose in poses[1:] if ways else poses:
        yaw_deg = np.degrees(np.arctan2(*(pose[:2] - base)[::-1]))
        angles = arm.solve(pose[:3], Rotation.from_euler("ZYX", [yaw_deg, *pose[3:5]], degrees=True), angles)
        rows.append(np.append(angles, pose[5]))
    return np.array(rows)
