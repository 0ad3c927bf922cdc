"""`vla compare`: is A better than B, or is it luck?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla.evaluate.compare import Compared

SUMMARY = "Compare two evaluations, paired where their seeds match."
EXAMPLES = """
vla compare runs/finetuned.json runs/scratch.json
vla compare runs/finetuned.json runs/scratch.json --json runs/comparison.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A.json", help="what `vla eval --json` wrote")
    parser.add_argument("b", type=Path, metavar="B.json", help="the other one, of the same suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there as well")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 whatever the difference."""
    from vla.evaluate.compare import compare
    from vla.evaluate.result import read_result

    compared = compare(read_result(args.a), read_result(args.b))
    _print(compared, str(args.a), str(args.b))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"kind": "comparison", "a": str(args.a), "b": str(args.b), **asdict(compared)}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def _print(compared: Compared, name_a: str, name_b: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "A", "B", "only A", "only B", "A - B", "95%", "p")
    for row in [*compared.tasks, compared.pooled]:
        if row.task == "all":
            table.add_section()
        result = row.comparison
        table.add_row(
            row.task,
            f"{row.successes_a}/{row.episodes_a}",
            f"{row.successes_b}/{row.episodes_b}",
            "-" if row.only_a is None else str(row.only_a),
            "-" if row.only_b is None else str(row.only_b),
            f"{100 * result.difference:+.1f}",
            f"{100 * result.interval.low:+.1f} to {100 * result.interval.high:+.1f}",
            f"{result.p_value:.3g}",
        )
    console = Console(soft_wrap=True)
    console.print(f"A = {name_a}\nB = {name_b}")
    console.print(table)
    pooled = compared.pooled.comparison
    console.print("Differences are in points of success rate, with their 95% interval.")
    console.print(f"p: {pooled.test}; interval: {pooled.interval_of}. The p-values of single tasks are not corrected for their number.")
    for note in compared.notes:
        console.print(f"note: {note}")
    console.print(_verdict(compared))


def _verdict(compared: Compared) -> str:
    interval = compared.pooled.comparison.interval
    if interval.low > 0:
        return "A is better than B over all tasks."
    if interval.high < 0:
        return "B is better than A over all tasks."
    return "No difference is shown: the interval over all tasks includes zero."
