"""SimEnv: what every simulated robot looks like from outside. Suite and Task: what there is to do.

A policy sees `cameras()` and the state, never where objects are; only `expert()` reads the simulator's own state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from vla.embodiment import Embodiment
from vla.errors import UnknownName, UserError
from vla.sim.disturb import Disturbance, Recolouring
from vla.types import Observation, Supervision

if TYPE_CHECKING:
    import mujoco

IMAGE_SIZE = 64

EVALUATION_SEEDS = 2**30
"""Evaluations draw their seeds from here up to 2**31, collections from 0 up to here: what is evaluated was never trained on."""

State = dict[str, np.ndarray]
"""What gymnasium calls an observation: {"state": float64 (P,)}."""


@dataclass(frozen=True)
class Task:
    """One thing to do with one robot.

    `make(task, image_size)` builds its environment in the calling process. `max_steps`: control steps after which an attempt
    has failed. `noise_sd`: standard deviation of injected noise, in units of the environment's `noise_A` (0: experts of this
    task do not survive any). `tail`: steps recorded after success, so that a policy learns to finish the motion rather than to
    stop at the edge of the goal. `group`: how a benchmark groups its tasks. `layouts`: a benchmark's own numbered start states, which
    episodes then go through in order (0: the seed draws each one). `options`: the adapter's own settings.
    """

    name: str
    instruction: str
    make: Callable[[Task, int], SimEnv]
    max_steps: int
    noise_sd: float = 0.5
    tail: int = 0
    group: str = ""
    layouts: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Named tasks for one embodiment. `supervision`: "none" records video, without state or actions; "tracks" where the hand's points
    are seen, as the state and action of `embodiment`, which is then `human_tracks` and not what acts. `held_out`: kept
    from pretraining, so that success on it is zero-shot (or a fine-tune's). `spec`: the name or path that loads it again. `episodes`: of
    each task by default. `termination`: when an episode ends and what success is, where that differs from ours. `mujoco`: whether
    its environments are MuJoCo's, and so want a GL library."""

    name: str
    summary: str
    embodiment: Embodiment
    tasks: tuple[Task, ...]
    supervision: Supervision = "actions"
    held_out: bool = False
    licence: str = "Apache-2.0"
    spec: str = ""
    episodes: int = 40
    termination: str = ""
    mujoco: bool = True

    def task(self, name: str) -> Task:
        """By name; UnknownName lists those there are."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UnknownName(f"task of suite {self.name}", name, [task.name for task in self.tasks])

    def make(self, task: str, image_size: int = IMAGE_SIZE) -> SimEnv:
        """The environment of one task. Chooses this process's rendering backend first."""
        from vla.sim.rendering import configure_rendering

        chosen = self.task(task)
        if self.mujoco:
            configure_rendering()
        return chosen.make(chosen, image_size)


class SimEnv(gymnasium.Env):
    """A gymnasium environment: observations {"state": float64 (P,)}, actions in the embodiment's command space.

    An episode ends (`terminated`) at the first success, or (`truncated`) after `max_steps`. The same seed gives the same
    episode, whatever was run before. `noise_A`: size of a unit of injected noise, per number of the command (0 on grippers);
    `noise_decay`: how much of it is left after a step.
    """

    def __init__(self, task: Task, embodiment: Embodiment, image_size: int, noise_A: np.ndarray, noise_decay: float = 0.8) -> None:
        self.task, self.instruction, self.max_steps = task.name, task.instruction, task.max_steps
        self.embodiment, self.image_size, self.noise_A = embodiment, image_size, np.asarray(noise_A, dtype=np.float64)
        self.noise_decay = noise_decay
        low, high = embodiment.bounds()
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float64)
        state = gymnasium.spaces.Box(-np.inf, np.inf, (embodiment.state.size,), dtype=np.float64)
        self.observation_space = gymnasium.spaces.Dict({"state": state})
        self.steps = 0
        self.camera_turn_deg = 0.0
        """By how much a probe moves the cameras that are on no wrist."""
        self.orders = 0
        """Raised when an episode goes on with something else to do: whatever was planned is void then."""
        self.roles = embodiment.cameras
        """The cameras that somebody looks through."""
        self._recolouring: Recolouring | None = None

    def disturb(self, disturbance: Disturbance) -> None:
        """Changes the scene for a probe, from the next reset on. Raises UserError where the simulator is not MuJoCo's."""
        model = self.model()
        if model is None:
            raise UserError(f"the simulator of '{self.embodiment.name}' lets no probe change its {disturbance.part}; MuJoCo's do")
        if disturbance.part == "camera":
            self.camera_turn_deg = disturbance.amount
            return
        share = disturbance.amount if disturbance.part == "object" else 1.0
        self._recolouring = Recolouring(model, disturbance.part, share)
        if not self._recolouring.geoms:
            raise UserError(f"task '{self.task}' shows no {disturbance.part} whose colour a probe could change")

    def model(self) -> mujoco.MjModel | None:
        """The MuJoCo model, which probes change; None where there is none."""
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[State, dict[str, Any]]:
        """Starts the episode of this seed (without one, of a fresh seed)."""
        super().reset(seed=seed)
        self.steps = 0
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._start(seed)
        if self._recolouring is not None:
            self._recolouring.apply(seed)
        return {"state": self._checked_state()}, {"success": False}

    def step(self, action: np.ndarray) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """Sends one command (A,), clipped to the limits. A wrong width, NaN or infinity raises SchemaError."""
        success = self._advance(self.embodiment.limit(np.asarray(action, dtype=np.float64)))
        self.steps += 1
        return {"state": self._checked_state()}, float(success), success, self.steps >= self.max_steps, {"success": success}

    def observation(self, instruction: str | None = None) -> Observation:
        """What a policy sees now: every camera of `roles`, one frame of history. Renders."""
        images = {role: image[None] for role, image in self.cameras().items() if role in self.roles}
        return Observation(images, self._checked_state()[None], instruction or self.instruction, self.embodiment.name)

    def watched(self) -> Observation:
        """The observation without its images: proprioception alone, which costs no rendering."""
        return Observation({}, self._checked_state()[None], self.instruction, self.embodiment.name)

    @abstractmethod
    def cameras(self) -> dict[str, np.ndarray]:
        """Role -> uint8 (H, W, 3) of now, upright, at least those of `roles`. Renders, so call it only where somebody looks."""

    @abstractmethod
    def state(self) -> np.ndarray:
        """Proprioception, float64 (P,): the robot's own joints or end effector, never an object."""

    def tracks(self) -> np.ndarray:
        """The state of `human_tracks`: where the third person's camera sees the hand's points now, float64 (6,), pixels."""
        raise UserError(f"'{self.embodiment.name}' has no points of its hand declared, so it cannot be recorded as tracks")

    def noise_scale(self) -> float:
        """How much of the injected noise the task stands at this moment, 0 to 1: less where a hand is about to grasp."""
        return 1.0

    def expert(self) -> Callable[[], np.ndarray]:
        """A demonstrator for the episode that was just reset: call it once a step for a clean command (A,). UserError without one."""
        raise UserError(f"there is no scripted expert for '{self.task}' of '{self.embodiment.name}'")

    @abstractmethod
    def _start(self, seed: int) -> None:
        """Puts robot and objects where this seed has them."""

    @abstractmethod
    def _advance(self, command_A: np.ndarray) -> bool:
        """One control step; True if the task is done now."""

    def _checked_state(self) -> np.ndarray:
        state_P = self.state()
        self.embodiment.state.check(state_P, f"{self.embodiment.name} state")
        return state_P
