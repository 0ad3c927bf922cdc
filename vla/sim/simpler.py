"""SimplerEnv (Li et al. 2024): real evaluations of WidowX and Google robots rebuilt in ManiSkill2, visual matching.

Protocol of its repository (`maniskill2_evaluator.py`, `policies/octo`): a WidowX task has 24 layouts, picking a can 25, moving near 60; an
episode always runs to its last step and is a success if it is one *there*; turns are commanded as roll, pitch and yaw and sent as axis
times angle; the Google robot's gripper is sent changes, each for 15 steps, the WidowX' gripper open or shut. The packaged drawer tasks
draw the robot's place by seed. ManiSkill2 draws pictures at every step, and needs a Vulkan device.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla.embodiment import Embodiment
from vla.embodiments.google_robot import EMBODIMENT as GOOGLE_ROBOT
from vla.embodiments.widowx import EMBODIMENT as WIDOWX
from vla.sim.env import SimEnv, Suite, Task
from vla.sim.external import lanczos, need

INSTALL = "Install SimplerEnv from its repository (simpler-env/SimplerEnv) with ManiSkill2_real2sim."
TERMINATION = (
    "An episode runs for the task's max_steps control steps and is a success if the simulator says so after the last one (SimplerEnv's "
    "rule: a success on the way does not count). It is a failure also when its simulator crashes or gives no answer in time (see the "
    "row's reason)."
)
STICKY_STEPS = 15
_BRIDGE_ZERO = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""BridgeData measures turns from a hand that looks down; its controller's `default_rot`."""
_CAN_XY = tuple(product(np.linspace(-0.35, -0.12, 5).tolist(), np.linspace(-0.02, 0.42, 5).tolist()))
"""Where the can lies: the grid of the published scripts."""
_LIMITS = ((-1.0, 1.0),) * 6 + ((0.0, 1.0),)
"""ManiSkill2's controllers clip to 1 m and 1 rad a step."""


def _simulated(robot: Embodiment) -> Embodiment:
    return replace(robot, limits=_LIMITS)


def widowx() -> Suite:
    """The four BridgeData tasks."""
    words = {
        "widowx_spoon_on_towel": ("put the spoon on the towel", 60),
        "widowx_carrot_on_plate": ("put carrot on plate", 60),
        "widowx_stack_cube": ("stack the green block on the yellow block", 60),
        "widowx_put_eggplant_in_basket": ("put eggplant into yellow basket", 120),
    }
    tasks = tuple(Task(name, told, _make_widowx, steps, layouts=24) for name, (told, steps) in words.items())
    return _suite("simpler-widowx", "SimplerEnv's four WidowX tasks", _simulated(WIDOWX), tasks, 24)


def google_robot() -> Suite:
    """Picking a can in three poses, moving near, and the drawers."""
    cans = [f"google_robot_pick_{pose}_coke_can" for pose in ("horizontal", "vertical", "standing")]
    drawers = [f"google_robot_{verb}_{which}_drawer" for verb in ("open", "close") for which in ("top", "middle", "bottom")]
    tasks = (
        *(Task(name, "pick coke can", _make_google, 80, layouts=25, options={"can": True}) for name in cans),
        Task("google_robot_move_near", "as simplerenv words it", _make_google, 80, layouts=60),
        *(Task(name, " ".join(name.split("_")[2:]), _make_google, 113, options={"drawn": True}) for name in drawers),
    )
    return _suite("simpler-google-robot", "SimplerEnv's Google robot tasks", _simulated(GOOGLE_ROBOT), tasks, 25)


def _suite(name: str, summary: str, robot: Embodiment, tasks: tuple[Task, ...], episodes: int) -> Suite:
    summary += ", visual matching (SimplerEnv has to be there)"
    return Suite(name, summary, robot, tasks, licence="MIT", episodes=episodes, termination=TERMINATION, mujoco=False)


def _make_widowx(task: Task, image_size: int) -> SimEnv:
    return SimplerEnv(task, _simulated(WIDOWX), image_size, sticky=False)


def _make_google(task: Task, image_size: int) -> SimEnv:
    return SimplerEnv(task, _simulated(GOOGLE_ROBOT), image_size, sticky=True)


class SimplerEnv(SimEnv):
    """Options: `can`, layouts are places of the grid; `drawn`, the seed draws them; neither, they are ManiSkill2's episode ids."""

    def __init__(self, task: Task, robot: Embodiment, image_size: int, sticky: bool) -> None:
        need("simpler_env", "SimplerEnv", INSTALL)
        import simpler_env

        super().__init__(task, robot, image_size, noise_A=np.zeros(7))
        self._env, self._options = simpler_env.make(task.name), task.options
        self._gripper: StickyGripper | None = StickyGripper() if sticky else None
        self._seen: Any = None

    def cameras(self) -> dict[str, np.ndarray]:
        from simpler_env.utils.env.observation_utils import get_image_from_maniskill2_obs_dict

        return {"third_person": lanczos(np.asarray(get_image_from_maniskill2_obs_dict(self._env, self._seen)), self.image_size)}

    def state(self) -> np.ndarray:
        """The tool in the base's frame, and the opening."""
        base, tool = (
            np.asarray(self._seen[part][pose], dtype=np.float64) for part, pose in (("agent", "base_pose"), ("extra", "tcp_pose"))
        )
        of_base, of_tool = (Rotation.from_quat(pose[3:], scalar_first=True) for pose in (base, tool))
        at, turn = of_base.inv().apply(tool[:3] - base[:3]), of_base.inv() * of_tool
        opening = 1.0 - float(self._env.unwrapped.agent.get_gripper_closedness())
        if self._gripper is None:
            rpy = Rotation.from_matrix(turn.as_matrix() @ _BRIDGE_ZERO.T).as_euler("xyz")
            return np.array([*at, *rpy, opening])
        return np.array([*at, *turn.as_quat(), opening])

    def close(self) -> None:
        self._env.close()

    def _start(self, seed: int) -> None:
        layout: dict[str, Any] = {"episode_id": seed}
        if self._options.get("can"):
            layout = {"init_xy": list(_CAN_XY[seed])}
        options = {} if self._options.get("drawn") else {"obj_init_options": layout}
        self._seen, _ = self._env.reset(seed=seed, options=options)
        self.instruction = self._env.unwrapped.get_language_instruction()
        if self._gripper is not None:
            self._gripper = StickyGripper()

    def _advance(self, command_A: np.ndarray) -> bool:
        turn = Rotation.from_euler("xyz", command_A[3:6]).as_rotvec()
        opening = float(command_A[6])
        gripper = (1.0 if opening > 0.5 else -1.0) if self._gripper is None else self._gripper(opening)
        self._seen, _, done, _, _ = self._env.step(np.array([*command_A[:3], *turn, gripper]))
        return bool(done) and self.steps + 1 >= self.max_steps


class StickyGripper:
    """The Google robot's gripper is commanded by changes (1 shuts, -1 opens); a large one is repeated until it has had its effect."""

    def __init__(self, steps: int = STICKY_STEPS) -> None:
        self._steps, self._left, self._change = steps, 0, 0.0
        self._before: float | None = None

    def __call__(self, opening: float) -> float:
        """The opening to be reached, 0 to 1 -> what is sent in this step."""
        change = 0.0 if self._before is None else self._before - opening
        self._before = opening
        if abs(change) > 0.5 and not self._left:
            self._left, self._change = self._steps, change
        if not self._left:
            return change
        self._left -= 1
        return self._change
