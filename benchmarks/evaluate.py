"""Evaluation beside a plain synchronous gym loop: the same policy, episodes and chunks of 8, in Meta-World.

    python -m benchmarks.evaluate --json

The policy is `checkpoints/arms-small`. The loop stands below in full: one process, one environment, a picture of every camera at every
step because an observation has one, a chunk of 8 commands from one observation. It runs with torch's own number of threads or with one,
whichever a short trial finds faster. Runs take turns, and each figure is the median over the rounds.

`speedup`: the loop's seconds over those of `vla.evaluate` (two simulator processes and the policy's own, everything from their start on
included). `by_rendering`: what drawing only where the policy looks gives in that loop; `by_parallelism`: what processes and batches give
beyond it; their product is the speedup. `successes_*` of `episodes`: the same episodes by all of them; where these differ, it ends with 1.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

from benchmarks.command import ROOT, parser_of
from vla.evaluate.baselines import Actor
from vla.evaluate.batching import one_thread
from vla.evaluate.result import call_key, episode_seed
from vla.evaluate.runner import evaluate
from vla.sim.env import SimEnv
from vla.sim.suites import load_suite

CHECKPOINT = ROOT / "checkpoints" / "arms-small"
SUITE = "metaworld-objects"
TASKS = ("door-open", "drawer-open", "button-press-topdown", "faucet-open")
CHUNK, SIZE, SEED = 8, 64, 0


def plain_loop(policy: Actor, episodes: int, every_step: bool = True) -> int:
    """Successes. `every_step`: an observation with its pictures after each step, as gym environments give; else before each chunk."""
    suite, successes = load_suite(SUITE), 0
    for name in TASKS:
        env = suite.make(name, SIZE)
        successes += sum(plain_episode(policy, env, name, episode, every_step) for episode in range(episodes))
        env.close()
    return successes


def plain_episode(policy: Actor, env: SimEnv, task: str, episode: int, every_step: bool) -> bool:
    """Whether it succeeds; from the seeds that `vla eval` gives it."""
    env.reset(seed=episode_seed(SEED, task, episode))
    observation = env.observation()
    success, step = False, 0
    while not success and step < env.max_steps:
        if step % CHUNK == 0:
            if step and not every_step:
                observation = env.observation()
            (chunk,) = policy.act_batch([observation], [call_key(SEED, task, episode, step // CHUNK)])
        success = env.step(chunk.action_TA[step % CHUNK])[4]["success"]
        step += 1
        if every_step:
            observation = env.observation()
    return success


def project(policy: Actor, episodes: int) -> int:
    """Successes by the project's own evaluation."""
    return evaluate(policy, SUITE, TASKS, episodes, SEED, execute=CHUNK, image_size=SIZE, workers=2).pooled.successes


def timed(run: Callable[[], int], what: str) -> tuple[float, int]:
    """Seconds, and successes."""
    start = time.perf_counter()
    successes = run()
    seconds = time.perf_counter() - start
    print(f"{what}: {seconds:.1f} s, {successes} successes", file=sys.stderr, flush=True)
    return seconds, successes


def faster_with_one_thread(policy: Actor) -> bool:
    """Whether the plain loop is, over an episode of each task."""
    plain_loop(policy, 1, every_step=False)  # imports, compilations and caches
    several, _ = timed(lambda: plain_loop(policy, 1), "trial with torch's threads")
    with one_thread():
        one, _ = timed(lambda: plain_loop(policy, 1), "trial with one thread")
    return one < several


def main() -> int:
    """Prints a line for each figure, or one JSON object; exit code 1 if the variants differ in successes."""
    parser = parser_of(__doc__)
    parser.add_argument("--episodes", type=int, default=40, help="of each of four tasks")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    from vla.policy import Policy

    policy = Policy.load(CHECKPOINT)
    alone = faster_with_one_thread(policy)
    variants = {
        "loop": lambda: plain_loop(policy, args.episodes),
        "loop_rendering_at_replanning": lambda: plain_loop(policy, args.episodes, every_step=False),
        "project": lambda: project(policy, args.episodes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    successes: dict[str, set[int]] = {name: set() for name in variants}
    for turn in range(args.rounds):
        for name, run in variants.items():
            with one_thread() if alone else nullcontext():
                took, succeeded = timed(run, f"round {turn + 1}: {name}")
            seconds[name].append(took)
            successes[name].add(succeeded)
    loop_s, lazy_s, ours_s = (median(found) for found in seconds.values())
    episodes = args.episodes * len(TASKS)
    result = {
        "speedup": loop_s / ours_s,
        "by_rendering": loop_s / lazy_s,
        "by_parallelism": lazy_s / ours_s,
        **{f"successes_{name}": max(found) for name, found in successes.items()},
        "same_success": len(set.union(*successes.values())) == 1,
        "episodes": episodes,
        **{f"seconds_{name}": median(found) for name, found in seconds.items()},
        "loop_with_one_thread": alone,
        "episodes_per_minute": 60 * episodes / ours_s,
        "rounds": args.rounds,
    }
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in result.items()}
    print(json.dumps(rounded) if args.json else "\n".join(f"{name}: {value}" for name, value in rounded.items()))
    return 0 if result["same_success"] else 1


if __name__ == "__main__":
    sys.exit(main())
