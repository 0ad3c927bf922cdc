"""`vla compare`: is A better than B, or is it luck? And of many: which differ, and how do they rank?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla.evaluate.compare import Compared
    from vla.evaluate.ranking import Ranking
    from vla.evaluate.result import EvalResult

SUMMARY = "Compare evaluations, paired where their seeds match; rank more than two."
EXAMPLES = """
vla compare runs/finetuned.json runs/scratch.json
vla compare runs/finetuned.json runs/scratch.json --json runs/comparison.json
vla compare runs/a.json runs/b.json runs/c.json --html runs/ranking.html
vla compare runs/base.json runs/no-language.json runs/no-vision.json --html runs/probes.html
"""


LEVEL = 0.05
"""Of the exact test, and of the interval's 95%."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="+", metavar="A.json", help="what `vla eval --json` wrote: two or more, of one suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there as well")
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page: rates, comparison, videos, raw rows, how each was made")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 whatever the difference."""
    from vla.errors import UserError
    from vla.evaluate.compare import compare
    from vla.evaluate.ranking import rank
    from vla.evaluate.result import read_result

    if len(args.results) < 2:
        raise UserError("one result has nothing to be compared with; give two or more")
    if len(set(args.results)) != len(args.results):
        raise UserError(f"a result is named twice: {', '.join(map(str, args.results))}")
    results = {str(path): read_result(path) for path in args.results}
    facts: dict[str, Any]
    if len(results) == 2:
        (name_a, a), (name_b, b) = results.items()
        compared = compare(a, b)
        _print_pair(compared, name_a, name_b)
        facts = {"kind": "comparison", "a": name_a, "b": name_b, **asdict(compared)}
    else:
        ranking = rank(results)
        _print_ranking(ranking)
        facts = {"kind": "ranking", **asdict(ranking)}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    if args.html:
        _write_page(args.html, results)
    return 0


def _print_pair(compared: Compared, name_a: str, name_b: str) -> None:
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
    """Better is what both the interval and the exact test say is better: the interval's coverage is approximate."""
    found = compared.pooled.comparison
    sure = found.p_value < LEVEL
    if found.interval.low > 0 and sure:
        return "A is better than B over all tasks."
    if found.interval.high < 0 and sure:
        return "B is better than A over all tasks."
    p, what = f"p = {found.p_value:.2g}", "the interval over all tasks"
    if found.interval.low > 0 or found.interval.high < 0:
        return f"No difference is shown: {what} leaves zero out, but {p}. More episodes may show one."
    if sure:
        return f"No difference is shown: {p}, but {what} includes zero. More episodes may show one."
    return f"No difference is shown: {what} includes zero."


def _print_ranking(ranking: Ranking) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("policy", "successes", "rate", "95% interval", "letters", "Bradley-Terry", "95%")
    for row in ranking.policies:
        strength = "-" if row.strength is None else f"{row.strength:+.2f}"
        interval = "-" if row.interval is None else f"{row.interval.low:+.2f} to {row.interval.high:+.2f}"
        table.add_row(row.name, *row.rate.cells, row.letters, strength, interval)
    console = Console(soft_wrap=True)
    console.print(table)
    test = ranking.pairs[0].compared.pooled.comparison.test
    console.print(
        f"Policies that share a letter are not shown to differ ({test}, Holm's correction for {len(ranking.pairs)} pairs, level "
        f"{ranking.level:.2g}). Bradley-Terry: log-odds of winning an episode that only one of two solves, against the average."
    )
    for note in ranking.notes:
        console.print(f"note: {note}")


def _write_page(path: Path, results: dict[str, EvalResult]) -> None:
    from rich.console import Console

    from vla.evaluate.pages import compared_page
    from vla.evaluate.report import write_report

    write_report(path, compared_page(results))
    Console(soft_wrap=True).print(f"page: {path}")
