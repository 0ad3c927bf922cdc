"""`vla train-value`: a value of a checkpoint's chunks, from rollouts, by which `vla eval --samples` chooses among several."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Learn from a checkpoint's rollouts which of its samples to execute."
EXAMPLES = """
vla train-value runs/sawyer --suite metaworld-objects --episodes 100 --out runs/sawyer/value.safetensors
"""
HELD_OUT = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, metavar="CKPT", help="checkpoint folder, of a decoder that samples")
    parser.add_argument("--suite", required=True, help="name of a suite (`vla collect --list`), or a .py file that defines SUITE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write the value")
    parser.add_argument("--tasks", default="", help="comma-separated; all of the suite by default")
    parser.add_argument("--episodes", type=int, default=40, help="rollouts per task, of seeds that no evaluation draws (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the episodes, and the order of learning (default: 0)")
    parser.add_argument("--execute", type=int, help="commands of each chunk before the next one (default: 5/6 of it)")
    parser.add_argument("--steps", type=int, default=1000, help="of learning (default: 1000)")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes (default: 2)")
    parser.add_argument("--sim-python", metavar="PYTHON", help="interpreter of the environment that the simulator is installed in")
    parser.add_argument("--device", default="cpu", help="of the policy (default: cpu)")
    parser.add_argument("--plugin", action="append", default=[], help="module or .py file with parts the checkpoint uses; it is run")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if the simulator cannot run here; 2 if there is nothing to learn from."""
    from rich.console import Console

    from vla.config import load_plugin
    from vla.evaluate.rehearsal import rehearse
    from vla.execute.value import explained, learn

    for plugin in args.plugin:
        load_plugin(plugin)
    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    console = Console(stderr=True)
    with console.status("rollouts"):
        found = rehearse(
            args.policy,
            args.suite,
            tasks,
            args.episodes,
            args.seed,
            execute=args.execute,
            workers=args.workers,
            device=args.device,
            python=args.sim_python,
        )
    decisions, rate = found.decisions, found.result.pooled
    console.print(f"{len(decisions)} decisions of {rate.episodes} episodes, {rate.successes} of them successes")
    held_N = decisions.episode_N % HELD_OUT == 0
    tried = learn(decisions[~held_N], args.steps, args.seed)
    share = explained(tried, decisions[held_N])
    learn(decisions, args.steps, args.seed).save(args.out, found.policy)
    print(f"{args.out}: explains {share:.0%} of the returns of held-out episodes (0% says no more than their mean)")
    return 0
