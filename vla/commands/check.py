"""`vla check`: is what lies at a path sound? What kind of thing it is follows from the path itself."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vla import arguments
from vla.errors import UserError

if TYPE_CHECKING:
    from vla.data.check import Report
    from vla.data.doctor.sample import Budget

SUMMARY = "Check shards, a mixture, a recipe or a checkpoint; exit 0 good, 1 damaged, 2 not understood."
EXAMPLES = """
vla check data/demo/sawyer
vla check data_mixtures/demo.yaml --data-root data --json
vla check runs/demo/pretrain
vla check exports/demo --verify
vla check runs/demo/pretrain --data data/my_robot
vla check data/large --quick --sample 100
vla check data/new --like data/trusted --html runs/check.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="dataset folder, mixture .yaml, recipe .py, or folder of a checkpoint or run")
    arguments.add_data_root(parser)
    parser.add_argument("--quick", action="store_true", help="compare sizes only, not every byte, and look at fewer episodes")
    parser.add_argument("--sample", type=int, help="episodes whose numbers and frames are looked at (default: 64, quick: 16; 0: none)")
    parser.add_argument("--shards", type=int, help="of each source at a URL, shards that are fetched and looked at (default: 8, quick: 2)")
    parser.add_argument("--like", type=Path, help="dataset: one of the same robot that is known to be good, to compare with")
    parser.add_argument("--verify", action="store_true", help="checkpoint: also act, and compare with its golden actions")
    parser.add_argument("--data", type=Path, metavar="SHARDS", help="checkpoint: which of its robots is nearest to these data")
    parser.add_argument("--embodiment", metavar="FILE.py", help="with --data: the robot in other frames, say; its code is run")
    arguments.add_plugin(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the evidence: plots and frames")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 where nothing is an error, else 1."""
    kind = kind_of(args.path)
    if args.like is not None and kind != "dataset":
        raise UserError(f"--like compares a dataset with another; {args.path} is a {kind}")
    if kind != "checkpoint" and (args.verify or args.data is not None):
        raise UserError(f"--verify and --data are for a checkpoint; {args.path} is a {kind}")
    report = CHECKS[kind](args)
    _Progress.clear()
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        _print(report)
    if args.html:
        from vla.data.doctor.page import write_page

        print(f"wrote {write_page(report, args.html)}", file=sys.stderr)
    return 0 if report.sound else 1


def _print(report: Report) -> None:
    for finding in report.findings:
        print(finding)
    errors = report.of("error")
    counts = ", ".join(f"{sum(f.kind == kind for f in errors)} {kind}" for kind in dict.fromkeys(f.kind for f in errors))
    verdict = f"{len(errors)} problem{'s' * (len(errors) > 1)} ({counts})" if errors else "sound"
    rest = ", ".join(f"{len(found)} {name}{'s' * (len(found) > 1)}" for name in ("warning", "note") if (found := report.of(name)))
    print(f"{report.path}: {report.kind}, {verdict}{f'; also {rest}' if rest else ''}")
    for name, value in report.facts.items():
        print("\n".join([f"  {name}:", *(f"    {line}" for line in value)]) if name == "readiness" else f"  {name}: {_short(value)}")


class _Progress:
    """What is being looked at, on the terminal's last line (or a line every few seconds where there is no terminal)."""

    every_s = 5.0
    said_s = 0.0

    @classmethod
    def show(cls, line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{line[:100]:100}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - cls.said_s > cls.every_s:
            if cls.said_s:
                print(line, file=sys.stderr, flush=True)
            cls.said_s = time.monotonic()

    @classmethod
    def clear(cls) -> None:
        if sys.stderr.isatty():
            print(f"\r{'':100}\r", end="", file=sys.stderr, flush=True)


def budget_of(args: argparse.Namespace) -> Budget:
    """How much the doctor looks at, from `--quick` and `--sample`."""
    from dataclasses import replace

    from vla.data.doctor.sample import Budget

    budget = Budget.quick() if args.quick else Budget()
    if args.shards is not None:
        if args.shards < 1:
            raise UserError(f"--shards {args.shards}; give a number of shards, at least 1")
        budget = replace(budget, shards=args.shards)
    if args.sample is None:
        return budget
    if args.sample < 0:
        raise UserError(f"--sample {args.sample}; give a number of episodes, or 0 for none")
    return replace(budget, episodes=args.sample, filmed=max(1, args.sample * budget.filmed // budget.episodes))


def kind_of(path: Path) -> str:
    """Which kind of thing a path is: a key of `KINDS`. UserError, with the choices, where it is none."""
    if not path.exists():
        raise UserError(f"there is nothing at {path}; give {_choices()}")
    for kind, (_, fits) in KINDS.items():
        if fits(path):
            return kind
    raise UserError(f"{path} is not understood; give {_choices()}")


def _dataset(args: argparse.Namespace) -> Report:
    from vla.data.check import check_dataset

    return check_dataset(args.path, not args.quick, budget_of(args), args.like, _Progress.show)


def _mixture(args: argparse.Namespace) -> Report:
    from vla.data.check import check_mixture

    return check_mixture(args.path, args.data_root, not args.quick, budget_of(args), _Progress.show)


def _checkpoint(args: argparse.Namespace) -> Report:
    from dataclasses import replace

    from vla.audit import check_checkpoint

    arguments.load_plugins(args)
    report = check_checkpoint(args.path, args.verify)
    if args.data is None or not report.sound:
        return report
    rows, said = _readiness(report.path, args.data, args.embodiment)
    return replace(report, facts={**report.facts, "readiness": rows if args.json else said})


def _readiness(folder: Path, data: Path, robot_file: str | None) -> tuple[list[dict], list[str]]:
    """How near the robots of a checkpoint are to a dataset's: for programs, and for people."""
    from vla.checkpoint import read_contents
    from vla.data.reader import Dataset
    from vla.data.statistics import compute_stats
    from vla.embodiment import load_embodiment
    from vla.normalize import RobotNormalizer
    from vla.readiness import lines, nearest

    dataset, contents = Dataset.open(data), read_contents(folder)
    robot = load_embodiment(robot_file) if robot_file else dataset.info.robot
    found = compute_stats([dataset], {robot.name: robot}) if robot else {}
    if robot is None or robot.name not in found:
        raise UserError(f"{data} has no actions of a robot ('{dataset.info.name}', {dataset.info.supervision}): nothing to compare")
    fitted = RobotNormalizer.fit(found[robot.name], robot)
    rows = nearest(robot, fitted, dataset.cameras, contents.embodiments, contents.normalizers)
    return [row.to_json() for row in rows], lines(rows, robot)


def _recipe(args: argparse.Namespace) -> Report:
    from vla.data.check import Report
    from vla.train.job import assemble
    from vla.train.recorded import disagreements
    from vla.train.run import load_recipe

    recipe = load_recipe(args.path)
    job = assemble(recipe, args.data_root, args.path.parent, verify="size" if args.quick else "full")
    facts = {"name": recipe.name, "mixture": job.mixture.name, "embodiments": [robot.name for robot in job.contents.embodiments]}
    findings = tuple(disagreements(job.mixture, job.contents.embodiments))
    return Report("recipe", args.path, findings, {**facts, "parameters": sum(p.numel() for p in job.model.parameters())})


KINDS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "dataset": ("a dataset folder (dataset.json)", lambda p: (p / "dataset.json").is_file() or any(p.glob("shard-*"))),
    "checkpoint": ("a folder of a checkpoint (manifest.json) or run", lambda p: (p / "manifest.json").is_file() or _acts(p)),
    "mixture": ("a mixture (.yaml)", lambda p: p.is_file() and p.suffix in (".yaml", ".yml")),
    "recipe": ("a recipe (.py)", lambda p: p.is_file() and p.suffix == ".py"),
}
"""kind -> (what to call it, how to know it). A new kind of thing is a row here and one in `CHECKS`."""

CHECKS: dict[str, Callable[[argparse.Namespace], Report]] = {
    "dataset": _dataset,
    "checkpoint": _checkpoint,
    "mixture": _mixture,
    "recipe": _recipe,
}


def _choices() -> str:
    return ", or ".join(what for what, _ in KINDS.values())


def _acts(folder: Path) -> bool:
    """Whether it is a run's, or a step's of one."""
    from vla.checkpoint import acting

    return (folder / "checkpoints").is_dir() or (folder.is_dir() and acting(folder) != folder)


def _short(value: object) -> str:
    """A fact in one line; of sources, what tells them apart."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {row['share']:.1%}, {row['episodes']} episodes, {row['steps']:,} steps" for name, row in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
