"""Evaluation beside a plain synchronous gym loop: the same policy, episodes and chunks of 8, in Meta-World.

    python benchmarks/evaluate.py --json

`speedup`: the loop's seconds over `vla.evaluate`'s (two simulator processes and the policy's own, everything from their start on included).
The loop stands below in full: one process, one environment, a picture of every camera at every step because an observation has one, a chunk
of 8 commands from one observation. `by_rendering`: what drawing only where the policy looks gives in that loop; `by_parallelism`: what
processes and batches give beyond it; their product is the speedup. `successes_*` of `episodes`: the same episodes by all three.

The policy is the tiny network at its own size with random weights, and 0.3 of its commands are added to the scripted expert's inside the
environment: so episodes succeed and fail, every outcome depends on every command, and no checkpoint has to be there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vla.evaluate.result import episode_seed, stable_hash
from vla.sim.env import Suite, Task
from vla.sim.metaworld import MetaWorldEnv
from vla.sim.suites import load_suite

TASKS = ("door-open", "drawer-open", "button-press-topdown", "faucet-open")
CHUNK, SIZE, SHARE = 8, 64, 0.3


class Assisted(MetaWorldEnv):
    """The expert drives, and the policy pulls at its arm."""

    def _start(self, seed: int) -> None:
        super()._start(seed)
        self._help = self.expert()

    def _advance(self, command_A: np.ndarray) -> bool:
        return super()._advance(self.embodiment.limit(self._help() + SHARE * command_A))


def assisted(task: Task, image_size: int) -> Assisted:
    return Assisted(task, image_size)


def suite() -> Suite:
    whole = load_suite("metaworld-objects")
    return replace(
        whole, name="assisted", spec=str(Path(__file__).resolve()), tasks=tuple(replace(whole.task(name), make=assisted) for name in TASKS)
    )


SUITE = suite()
"""What the simulator processes load from this file."""


def policy() -> Any:
    """The tiny network at its own size, with random weights."""
    import torch

    from vla.backbones.tiny import Tiny
    from vla.checkpoint import Contents
    from vla.decoders.parallel import Parallel
    from vla.model import Model
    from vla.normalize import Normalizer, RobotNormalizer, StatsKey
    from vla.policy import Policy

    robot = SUITE.embodiment
    unit = {size: Normalizer.identity(size, "random weights act in -1..1") for size in (robot.state.size, robot.action.size)}
    normalizer = RobotNormalizer(StatsKey.of(robot), unit[robot.state.size], unit[robot.action.size])
    contents = Contents(Model(Tiny(image_size=SIZE), Parallel()), (robot,), {robot.name: normalizer})
    torch.manual_seed(0)
    model = contents.build()
    with torch.no_grad():
        for parameter in model.parameters():  # outputs start at zero, which would pull at nothing
            parameter += 0.05 * torch.randn_like(parameter)
    return Policy(contents, model)


def plain_loop(acting: Any, episodes: int, every_step: bool) -> int:
    """Successes. `every_step`: an observation with its pictures after each step, as gym environments give; else before each chunk."""
    successes = 0
    for name in TASKS:
        env = SUITE.make(name, SIZE)
        for episode in range(episodes):
            env.reset(seed=episode_seed(0, name, episode))
            observation = env.observation()
            success, step = False, 0
            while not success and step < env.max_steps:
                if step % CHUNK == 0:
                    if step and not every_step:
                        observation = env.observation()
                    key = stable_hash("call", 0, name, episode, step // CHUNK)
                    (chunk,) = acting.act_batch([observation], [key])
                success = env.step(chunk.action_TA[step % CHUNK])[4]["success"]
                step += 1
                if every_step:
                    observation = env.observation()
            successes += success
        env.close()
    return successes


def project(acting: Any, episodes: int) -> int:
    """Successes by the project's own evaluation."""
    from vla.evaluate.runner import evaluate

    return evaluate(acting, SUITE, episodes=episodes, execute=CHUNK, image_size=SIZE, workers=2).pooled.successes


def timed(run: Callable[[], int]) -> tuple[int, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=24, help="of each of four tasks")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    acting = policy()
    plain_loop(acting, 1, every_step=False)  # imports, compilations and caches
    loop, loop_s = timed(lambda: plain_loop(acting, args.episodes, every_step=True))
    lazy, lazy_s = timed(lambda: plain_loop(acting, args.episodes, every_step=False))
    ours, ours_s = timed(lambda: project(acting, args.episodes))
    result = {
        "speedup": loop_s / ours_s,
        "by_rendering": loop_s / lazy_s,
        "by_parallelism": lazy_s / ours_s,
        "successes_loop": loop,
        "successes_loop_rendering_at_replanning": lazy,
        "successes": ours,
        "episodes": args.episodes * len(TASKS),
        "seconds_loop": loop_s,
        "seconds": ours_s,
        "episodes_per_minute": 60 * args.episodes * len(TASKS) / ours_s,
    }
    rounded = {name: round(value, 3) for name, value in result.items()}
    print(json.dumps(rounded) if args.json else "\n".join(f"{name}: {value}" for name, value in rounded.items()))


if __name__ == "__main__":
    main()
