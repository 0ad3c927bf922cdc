"""`vla collect`: a scripted expert in a simulator -> shards."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vla import arguments
from vla.errors import UserError

if TYPE_CHECKING:
    from vla.sim.collect import CollectReport, Plan

SUMMARY = "Record demonstrations of scripted experts in a simulator as shards."
EXAMPLES = """
vla collect --suite metaworld-objects --episodes 50 --noise-share 0.5 --out data/sawyer
vla collect --suite fetch --tasks reach,lift --episodes 20 --out data/fetch
vla collect --suite metaworld-video --episodes 10 --out data/video
vla collect --list
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", help="name of a suite, or a .py file that defines SUITE (its code is run)")
    parser.add_argument("--list", action="store_true", help="list suites and tasks, and leave")
    arguments.add_tasks(parser)
    parser.add_argument("--episodes", type=int, default=25, help="successful demonstrations per task (default: 25)")
    parser.add_argument("--out", type=Path, help="folder of the new dataset")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes, one thread each (default: 2)")
    parser.add_argument("--image-size", type=int, default=64, help="pixels, square (default: 64)")
    parser.add_argument("--image-every", type=int, default=2, help="control steps from image to image (default: 2)")
    parser.add_argument("--jpeg-quality", type=int, default=95, help="default: 95")
    parser.add_argument("--seed", type=int, default=100_000, help="first; below 2**30 where those of evaluations begin (default: 100000)")
    parser.add_argument("--noise-share", type=float, default=0.0, help="share of noise-injected demonstrations (default: 0)")
    parser.add_argument("--attempts", type=int, default=3, help="at most this many per wanted episode (default: 3)")
    parser.add_argument("--resume", action="store_true", help="keep the complete shards of an interrupted run")


def run(args: argparse.Namespace) -> int:
    """Exit code 0, or 1 if a task ran out of attempts (its successes are kept)."""
    if args.list:
        _list_suites()
        return 0
    if not args.suite or not args.out:
        raise UserError("vla collect: give --suite and --out (or --list)")
    if args.workers < 1:
        raise UserError(f"{args.workers} workers; give at least 1")
    from vla.sim.collect import Plan

    plan = Plan(
        suite=args.suite,
        episodes=args.episodes,
        tasks=tuple(arguments.names(args.tasks)),
        seed=args.seed,
        noise_share=args.noise_share,
        image_size=args.image_size,
        image_every=args.image_every,
        jpeg_quality=args.jpeg_quality,
        attempts_per_episode=args.attempts,
    )
    report = _collect_with_bar(plan, args)
    _print_report(report)
    return 1 if report.missing else 0


def _collect_with_bar(plan: Plan, args: argparse.Namespace) -> CollectReport:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from vla.sim.collect import collect

    console, start, tenths = Console(stderr=True), time.monotonic(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("starting", total=plan.episodes * len(plan.tasks))

        def show(done: int, wanted: int, task: str) -> None:
            nonlocal tenths
            seconds = time.monotonic() - start
            bars.update(bar, completed=done, description=f"{task}, {done / seconds:.1f} episodes/s")
            if not console.is_terminal and done * 10 // wanted > tenths:  # a log gets a line at every tenth
                tenths = done * 10 // wanted
                left_s = seconds * (wanted - done) / done
                console.print(f"{done}/{wanted} episodes, {done / seconds:.1f}/s, {left_s:.0f} s left", highlight=False)

        return collect(plan, args.out, args.workers, show, args.resume)


def _print_report(report: CollectReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "episodes", "attempts", "yield", "mean steps", "CPU s")
    for row in report.yields:
        share = row.successes / max(row.attempts, 1)
        steps = f"{row.steps / row.successes:.0f}" if row.successes else "-"
        table.add_row(row.task, str(row.successes), str(row.attempts), f"{share:.0%}", steps, f"{row.cpu_s:.1f}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for task, count in report.missing.items():
        console.print(f"warning: {task} lacks {count} of {report.wanted} episodes: attempts ran out; raise --attempts")
    console.print(f"{report.episodes} episodes in {report.seconds:.0f} s ({report.cpu_s:.0f} CPU s) -> {report.folder}")


def _list_suites() -> None:
    from rich.console import Console

    from vla.sim.suites import load_suite, suite_names

    console = Console(soft_wrap=True)
    for name in suite_names():
        suite = load_suite(name)
        console.print(f"[bold]{name}[/bold]  {suite.summary} ({suite.embodiment.name})")
        console.print("    " + ", ".join(task.name for task in suite.tasks))
