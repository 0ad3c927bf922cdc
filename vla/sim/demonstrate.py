"""One attempt of a scripted expert, recorded as an Episode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg

from vla.sim.env import SimEnv, Suite
from vla.types import Episode, Frames, Span


@dataclass(frozen=True)
class Attempt:
    """What became of one seed. `episode` is None where the expert failed. `steps` without the tail."""

    task: str
    seed: int
    success: bool
    steps: int
    episode: Episode | None = None
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Recorder:
    """How demonstrations of a suite are recorded: an image of each camera every `image_every` control steps, as JPEG."""

    suite: Suite
    image_every: int = 2
    jpeg_quality: int = 95

    def attempt(self, env: SimEnv, seed: int, noise_sd: float = 0.0) -> Attempt:
        """Runs the expert of `env` on one seed.

        With noise the executed command is clean + noise, and the label stays the clean one: the data then show how to come back
        (as DART, Laskey et al. 2017).
        """
        env.reset(seed=seed)
        expert, noise, rows = (
            env.expert(),
            ar1_noise(seed, noise_sd * env.noise_A, env.noise_decay),
            _Rows(self.suite, self.image_every, self.jpeg_quality),
        )
        success, success_steps, tail = False, 0, self.suite.task(env.task).tail
        while env.steps < env.max_steps or success:
            clean_A = expert()
            rows.add(env, clean_A)
            _, _, done, _, _ = env.step(clean_A + env.noise_scale() * next(noise))
            if done and not success:
                success, success_steps = True, env.steps
            if success and env.steps >= success_steps + tail:
                break
        if not success:
            return Attempt(env.task, seed, False, env.steps)
        info = {"task": env.task, "seed": seed, "success": True, "expert": "scripted", "noise_sd": noise_sd}
        return Attempt(env.task, seed, True, success_steps, self._episode(env, seed, rows, info))

    def _episode(self, env: SimEnv, seed: int, rows: _Rows, info: dict[str, Any]) -> Episode:
        robot, labelled, steps = self.suite.embodiment, self.suite.supervision != "none", len(rows.action)
        return Episode(
            id=episode_id(env.task, seed),
            embodiment=robot.name,
            rate_hz=env.embodiment.rate_hz,
            supervision=self.suite.supervision,
            instructions=(Span(env.instruction, 0, steps),),
            time_s=np.arange(steps) / float(env.embodiment.rate_hz),
            frames={role: Frames(np.array(rows.frame_steps), tuple(jpegs)) for role, jpegs in rows.jpeg.items()},
            state=np.array(rows.state) if labelled else None,
            action=rows.actions() if labelled else None,
            licence=self.suite.licence,
            source=self.suite.name,
            info=info,
        )


def episode_id(task: str, seed: int) -> str:
    """`<task>-<seed>`."""
    return f"{task}-{seed:06d}"


def ar1_noise(seed: int, sd_A: np.ndarray, decay: float) -> Iterator[np.ndarray]:
    """Stationary AR(1) noise of standard deviation `sd_A`, a function of the seed.

    It pushes the arm somewhere for a while, where white noise would average out.
    """
    rng = np.random.default_rng([seed, 1])
    noise_A = sd_A * rng.standard_normal(len(sd_A))
    while True:
        yield noise_A
        noise_A = decay * noise_A + np.sqrt(1 - decay**2) * sd_A * rng.standard_normal(len(sd_A))


class _Rows:
    """What was seen and done so far."""

    def __init__(self, suite: Suite, image_every: int, jpeg_quality: int) -> None:
        self._every, self._quality = image_every, jpeg_quality
        self._roles, self._tracks = suite.embodiment.cameras, suite.supervision == "tracks"
        self.state: list[np.ndarray] = []
        self.action: list[np.ndarray] = []
        self.frame_steps: list[int] = []
        self.jpeg: dict[str, list[bytes]] = {}

    def add(self, env: SimEnv, clean_A: np.ndarray) -> None:
        """Records one step: what the cameras and joints show now, and the expert's clean command."""
        if len(self.action) % self._every == 0:
            self.frame_steps.append(len(self.action))
            images = env.cameras()
            for role in self._roles:
                jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(images[role]), quality=self._quality, colorsubsampling="444")
                self.jpeg.setdefault(role, []).append(jpeg)
        self.state.append(env.tracks() if self._tracks else env.state().copy())
        self.action.append(env.embodiment.limit(clean_A))

    def actions(self) -> np.ndarray:
        """float64 (steps, A): the commands; of tracks, where the points are one step later (at the end, still there)."""
        return np.array([*self.state[1:], self.state[-1]]) if self._tracks else np.array(self.action)
