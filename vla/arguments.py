"""Arguments that several commands take, so that they say the same everywhere. Nothing here is heavy: `--help` imports it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_suite(parser: argparse.ArgumentParser) -> None:
    """`--suite`."""
    parser.add_argument("--suite", required=True, help="name of a suite (`vla collect --list`), or a .py file that defines SUITE")


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """`--tasks`, which `names` splits."""
    parser.add_argument("--tasks", default="", help="comma-separated; all of the suite by default")


def names(text: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def add_execute(parser: argparse.ArgumentParser) -> None:
    """`--execute`, of an evaluation."""
    parser.add_argument("--execute", type=int, help="commands of each chunk before the next one (default: 5/6 of it)")


def add_sim_python(parser: argparse.ArgumentParser) -> None:
    """`--sim-python`."""
    parser.add_argument("--sim-python", metavar="PYTHON", help="interpreter of the environment that the simulator is installed in")


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, of a policy."""
    parser.add_argument("--device", default="cpu", help="of the policy (default: cpu)")


def add_evaluations(parser: argparse.ArgumentParser) -> None:
    """`--evaluations`, as `Policy.load` has it."""
    parser.add_argument(
        "--evaluations",
        type=int,
        metavar="N",
        help="of the network for a chunk, where a decoder denoises or unmasks (default: the checkpoint's)",
    )


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """`--data-root`, of a command that reads a mixture."""
    parser.add_argument("--data-root", type=Path, help="folder of the datasets that a mixture names (default: $VLA_DATA, else data)")


def add_plugin(parser: argparse.ArgumentParser, whose: str = "the checkpoint") -> None:
    """`--plugin`, which `load_plugins` loads. `whose`: parts."""
    parser.add_argument("--plugin", action="append", default=[], help=f"module or .py file with parts of {whose}; its code is run")


def load_plugins(args: argparse.Namespace) -> None:
    """Runs what the user named by `--plugin`: before anything is read that may name its kinds."""
    from vla.config import load_plugin

    for plugin in args.plugin:
        load_plugin(plugin)


def options(args: argparse.Namespace, leave_out: Sequence[str] = ()) -> list[str]:
    """The words that give these arguments again: a flag where it is on, a list item by item, nothing for what is off or empty."""
    words: list[str] = []
    for name, value in vars(args).items():
        for item in value if isinstance(value, list) else [value]:
            if name not in leave_out and item is not False and item not in (None, ""):
                words += [f"--{name.replace('_', '-')}", *([] if item is True else [str(item)])]
    return words
