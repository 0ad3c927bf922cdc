"""`vla export`: shards in another project's format, or a run's checkpoint to hand on; read back and compared before it ends well."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vla import arguments
from vla.errors import UserError
from vla.interop.exports import EXPORTS

if TYPE_CHECKING:
    from vla.data.reader import Dataset

SUMMARY = "Write shards in another format (LeRobot 3.0), or a checkpoint with a model card to hand on."
EXAMPLES = """
vla export lerobot data/demo/sawyer exports/sawyer
vla export lerobot data/demo/sawyer exports/sawyer --images
vla export checkpoint runs/demo/pretrain exports/demo --licence apache-2.0 --scores runs/demo/evaluate.json
vla export checkpoint runs/my_robot_lora exports/my_robot --merge-adapters --dtype bf16
vla export checkpoint runs/demo/pretrain exports/demo --push me/demo
vla export openvla runs/openvla exports/openvla
"""
FORMATS = ("lerobot", "checkpoint", *EXPORTS)
OTHERS = "; ".join(f"{name}: {what}" for name, (what, _) in EXPORTS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "format", choices=FORMATS, help=f"lerobot: LeRobot 3.0; checkpoint: what acts, without what only training needs; {OTHERS}"
    )
    parser.add_argument("source", help="dataset folder or URL; of a checkpoint, its folder or that of a run (its newest)")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    lerobot = parser.add_argument_group("lerobot")
    lerobot.add_argument("--images", action="store_true", help="pictures byte for byte in the rows, in place of videos")
    lerobot.add_argument("--crf", type=int, default=20, help="quality of the videos: 0 lossless .. 51 (default: 20)")
    lerobot.add_argument("--no-check", action="store_true", help="do not read the result back")
    ours = parser.add_argument_group("checkpoint")
    ours.add_argument("--name", default="", help="title of the model card (default: the run's name)")
    ours.add_argument("--licence", default="unknown", help="of the weights, an SPDX name such as apache-2.0")
    ours.add_argument("--scores", type=Path, action="append", default=[], metavar="FILE", help="a result of `vla eval --json`")
    ours.add_argument("--dtype", default="keep", help="of the stored weights: keep, fp32 or bf16 (default: keep)")
    ours.add_argument("--merge-adapters", action="store_true", help="merge LoRA, in fp32; refused where an output moves")
    ours.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of one file of weights (default: 5GB)")
    ours.add_argument("--push", default="", metavar="OWNER/NAME", help="also upload it to the Hugging Face hub")
    ours.add_argument("--private", action="store_true", help="the hub's repository is made private")
    ours.add_argument("--device", default="cpu", help="that acts for the golden actions (default: cpu)")
    arguments.add_plugin(ours)


def run(args: argparse.Namespace) -> int:
    """Exit code 0; a result that does not read back as it was is Damaged."""
    if args.format in EXPORTS:
        return _other_layout(args)
    return _checkpoint(args) if args.format == "checkpoint" else _lerobot(args)


def _other_layout(args: argparse.Namespace) -> int:
    from vla.interop.export import export_checkpoint

    print("\n  ".join([f"wrote {args.out}", *export_checkpoint(args.format, args.source, args.out)]))
    return 0


def _checkpoint(args: argparse.Namespace) -> int:
    from vla.hub import push_folder
    from vla.publish import Publishing, publish
    from vla.weights import parse_size, weight_files

    arguments.load_plugins(args)
    size = parse_size(args.max_shard_size)
    how = Publishing(args.name, args.licence, tuple(args.scores), args.dtype, args.merge_adapters, size)
    policy = publish(args.source, args.out, how, args.device)
    files = weight_files(args.out)
    size_mb = sum((args.out / file).stat().st_size for file in files) / 1e6
    robots = ", ".join(robot.name for robot in policy.contents.embodiments)
    print(f"wrote {args.out}: {size_mb:.1f} MB of weights in {len(files)} file{'s' * (len(files) > 1)}, acts as {robots}")
    print(f"  read back, and it acts as before; look at {args.out / 'README.md'}")
    for missing, flag in ((args.licence == "unknown", "--licence NAME"), (not args.scores, "--scores FILE")):
        if missing:
            print(f"  the card would say more with {flag}")
    if args.push:
        commit = push_folder(args.out, args.push, private=args.private)
        print(f"  uploaded: Policy.from_pretrained({args.push!r}, revision={commit!r})")
    return 0


def _lerobot(args: argparse.Namespace) -> int:
    from vla.convert.lerobot_write import LeRobotWriter, Options
    from vla.data.remote import open_dataset

    if not 0 <= args.crf <= 51:
        raise UserError(f"--crf {args.crf}: give 0 to 51")
    dataset = open_dataset(args.source)
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
    words = ["vla", "convert", "lerobot", str(args.out), "--card", f"{args.out}/meta/card.yaml", *_robot_beside(dataset, args.out)]
    print(f"  back into shards: {shlex.join(words)} --out FOLDER")
    return 0


def _robot_beside(dataset: Dataset, out: Path) -> list[str]:
    """The option that names the robot's file, written beside the card where the package has not that robot: a card holds but its name."""
    from vla.embodiment import built_in_embodiments, load_embodiment
    from vla.new_robot.write import known_robot_text

    robot = dataset.info.robot
    if robot is None or (robot.name in built_in_embodiments() and load_embodiment(robot.name) == robot):
        return []
    path = out / "meta" / f"{robot.name}.py"
    path.write_text(known_robot_text(robot, "vla export lerobot"), encoding="utf-8")
    return ["--embodiment", str(path)]


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
