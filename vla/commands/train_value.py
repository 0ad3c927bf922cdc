"""`vla train-value`: a value of a checkpoint's chunks, from rollouts, by which `vla eval --samples` chooses among several."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla import arguments

SUMMARY = "Learn from a checkpoint's rollouts which of its samples to execute."
EXAMPLES = """
vla train-value runs/sawyer --suite metaworld-objects --episodes 100 --out runs/sawyer/value.safetensors
"""
HELD_OUT = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, metavar="CKPT", help="checkpoint folder, of a decoder that samples")
    arguments.add_suite(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write the value")
    arguments.add_tasks(parser)
    parser.add_argument("--episodes", type=int, default=40, help="rollouts per task, of seeds that no evaluation draws (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the episodes, and the order of learning (default: 0)")
    arguments.add_execute(parser)
    parser.add_argument("--steps", type=int, default=1000, help="of learning (default: 1000)")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes (default: 2)")
    arguments.add_sim_python(parser)
    arguments.add_device(parser)
    arguments.add_plugin(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if the simulator cannot run here; 2 if there is nothing to learn from."""
    from rich.console import Console

    from vla.evaluate.rehearsal import rehearse
    from vla.execute.value import explained, learn

    arguments.load_plugins(args)
    tasks = arguments.names(args.tasks)
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
    if share is None:
        print(f"{args.out}: how much it explains is not known: all held-out episodes came to the same end. Give more --episodes")
    else:
        print(f"{args.out}: explains {share:.0%} of the returns of held-out episodes (0% says no more than their mean)")
    return 0
