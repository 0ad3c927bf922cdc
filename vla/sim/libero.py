"""LIBERO (Liu et al. 2023) as OpenVLA evaluates on it (`experiments/robot/libero`, whose scores later work compares with).

Episode i starts from the benchmark's i-th start state and waits for 10 steps with the gripper open; pictures of 256 px are turned by
180 degrees, go through JPEG, are resized by Lanczos and cropped to the middle 0.9 of their area; the gripper is opened or shut, nothing
between. Pictures are drawn only where a policy looks, which changes none of them.

One deviation: OpenVLA seeds a task's simulation once, with 0, and what a reset draws then (where fixtures stand, which no start state
holds) depends on the episodes before it. Here episode i is seeded with i, so that it is the same in every order, shard and resumed run.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np

from vla.embodiments.libero_panda import EMBODIMENT
from vla.errors import UserError
from vla.sim.env import SimEnv, Suite, Task
from vla.sim.external import centre_crop, jpeg_round_trip, lanczos, need

MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""The longest training demonstration of each, and some more (OpenVLA)."""
TRIALS = 50
_IDLE_STEPS, _PIXELS = 10, 256
_IDLE = [0.0] * 6 + [-1.0]
_VIEWS = {"third_person": "agentview", "wrist": "robot0_eye_in_hand"}
INSTALL = "Install LIBERO from its repository (Lifelong-Robot-Learning/LIBERO) with its assets."


def suite(benchmark: str) -> Suite:
    """Its tasks by their number in the benchmark; each one's words come from LIBERO when it is made."""
    count = 90 if benchmark == "libero_90" else 10
    options = {"benchmark": benchmark, "crop": 0.9, "jpeg": True}
    tasks = tuple(
        Task(f"task-{i:02d}", "as libero words it", _make, MAX_STEPS[benchmark], layouts=TRIALS, options={**options, "number": i})
        for i in range(count)
    )
    name = benchmark.replace("_", "-")
    return Suite(
        name, f"LIBERO's {benchmark} by OpenVLA's protocol (LIBERO has to be there)", EMBODIMENT, tasks, licence="MIT", episodes=TRIALS
    )


def _make(task: Task, image_size: int) -> SimEnv:
    return LiberoEnv(task, image_size)


class LiberoEnv(SimEnv):
    """Options: `benchmark` and `number` choose the task; `crop` (share of the area, None for all of it) and `jpeg` the pictures."""

    def __init__(self, task: Task, image_size: int) -> None:
        need("libero.libero", "LIBERO", INSTALL)
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs.env_wrapper import ControlEnv

        super().__init__(task, EMBODIMENT, image_size, noise_A=[1, 1, 1, 0.3, 0.3, 0.3, 0])
        self._options = task.options
        tasks = benchmark.get_benchmark_dict()[task.options["benchmark"]]()
        chosen = tasks.get_task(task.options["number"])
        self.instruction = chosen.language
        with _arrays_in_pickles():
            self._start_states = tasks.get_task_init_states(task.options["number"])
        bddl = os.path.join(get_libero_path("bddl_files"), chosen.problem_folder, chosen.bddl_file)
        # OffScreenRenderEnv without its pictures at every step.
        self._env = ControlEnv(
            bddl_file_name=bddl,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=True,
            camera_heights=_PIXELS,
            camera_widths=_PIXELS,
        )
        self._seen: dict[str, Any] = {}

    def cameras(self) -> dict[str, np.ndarray]:
        return {role: self._processed(self._draw(camera)) for role, camera in _VIEWS.items()}

    def state(self) -> np.ndarray:
        keys = ("robot0_joint_pos", "robot0_gripper_qpos")
        turn = axis_angle(np.asarray(self._seen["robot0_eef_quat"], dtype=np.float64))
        return np.concatenate([self._seen["robot0_eef_pos"], turn, *(self._seen[key] for key in keys)]).astype(np.float64)

    def close(self) -> None:
        self._env.close()

    def _start(self, seed: int) -> None:
        if seed >= len(self._start_states):
            raise UserError(f"LIBERO has {len(self._start_states)} start states for this task; give --episodes {len(self._start_states)}")
        self._env.seed(seed)  # numpy's generator, which the whole process shares: reset draws from it even where the start state is given
        self._env.reset()
        self._seen = self._env.set_init_state(self._start_states[seed])
        for _ in range(_IDLE_STEPS):  # objects fall into place
            self._seen, _, _, _ = self._env.step(_IDLE)

    def _advance(self, command_A: np.ndarray) -> bool:
        gripper = -np.sign(2 * command_A[6] - 1)  # robosuite: -1 opens
        self._seen, _, done, _ = self._env.step([*command_A[:6].tolist(), float(gripper)])
        return bool(done)

    def _draw(self, camera: str) -> np.ndarray:
        image = self._env.sim.render(camera_name=camera, width=_PIXELS, height=_PIXELS)
        return np.ascontiguousarray(image[::-1, ::-1])

    def _processed(self, image: np.ndarray) -> np.ndarray:
        image = lanczos(jpeg_round_trip(image) if self._options["jpeg"] else image, self.image_size)
        return image if self._options["crop"] is None else centre_crop(image, self._options["crop"])


def axis_angle(quat_xyzw: np.ndarray) -> np.ndarray:
    """robosuite's `quat2axisangle`: the angle is 0 to 2 pi, so that a quaternion and its negative differ. The data have it so, and taking
    the shorter turn instead costs tens of points."""
    w = np.clip(quat_xyzw[3], -1.0, 1.0)
    length = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(length, 0.0) else quat_xyzw[:3] * 2.0 * np.arccos(w) / length


def _arrays_in_pickles() -> contextlib.AbstractContextManager[object]:
    """LIBERO stores start states as pickled arrays, which torch 2.6 and newer read only if arrays are declared harmless."""
    import torch

    if not hasattr(torch.serialization, "safe_globals"):
        return contextlib.nullcontext()
    rebuild = np.zeros(0).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    allowed = [np.ndarray, np.dtype, type(np.dtype(np.float64)), *((rebuild, name) for name in names)]
    return torch.serialization.safe_globals(allowed)
