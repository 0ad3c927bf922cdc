"""`vla eval`: a checkpoint (or a baseline) in closed loop in a simulator."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vla import arguments

if TYPE_CHECKING:
    from vla.evaluate.result import EvalResult
    from vla.evaluate.runner import Progress

SUMMARY = "Evaluate a checkpoint in closed loop in a simulator."
EXAMPLES = """
vla eval runs/sawyer --suite metaworld-objects --episodes 40 --json runs/sawyer/eval.json
vla eval runs/sawyer --suite metaworld-heldout --tasks coffee-button --video runs/sawyer/videos
vla eval expert --suite fetch --episodes 20
vla eval runs/sawyer --suite metaworld-mt50 --shard 1/4 --json part1.json
vla eval runs/sawyer --suite metaworld-objects --probe no-language --json no-language.json --html no-language.html
vla eval runs/better --suite metaworld-objects --against runs/sawyer/eval.json --json better.json
vla eval runs/sawyer --suite metaworld-objects --samples 8 --value runs/sawyer/value.safetensors
vla eval runs/sawyer --suite metaworld-objects --samples 4 --agree 0.1
vla eval runs/sawyer --suite metaworld-objects --evaluations 2 --json two.json
vla eval runs/libero --suite libero-spatial --sim-python ~/libero/bin/python
"""


PROBES = ("no-language", "no-vision", "swapped-instruction", "camera-moved", "object-perturbed", "background", "latency")
"""Named here as well, so that `--help` need not import numpy."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="CKPT", help="checkpoint folder, or a baseline: random, hold, expert (the scripted one)")
    arguments.add_suite(parser)
    arguments.add_tasks(parser)
    parser.add_argument("--episodes", type=int, help="per task (default: 40, or what the suite's published protocol has)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the episodes; the same seed pairs two policies (default: 0)")
    arguments.add_execute(parser)
    parser.add_argument(
        "--ensemble",
        metavar="HOW",
        help="overlapping chunks: temporal:0.01 (ACT's weights), adaptive:0.1:7 (CogACT's), or realtime (continue the last)",
    )
    parser.add_argument(
        "--probe", metavar="WHAT", help="change one thing and say so: " + ", ".join(PROBES) + "; some with an amount, as latency=0.2"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="chunks drawn for each observation, for --value and --agree")
    parser.add_argument("--value", type=Path, metavar="FILE", help="chooses among them: what `vla train-value` learned for this checkpoint")
    parser.add_argument(
        "--agree", type=float, metavar="SPREAD", help="execute a chunk only as far as they spread by less, such as 0.1 (1: half the range)"
    )
    parser.add_argument(
        "--self-guidance",
        type=float,
        default=0.0,
        metavar="W",
        help="lead a denoiser away from what its last observation asked for",
    )
    parser.add_argument("--shard", metavar="K/N", help="run the K-th of N parts; `vla merge` puts their results together")
    parser.add_argument("--against", type=Path, metavar="FILE", help="another policy's result: stop as soon as one is shown to be better")
    parser.add_argument("--level", type=float, default=0.05, help="chance of --against declaring a difference that is none (default: 0.05)")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes, one thread each; changes no result (default: 2)")
    parser.add_argument("--slots", type=int, default=4, help="episodes at once per process; changes no result (default: 4)")
    parser.add_argument("--image-size", type=int, help="pixels, square (default: what the checkpoint's backbone sees)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="a simulator silent for longer is killed (default: 60)")
    parser.add_argument("--video", type=Path, metavar="DIR", help="animations of the first successes and failures of each task")
    parser.add_argument("--videos", type=int, default=1, metavar="N", help="so many of each outcome (default: 1)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="raw rows, intervals, versions; the same command takes up a run that was killed",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page: rates, videos, raw rows, how it was made")
    arguments.add_sim_python(parser)
    arguments.add_device(parser)
    parser.add_argument("--optimize", action="store_true", help="quicker calls, whose actions differ by rounding (docs/performance.md)")
    arguments.add_evaluations(parser)
    arguments.add_plugin(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 whatever the success rate; 1 if the checkpoint is damaged or the simulator cannot run here."""
    from vla.errors import UserError
    from vla.evaluate.journal import discard
    from vla.evaluate.pages import evaluation_page
    from vla.evaluate.report import write_report
    from vla.evaluate.result import write_result

    if not args.timeout > 0:
        raise UserError(f"--timeout is {args.timeout:g} s; give a time that a step of the simulator can take, such as 60")
    arguments.load_plugins(args)
    result = _evaluate_with_bar(args)
    print_result(result)
    if args.json:
        write_result(args.json, result)
        discard(args.json)
    if args.html:
        write_report(args.html, evaluation_page(result))
    if not any(row.measured for row in result.rows):
        print(f"error: nothing was measured: in every episode the simulator {result.rows[0].reason}", file=sys.stderr)
        return 1
    return 0


def print_result(result: EvalResult) -> None:
    """The table of successes, and what a reader must know beside it."""
    from rich.console import Console
    from rich.table import Table

    scored = any(row.reward not in (0.0, 1.0) for row in result.rows)  # a benchmark's own score, such as how many tasks of five
    table = Table("task", "successes", "rate", "95% interval", "mean steps", *["mean score"] * scored, "failures")
    summed = [
        (f"{name} tasks", rate, [row for row in result.rows if result.group_of.get(row.task) == name])
        for name, rate in result.groups.items()
    ]
    each = [(name, rate, [row for row in result.rows if row.task == name]) for name, rate in result.tasks.items()]
    for name, rate, rows in [*each, *summed, ("all", result.pooled, result.rows)]:
        if len(table.rows) in (len(each), len(each) + len(summed)):
            table.add_section()
        reasons = {reason: sum(row.reason == reason for row in rows) for row in rows for reason in [row.reason] if not row.success}
        table.add_row(
            name,
            *rate.cells,
            f"{sum(row.steps for row in rows) / len(rows):.0f}",
            *[f"{sum(row.reward for row in rows) / len(rows):.2f}"] * scored,
            ", ".join(f"{count} {reason}" for reason, count in reasons.items()),
        )
    console = Console(soft_wrap=True)
    console.print(table)
    if result.mean_over_groups is not None:
        console.print(f"mean over the {len(result.groups)} groups of tasks: {result.mean_over_groups:.1%}")
    if result.probe:
        console.print(f"probe {result.probe['spec']}: {result.probe['what']}")
    if result.stopping:
        end = result.stopping
        console.print(f"against {end['against']}: {end['verdict']} after {end['pairs']} of {end['planned']} pairs ({end['rule']})")
    for note in result.notes:
        console.print(f"note: {note}")
    if result.videos:
        console.print(f"{len(result.videos)} videos written")
    where = result.suite + (f", shard {result.shard}" if result.shard else "")
    per_minute = len(result.rows) / max(result.seconds, 1e-9) * 60
    console.print(
        f"{result.policy['name']} on {where}, seed {result.seed}: {len(result.rows)} episodes in {result.seconds:.0f} s "
        f"({per_minute:.0f} a minute), {result.cpu_seconds:.0f} CPU s"
    )


def _evaluate_with_bar(args: argparse.Namespace) -> EvalResult:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from vla.evaluate.probes import Probe
    from vla.evaluate.resolve import Sampling
    from vla.evaluate.result import read_result
    from vla.evaluate.runner import evaluate
    from vla.evaluate.shards import Shard
    from vla.evaluate.stopping import Rival
    from vla.execute.ensemble import ensemble_of

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    bars = Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))

    def show(progress: Progress) -> None:
        if progress.row is None:  # every argument has been understood
            bars.start()
            bars.add_task("starting", total=progress.total, rate="")
            return
        name = "making videos" if progress.done == progress.total and args.video else progress.row.task
        rate = f"{progress.successes / progress.done:.0%} success"
        bars.update(bars.task_ids[0], completed=progress.done, description=name, rate=rate)

    try:
        return evaluate(
            args.policy,
            args.suite,
            arguments.names(args.tasks),
            args.episodes,
            args.seed,
            execute=args.execute,
            ensemble=ensemble_of(args.ensemble) if args.ensemble is not None else None,
            probe=Probe.of(args.probe) if args.probe is not None else None,
            sampling=Sampling(args.samples, args.value, args.agree, args.self_guidance),
            shard=Shard.of(args.shard) if args.shard is not None else None,
            rival=Rival(str(args.against), read_result(args.against), args.level) if args.against else None,
            journal=args.json,
            python=args.sim_python,
            workers=args.workers,
            slots=args.slots,
            image_size=args.image_size,
            video=args.video,
            videos_per_outcome=args.videos,
            timeout_s=args.timeout,
            device=args.device,
            optimize=args.optimize,
            evaluations=args.evaluations,
            progress=show,
            command=_command(args),
        )
    finally:
        if bars.tasks:  # where none was started, stopping prints an empty line
            bars.stop()


def _command(args: argparse.Namespace) -> str:
    """The command that repeats this evaluation."""
    return shlex.join(["vla", "eval", args.policy, *arguments.options(args, leave_out=["policy"])])
