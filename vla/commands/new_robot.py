"""`vla new-robot`: a dataset -> the files that a robot needs here, asking for what the data cannot say."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.errors import UserError

if TYPE_CHECKING:
    from vla.new_robot.wizard import Plan
    from vla.new_robot.write import Files

SUMMARY = "Write a robot's file, card, mixture and recipe from a dataset, asking for what it cannot know."
EXAMPLES = """
vla new-robot data/raw/mine --name my_arm --out robots
vla new-robot data/raw/mine --name my_arm --out robots --unit arm=deg --unit gripper=open01 --gripper gripper=100:0 --frame arm=absolute
vla new-robot data/raw/aloha --name my_aloha --out robots --action-fields left_arm:6,left_gripper:1,right_arm:6,right_gripper:1
vla new-robot data/demo/sawyer --name metaworld_sawyer --out robots --init runs/demo/pretrain
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="folder of LeRobot, HDF5 (or a file of it), our shards; others with --format")
    parser.add_argument("--name", required=True, help="of the robot, in one control mode: letters, digits and _")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; existing ones are not touched")
    parser.add_argument("--format", default="", help="where it cannot be told: one of `vla convert --list`")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="option of the format's reader")
    parser.add_argument("--state", default="", metavar="COLUMN", help="that holds the state")
    parser.add_argument("--action", default="", metavar="COLUMN", help="that holds the commands")
    for kind in ("state", "action"):
        parser.add_argument(f"--{kind}-fields", default="", metavar="NAME:SIZE,...", help=f"how the {kind}'s numbers are divided")
    told = (
        ("--unit", "FIELD=UNIT", "as recorded: rad, deg, m, mm, open01 (a gripper), command, quat_wxyz, euler_xyz_extrinsic, ..."),
        ("--frame", "FIELD=FRAME", "what the controller takes: absolute or step"),
        ("--gripper", "FIELD=OPEN:CLOSED", "the recorded values when open and when closed"),
        ("--limit", "FIELD=LOW:HIGH", "of a command, in rad or m even where data are in deg or mm; FIELD=observed: what they reached"),
        ("--camera", "ROLE=COLUMN", "the roles of all cameras that are to be used"),
    )
    for flag, form, text in told:
        parser.add_argument(flag, action="append", default=[], metavar=form, help=text)
    parser.add_argument("--instruction", default="", help="of every episode, where the dataset has none")
    parser.add_argument("--rate", default="", metavar="HZ", help="commands per second, where the format does not say")
    parser.add_argument("--horizon", type=int, help="commands per chunk (default: a second's worth, at most 50)")
    parser.add_argument("--licence", default="", help="of the data")
    parser.add_argument(
        "--init", default="runs/demo/pretrain", metavar="CKPT", help="checkpoint to start from (default: runs/demo/pretrain)"
    )
    parser.add_argument("--data-root", type=Path, help="folder of the shards (default: $VLA_DATA, else data)")
    parser.add_argument("--no-ask", action="store_true", help="ask nothing, also on a terminal: what is not known becomes a blank")


def run(args: argparse.Namespace) -> int:
    """Exit code 0, also with blanks left: each is listed, and loading the file refuses until it is filled in."""
    import yaml

    from vla.new_robot.source import look
    from vla.new_robot.wizard import Answers, nobody, plan
    from vla.new_robot.write import write

    options = {key: yaml.safe_load(value) for key, value in _pairs(args.option, "--option").items()}
    offer = look(args.dataset, args.format, options)
    said = Answers(
        args.name,
        args.state,
        args.action,
        args.state_fields,
        args.action_fields,
        _pairs(args.unit, "--unit"),
        _pairs(args.frame, "--frame"),
        _pairs(args.gripper, "--gripper"),
        _pairs(args.limit, "--limit"),
        _pairs(args.camera, "--camera"),
        args.instruction,
        args.rate,
        args.horizon,
        args.licence,
        args.init,
    )
    ask = nobody if args.no_ask or not sys.stdin.isatty() else terminal
    made = plan(offer, said, ask)
    _report(made, write(made, args.out, _place(args, made)), args)
    return 0


def terminal(question: str, default: str, choices: Sequence[str]) -> str:
    """Asks until the answer is one of the choices (where there are some); Enter takes the default, or leaves a blank."""
    if choices:
        print(f"  choices: {', '.join(choices)}")
    while True:
        answer = input(f"{question}{f' [{default}]' if default else ' [leave blank]'}: ").strip() or default
        if not answer or not choices or answer in choices:
            return answer
        print(f"  '{answer}' is none of the choices")


def _pairs(words: Sequence[str], flag: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise UserError(f"{flag} {word}: give NAME=VALUE")
        found[key] = value
    return found


def _place(args: argparse.Namespace, made: Plan) -> str:
    """Where the mixture finds the shards: under the data root."""
    from vla.data.mixture import data_root

    if made.robot is None:
        return made.name
    root, folder = data_root(args.data_root).resolve(), args.dataset.resolve()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)


def _report(made: Plan, files: Files, args: argparse.Namespace) -> None:
    offer = made.offer
    about = [
        f"{offer.episodes:,} episodes" if offer.episodes is not None else "",
        f"{offer.steps:,} steps" if offer.steps is not None else "",
    ]
    print(f"{offer.path}: {offer.format}, {', '.join(filter(None, about)) or 'of unknown size'}")
    for note in made.notes:
        print(f"note: {note}")
    for path in filter(None, (files.robot, files.card, files.mixture, files.recipe)):
        print(f"wrote {path}")
    for path, left in _blanks(made, files):
        print(f"{path}: fill in {left}")
    print("then:")
    for line in _next(made, files, args):
        print(f"  {line}")


def _blanks(made: Plan, files: Files) -> list[tuple[Path, str]]:
    """What loading each file says is left, in its own words."""
    from vla.convert.card import Card
    from vla.embodiment import load_embodiment

    found: list[tuple[Path, str]] = []
    robot: Any = None
    try:
        robot = load_embodiment(str(files.robot))
    except UserError as error:
        found.append((files.robot, _after(str(error))))
    if files.card is not None:
        import yaml

        from vla.blanks import refuse_blanks

        try:
            refuse_blanks(yaml.safe_load(files.card.read_text(encoding="utf-8")), str(files.card))
            if robot is not None:
                Card.load(files.card, robot)
        except UserError as error:
            found.append((files.card, _after(str(error))))
    return found


def _after(text: str) -> str:
    return text.rpartition("can know: ")[2]


def _next(made: Plan, files: Files, args: argparse.Namespace) -> list[str]:
    lines: list[list[Any]] = []
    shards = f"{args.data_root or 'data'}/{made.name}"
    if files.card is not None:
        convert = ["convert", made.offer.format, made.offer.path, "--card", files.card, "--embodiment", files.robot]
        lines += [[*convert, "--dry-run"], [*convert, "--out", shards], ["check", shards]]
    else:
        shards = str(made.offer.path)
    root = ["--data-root", args.data_root] if args.data_root else []
    lines += [["check", made.init, "--data", shards], ["check", files.recipe, *root], ["train", files.recipe, *root]]
    return [shlex.join(["vla", *map(str, words)]) for words in lines]
