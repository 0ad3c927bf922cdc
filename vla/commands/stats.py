"""`vla stats`: normalisation statistics of what a model learns from shards, kept beside them; and two of them compared."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla import arguments
from vla.commands.check import kind_of
from vla.errors import StatsMissing, UnknownName, UserError

if TYPE_CHECKING:
    from vla.data.mixture import Mixture
    from vla.data.stats_diff import Shift
    from vla.embodiment import Embodiment
    from vla.normalize import RobotNormalizer, RobotStats, Stats

SUMMARY = "Compute normalisation statistics of shards for an embodiment, or compare two."
EXAMPLES = """
vla stats data/demo/sawyer --embodiment metaworld_sawyer
vla stats data_mixtures/demo.yaml --embodiment metaworld_sawyer --json
vla stats data/my_robot --embodiment my_robot.py
vla stats runs/demo/pretrain --embodiment metaworld_sawyer
vla stats runs/demo/pretrain --diff data/new --embodiment metaworld_sawyer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="dataset folder, mixture .yaml, checkpoint, or a statistics file (.json)")
    parser.add_argument("--embodiment", help="a built-in robot, or a .py file that defines EMBODIMENT; of a checkpoint, one of its own")
    parser.add_argument("--diff", type=Path, metavar="OTHER", help="compare with these; exit 1 if a dimension has moved far")
    arguments.add_data_root(parser)
    parser.add_argument("--val-fraction", type=float, help="episodes left out (default: the mixture's own, else 0.02)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 where `--diff` flags a dimension, else 0."""
    robot = _robot(args)
    if args.diff is not None:
        return _diff(args, robot)
    if _kind(args.path) == "checkpoint":
        return _show_normalizer(args, robot)
    stats, kept = _stats(args.path, args, robot)
    if args.json:
        print(json.dumps({"key": stats.key.to_json(), "state": _rows(stats, robot, "state"), "action": _rows(stats, robot, "action")}))
        return 0
    _print_tables(stats, robot)
    for path in kept:
        print(f"kept in {path}")
    return 0


def _kind(path: Path) -> str:
    if path.is_file() and path.suffix == ".json":
        return "statistics"
    kind = kind_of(path.parent if path.name == "config.json" else path)
    if kind not in ("dataset", "mixture", "checkpoint"):
        raise UserError(f"{path} is a {kind}; statistics are of a dataset folder, a mixture, a checkpoint or a statistics file")
    return kind


def _robot(args: argparse.Namespace) -> Embodiment:
    """The robot that is meant: by value from a checkpoint where one is given, so that its own frames and horizon are compared."""
    from vla.embodiment import load_embodiment

    for path in (args.path, args.diff):
        if path is not None and _kind(path) == "checkpoint":
            robots = _checkpoint(path)[0]
            if not args.embodiment and len(robots) > 1:
                raise UserError(f"vla stats: {path} is of several robots; choose one with --embodiment: {', '.join(robots)}")
            name = args.embodiment or next(iter(robots), "")
            if name not in robots:
                raise UnknownName("embodiment", name, robots, f"Give one of {path} with --embodiment.")
            return robots[name]
    if not args.embodiment:
        robots = [] if _kind(args.path) == "statistics" else _robots(_open(args.path, args))
        have = f" (these data are of: {', '.join(robots)})" if robots else ""
        raise UserError(f"vla stats: give --embodiment: a built-in robot, or a .py file that defines EMBODIMENT{have}")
    return load_embodiment(args.embodiment)


def _checkpoint(path: Path) -> tuple[dict[str, Embodiment], dict[str, RobotNormalizer]]:
    """{robot: by value}, {robot: normaliser} of a checkpoint, whose bytes are checked first."""
    from vla.checkpoint import acting, verify_folder
    from vla.embodiment import Embodiment
    from vla.normalize import RobotNormalizer

    config = json.loads((verify_folder(acting(path)) / "config.json").read_text(encoding="utf-8"))
    if "normalizers" not in config:
        raise StatsMissing(f"{path} holds no policy, so it has no statistics")
    robots = {row["name"]: Embodiment.from_json(row) for row in config["embodiments"]}
    return robots, {name: RobotNormalizer.from_json(row) for name, row in config["normalizers"].items()}


def _stats(path: Path, args: argparse.Namespace, robot: Embodiment) -> tuple[RobotStats, list[Path]]:
    """(statistics of a dataset, mixture or file, the files in which they are kept)."""
    from vla.data.statistics import compute_stats, read_stats, stats_path

    if _kind(path) == "statistics":
        return read_stats(path), [path]
    mixture = _open(path, args)
    found = compute_stats(mixture, {robot.name: robot}, save=True)
    if robot.name not in found:
        raise StatsMissing(f"{path}: no actions of '{robot.name}'; its robots are: {', '.join(_robots(mixture)) or 'none'}")
    kept = [stats_path(source.dataset, robot, mixture.val_fraction) for source in mixture.sources]
    return found[robot.name], [file for file in kept if file.is_file()]


def _robots(mixture: Mixture) -> list[str]:
    """Names of the robots whose data these are."""
    return sorted({s.dataset.info.embodiment["name"] for s in mixture.sources if s.dataset.info.embodiment})


def _open(path: Path, args: argparse.Namespace) -> Mixture:
    from dataclasses import replace

    from vla.data.mixture import Mixture

    mixture = Mixture.of([path]) if _kind(path) == "dataset" else Mixture.load(path, args.data_root)
    return mixture if args.val_fraction is None else replace(mixture, val_fraction=args.val_fraction)


def _diff(args: argparse.Namespace, robot: Embodiment) -> int:
    """Exit code 1 where a dimension is flagged."""
    from vla.data.stats_diff import diff

    shifts = diff(_normalizer(args.path, args, robot), _normalizer(args.diff, args, robot), robot)
    flagged = [shift for shift in shifts if shift.flagged]
    if args.json:
        print(json.dumps({"embodiment": robot.name, "flagged": len(flagged), "dimensions": [shift.to_json() for shift in shifts]}))
    else:
        _print_diff(shifts, args, robot)
    return 1 if flagged else 0


def _normalizer(path: Path, args: argparse.Namespace, robot: Embodiment) -> RobotNormalizer:
    """What would normalise: a checkpoint's own, or one fitted as the checkpoint on the other side was (quantiles by default)."""
    from vla.normalize import RobotNormalizer

    if _kind(path) == "checkpoint":
        return _checkpoint(path)[1][robot.name]
    other = args.diff if path == args.path else args.path
    method = _checkpoint(other)[1][robot.name].action.method if other is not None and _kind(other) == "checkpoint" else "quantile"
    return RobotNormalizer.fit(_stats(path, args, robot)[0], robot, method)


def _print_diff(shifts: list[Shift], args: argparse.Namespace, robot: Embodiment) -> None:
    from rich.table import Column, Table

    from vla.tables import print_table

    title = f"{robot.name}: A {args.path}, B {args.diff}"
    table = Table("", *(Column(name, no_wrap=True) for name in ("dimension", "A", "B", "shift", "stretch")), "", title=title)
    for row in shifts:
        ranges = (f"{row.low_a:.3g} .. {row.high_a:.3g}", f"{row.low_b:.3g} .. {row.high_b:.3g}")
        table.add_row(row.kind, row.name, *ranges, f"{row.shift:+.2f}", f"x{row.stretch:.2f}", ", ".join(_diff_notes(row)))
    print_table(table)
    count = sum(row.flagged for row in shifts)
    print(f"{count} of {len(shifts)} dimensions have moved (shift: of the centre, in half-ranges of A; stretch: B's range over A's)")


def _diff_notes(row: Shift) -> list[str]:
    return [text for text, holds in (("moved", row.flagged), ("nearly constant", row.constant)) if holds]


def _show_normalizer(args: argparse.Namespace, robot: Embodiment) -> int:
    from rich.table import Column, Table

    from vla.normalize import dimension_names
    from vla.tables import print_table

    normalizer = _checkpoint(args.path)[1][robot.name]
    rows = [
        {"kind": kind, "name": name, "low": o - s, "high": o + s, "degenerate": i in part.degenerate}
        for kind, part, space in (("state", normalizer.state, robot.state), ("action", normalizer.action, robot.action))
        for i, (name, o, s) in enumerate(zip(dimension_names(space), part.offset, part.scale, strict=True))
    ]
    if args.json:
        print(json.dumps({"key": normalizer.key.to_json(), "method": normalizer.action.method, "dimensions": rows}))
        return 0
    about = f"{robot.name}: the ranges that {args.path} normalises to -1..1 ({normalizer.action.method}), {normalizer.key.frames}"
    table = Table("", Column("dimension", no_wrap=True), "low", "high", "note", title=about)
    for row in rows:
        table.add_row(row["kind"], row["name"], f"{row['low']:.4g}", f"{row['high']:.4g}", "nearly constant" if row["degenerate"] else "")
    print_table(table)
    return 0


def _rows(stats: RobotStats, robot: Embodiment, kind: str) -> list[dict[str, Any]]:
    """One row per dimension; `degenerate`: too thin to be a scale, see `vla.normalize.Normalizer`; `outlier`: an extreme is far
    outside what nearly all rows hold."""
    import numpy as np

    from vla.data.doctor.values import OUTLIER
    from vla.normalize import Normalizer, dimension_names

    part: Stats = getattr(stats, kind)
    if not part.width:
        return []
    fitted = Normalizer.fit(part, tremble_A=robot.state.tremble_A if kind == "state" else 0.0)
    middle = part.quantile(0.5)
    half = (part.quantile(0.99) - part.quantile(0.01)) / 2
    far = np.maximum(part.max_A - middle, middle - part.min_A)
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
        {
            "name": name,
            **{key: float(values[i]) for key, values in columns.items()},
            "degenerate": i in fitted.degenerate,
            "outlier": bool(far[i] > OUTLIER * half[i] > 0),
        }
        for i, name in enumerate(dimension_names(getattr(robot, kind)))
    ]


FLAGS = ("name", "degenerate", "outlier")


def _print_tables(stats: RobotStats, robot: Embodiment) -> None:
    from rich.table import Column, Table

    from vla.tables import print_table

    key = stats.key
    for kind, part in (("state", stats.state), ("action", stats.action)):
        if not part.width:  # a robot without proprioception
            continue
        about = f"{key.embodiment}: {kind}, {part.count:,} rows, quantiles within {100 * part.rank_error():.2f} percentile ranks"
        about += f", {part.dropped:,} rows left out (NaN or infinity)" if part.dropped else ""
        if kind == "action":
            about += f"\nencoded as {key.frames}, {key.horizon} steps at {key.rate_hz} Hz"
        rows = _rows(stats, robot, kind)
        table = Table(Column("dimension", no_wrap=True), *[name for name in rows[0] if name not in FLAGS], "note", title=about)
        for row in rows:
            numbers = [f"{value:.4g}" for name, value in row.items() if name not in FLAGS]
            notes = [text for flag, text in (("degenerate", "nearly constant"), ("outlier", "outlier")) if row[flag]]
            table.add_row(row["name"], *numbers, ", ".join(notes))
        print_table(table)
