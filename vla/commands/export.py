"""`vla export`: our shards in another project's format, read back and compared before the command ends well."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vla.errors import UserError

if TYPE_CHECKING:
    from vla.data.reader import Dataset

SUMMARY = "Write a dataset of shards in another format (LeRobot 3.0)."
EXAMPLES = """
vla export lerobot data/demo/sawyer exports/sawyer
vla export lerobot data/demo/sawyer exports/sawyer --images
"""
FORMATS = ("lerobot",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=FORMATS, help="lerobot: LeRobot 3.0")
    parser.add_argument("dataset", help="dataset folder or URL")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--images", action="store_true", help="pictures byte for byte in the rows, in place of videos")
    parser.add_argument("--crf", type=int, default=20, help="quality of the videos: 0 lossless .. 51 (default: 20)")
    parser.add_argument("--no-check", action="store_true", help="do not read the result back")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; a result that does not read back as it was is Damaged."""
    from vla.convert.lerobot_write import LeRobotWriter, Options
    from vla.data.remote import open_dataset

    if not 0 <= args.crf <= 51:
        raise UserError(f"--crf {args.crf}: give 0 to 51")
    dataset = open_dataset(args.dataset)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with LeRobotWriter(args.out, dataset.info, dataset.cameras, Options(args.images, args.crf)) as writer:
        for index in _progress(dataset, "writing"):
            writer.add(dataset.read(index))
    written = writer.written
    if not args.no_check:
        _check(dataset, args.out)
    compared = "" if args.no_check else ", read back equal"
    print(f"wrote {args.out}: {written.episodes} episodes, {written.steps} steps{compared}")
    for what, count in written.left.items():
        print(f"  left out: {count} {what}")
    print(f"  back into shards: vla convert lerobot {args.out} --card {args.out}/meta/card.yaml --out FOLDER")
    return 0


def _check(dataset: Dataset, out: Path) -> None:
    """Every number of every episode is what it was."""
    import numpy as np

    from vla.convert.lerobot import LeRobot
    from vla.errors import Damaged

    reader = LeRobot(out)
    reader.wanted = frozenset({"observation.state", "action", "time_s"})
    episodes = (episode for part in reader.parts() for episode in reader.episodes(part))
    for index, raw in zip(_progress(dataset, "reading back"), episodes, strict=True):
        stored = dataset.episode(index)
        for name, want in (("observation.state", stored.state), ("action", stored.action), ("time_s", stored.time_s[:, None])):
            if want is not None and want.shape[1] and not np.array_equal(raw.columns[name], want):
                raise Damaged(f"{out}: '{name}' of episode {index} ('{stored.id}') does not read back as it was")


def _progress(dataset: Dataset, what: str) -> range:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(range(len(dataset)), what, console=console, transient=True, disable=not console.is_terminal)  # type: ignore[return-value]
