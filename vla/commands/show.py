"""`vla show`: what lies at a path, for people: trees, tables and pictures."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vla.commands.check import kind_of
from vla.errors import UnknownName

if TYPE_CHECKING:
    from vla.data.reader import Dataset

SUMMARY = "Show what a path holds: shards, a mixture as a tree, a checkpoint."
EXAMPLES = """
vla show data_mixtures/demo.yaml --samples 100000
vla show data/demo/sawyer
vla show data/demo/sawyer --out pictures --episodes 12
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="dataset folder or mixture .yaml")
    parser.add_argument("--data-root", type=Path, help="folder of the datasets that a mixture names (default: $VLA_DATA, else data)")
    parser.add_argument("--samples", type=int, help="mixture: length of a run, to show how often each source is seen")
    parser.add_argument("--episodes", type=int, default=8, help="dataset: episodes on the pictures (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("runs/show"), help="folder for pictures (default: runs/show)")


def run(args: argparse.Namespace) -> int:
    kind = kind_of(args.path)
    if kind not in SHOWS:
        raise UnknownName("kind of path to show", kind, SHOWS, f"`vla check {args.path}` knows it.")
    return SHOWS[kind](args)


def _mixture(args: argparse.Namespace) -> int:
    from rich.console import Console

    from vla.data.mixture import Mixture

    Console().print(Mixture.load(args.path, args.data_root, verify="size").tree(args.samples))
    return 0


def _dataset(args: argparse.Namespace) -> int:
    from vla.data.pictures import save_pictures
    from vla.data.reader import Dataset

    dataset = Dataset.open(args.path)
    _print_summary(dataset)
    for path in save_pictures(dataset, args.out, max(args.episodes, 1)):
        print(f"wrote {path}")
    return 0


SHOWS: dict[str, Callable[[argparse.Namespace], int]] = {"dataset": _dataset, "mixture": _mixture}
"""kind (of `vla.commands.check.KINDS`) -> how to show it."""


def _print_summary(dataset: Dataset) -> None:
    from rich.console import Console
    from rich.table import Table

    from vla.data.check import dataset_facts

    console = Console()
    table = Table(title=dataset.info.name, show_header=False)
    for name, value in dataset_facts(dataset, full=False).items():
        table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    for name, space in (("state", dataset.info.recorded_state), ("action", dataset.info.recorded_action)):
        fields = space.fields if space else ()
        table.add_row(name, ", ".join(f"{f.name}[{f.size} {f.unit}, {f.frame}]" for f in fields) or "none")
    console.print(table)
    texts: Counter[str] = Counter()
    for index in range(len(dataset)):
        texts.update({span.text for span in dataset.episode(index).spans})
    listed = Table("episodes", "instruction", title=f"{len(texts)} instructions")
    for text, count in texts.most_common(12):
        listed.add_row(str(count), text or "(none)")
    console.print(listed)
