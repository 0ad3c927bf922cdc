"""`vla check`: is what lies at a path sound? What kind of thing it is follows from the path itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vla.errors import UserError

if TYPE_CHECKING:
    from vla.data.check import Report

SUMMARY = "Check shards, a mixture, a recipe or a checkpoint; exit 0 good, 1 damaged, 2 not understood."
EXAMPLES = """
vla check data/demo/sawyer
vla check data_mixtures/demo.yaml --data-root data --json
vla check runs/demo/pretrain/checkpoints/last/pretrained_model
vla check data/large --quick
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="dataset folder, mixture .yaml, recipe .py, or checkpoint folder")
    parser.add_argument("--data-root", type=Path, help="folder of the datasets that a mixture names (default: $VLA_DATA, else data)")
    parser.add_argument("--quick", action="store_true", help="compare sizes only, not every byte of the data")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    report = CHECKS[kind_of(args.path)](args)
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        for finding in report.findings:
            print(finding)
        counts = ", ".join(f"{count} {kind}" for kind, count in report.counts().items())
        print(f"{args.path}: {report.kind}, {f'{len(report.findings)} problems ({counts})' if counts else 'sound'}")
        for name, value in report.facts.items():
            print(f"  {name}: {_short(value)}")
    return 0 if report.sound else 1


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

    return check_dataset(args.path, full=not args.quick)


def _mixture(args: argparse.Namespace) -> Report:
    from vla.data.check import check_mixture

    return check_mixture(args.path, args.data_root, full=not args.quick)


def _checkpoint(args: argparse.Namespace) -> Report:
    from vla.checkpoint import folder_problems
    from vla.data.check import Finding, Report

    return Report("checkpoint", args.path, tuple(Finding("damaged", str(args.path), text) for text in folder_problems(args.path)))


def _recipe(args: argparse.Namespace) -> Report:
    from vla.data.check import Report
    from vla.train.job import assemble
    from vla.train.run import load_recipe

    recipe = load_recipe(args.path)
    job = assemble(recipe, args.data_root, args.path.parent, verify="size" if args.quick else "full")
    facts = {"name": recipe.name, "mixture": job.mixture.name, "embodiments": [robot.name for robot in job.contents.embodiments]}
    return Report("recipe", args.path, (), {**facts, "parameters": sum(p.numel() for p in job.model.parameters())})


KINDS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "dataset": ("a dataset folder (dataset.json)", lambda p: (p / "dataset.json").is_file() or any(p.glob("shard-*"))),
    "checkpoint": ("a checkpoint folder (manifest.json)", lambda p: (p / "manifest.json").is_file()),
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
    return " or ".join(what for what, _ in KINDS.values())


def _short(value: object) -> str:
    """A fact in one line; of sources, what tells them apart."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {row['share']:.1%}, {row['episodes']} episodes, {row['steps']:,} steps" for name, row in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
