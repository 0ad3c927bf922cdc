"""`vla stats`: normalisation statistics of what a model learns from shards, kept beside them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.commands.check import kind_of
from vla.errors import StatsMissing, UserError

if TYPE_CHECKING:
    from vla.data.mixture import Mixture
    from vla.embodiment import Embodiment
    from vla.normalize import RobotStats, Stats

SUMMARY = "Compute normalisation statistics of shards for an embodiment."
EXAMPLES = """
vla stats data/demo/sawyer --embodiment metaworld_sawyer
vla stats data_mixtures/demo.yaml --embodiment metaworld_sawyer --json
vla stats data/my_robot --embodiment my_robot.py
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="dataset folder or mixture .yaml")
    parser.add_argument("--embodiment", required=True, help="a built-in robot, or a .py file that defines EMBODIMENT")
    parser.add_argument("--data-root", type=Path, help="folder of the datasets that a mixture names (default: $VLA_DATA, else data)")
    parser.add_argument("--val-fraction", type=float, help="episodes left out (default: the mixture's own, else 0.02)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    from vla.data.statistics import compute_stats, stats_path
    from vla.embodiment import load_embodiment

    robot = load_embodiment(args.embodiment)
    mixture = _open(args)
    found = compute_stats(mixture, {robot.name: robot}, save=True)
    if robot.name not in found:
        have = {s.dataset.info.embodiment["name"] for s in mixture.sources if s.dataset.info.embodiment}
        raise StatsMissing(f"{args.path}: no actions of '{robot.name}'; its robots are: {', '.join(sorted(have)) or 'none'}")
    stats = found[robot.name]
    if args.json:
        print(json.dumps({"key": stats.key.to_json(), "state": _rows(stats, robot, "state"), "action": _rows(stats, robot, "action")}))
        return 0
    _print_tables(stats, robot)
    for source in mixture.sources:
        path = stats_path(source.dataset, robot, mixture.val_fraction)
        if path.is_file():
            print(f"kept in {path}")
    return 0


def _open(args: argparse.Namespace) -> Mixture:
    from dataclasses import replace

    from vla.data.mixture import Mixture

    kind = kind_of(args.path)
    if kind not in ("dataset", "mixture"):
        raise UserError(f"{args.path} is a {kind}; statistics are of a dataset folder or a mixture")
    mixture = Mixture.of([args.path]) if kind == "dataset" else Mixture.load(args.path, args.data_root)
    return mixture if args.val_fraction is None else replace(mixture, val_fraction=args.val_fraction)


def _rows(stats: RobotStats, robot: Embodiment, kind: str) -> list[dict[str, Any]]:
    """One row per dimension; `degenerate`: too thin to be a scale, see `vla.normalize.Normalizer`."""
    from vla.normalize import Normalizer, dimension_names

    part: Stats = getattr(stats, kind)
    if not part.width:
        return []
    thin = Normalizer.fit(part).degenerate
    columns = {
        "min": part.min_A,
        "q01": part.quantile(0.01),
        "median": part.quantile(0.5),
        "q99": part.quantile(0.99),
        "max": part.max_A,
        "mean": part.mean_A,
        "std": part.std_A,
    }
    return [
        {"name": name, **{key: float(values[i]) for key, values in columns.items()}, "degenerate": i in thin}
        for i, name in enumerate(dimension_names(getattr(robot, kind)))
    ]


def _print_tables(stats: RobotStats, robot: Embodiment) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    key = stats.key
    for kind, part in (("state", stats.state), ("action", stats.action)):
        if not part.width:  # a robot without proprioception
            continue
        about = f"{key.embodiment}: {kind}, {part.count:,} rows, quantiles within {100 * part.rank_error():.2f} percentile ranks"
        if kind == "action":
            about += f"\nencoded as {key.frames}, {key.horizon} steps at {key.rate_hz} Hz"
        rows = _rows(stats, robot, kind)
        table = Table(
            Column("dimension", no_wrap=True), *[name for name in rows[0] if name not in ("name", "degenerate")], "note", title=about
        )
        for row in rows:
            numbers = [f"{value:.4g}" for name, value in row.items() if name not in ("name", "degenerate")]
            table.add_row(row["name"], *numbers, "nearly constant" if row["degenerate"] else "")
        Console().print(table)
