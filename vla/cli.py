"""The `vla` command: a table of commands, each imported only when it is chosen, so that `vla --help` answers at once.

Exit codes: 0 done; 1 something that was checked is bad; 2 a mistake in what was asked; 130 interrupted; 141 reader gone.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from vla import __version__
from vla.errors import UnknownName, UserError

COMMANDS = {
    "doctor": "Check this machine: Python, torch, GPU, rendering, disk, memory, compilers.",
    "collect": "Record demonstrations of scripted experts in a simulator as shards.",
    "convert": "Convert a dataset (RLDS, LeRobot, HDF5, video, ...) into shards, by what its card says.",
    "check": "Check shards, a mixture, a recipe or a checkpoint; exit 0 good, 1 damaged, 2 not understood.",
    "show": "Show what a dataset holds (tables, pictures, plots), a mixture as a tree, training runs as curves, or what was served.",
    "stats": "Compute normalisation statistics of shards for an embodiment, or compare two.",
    "new-robot": "Write a robot's file, card, mixture and recipe from a dataset, asking for what it cannot know.",
    "train": "Run a recipe: pretraining or fine-tuning.",
    "label": "Write latent-action codes into shards, from video without actions.",
    "eval": "Evaluate a checkpoint in closed loop in a simulator.",
    "train-value": "Learn from a checkpoint's rollouts which of its samples to execute.",
    "serve": "Serve a policy to robots and benchmarks: openpi, OpenVLA, vla-eval and GR00T clients, on one port.",
    "import": "Import a public checkpoint (OpenVLA, pi0, CogACT, ...) as one that acts.",
    "export": "Write shards in another format (LeRobot 3.0), or a checkpoint with a model card to hand on.",
    "compare": "Compare evaluations, paired where their seeds match; rank more than two.",
    "merge": "Put the shards of an evaluation together into one result.",
    "presets": "List the published systems that a recipe can name, with their sizes and where they depart from the paper.",
    "demo": "The whole job on real input: collect, pretrain, evaluate, fine-tune, report.",
}
"""Name -> one line for `vla --help`; each is the SUMMARY of its module `vla.commands.<name>`, with _ for - (held by a test)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (by default the process's own) and returns its exit code."""
    try:
        module, args = parse(sys.argv[1:] if argv is None else argv)
        return module.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `vla show ... | head`: the reader has left, and the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; give a path that can be read or written", file=sys.stderr)
        return 2


def parse(argv: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    """The chosen command's module and its parsed arguments. Help and version print and leave, as argparse has it."""
    top = _top_parser()
    if not argv:
        top.print_help(sys.stderr)
        raise SystemExit(2)
    name = argv[0]
    if name.startswith("-"):
        top.parse_args(argv)
        top.error(f"give a command before {name}")
    module = load(name)
    return module, parser_of(name, module).parse_args(argv[1:])


def load(name: str) -> ModuleType:
    """The module of a command; an error inside it is not hidden."""
    if name not in COMMANDS:
        raise UnknownName("command", name, COMMANDS, "`vla --help` says what each is for.")
    return importlib.import_module(f"vla.commands.{name.replace('-', '_')}")


def parser_of(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The argument parser of a command, with its examples at the end of the help."""
    parser = _Parser(
        prog=f"vla {name}",
        description=module.SUMMARY,
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(module.EXAMPLES).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


class _Parser(argparse.ArgumentParser):
    """Mistyped arguments are a user's error like any other: one line and exit code 2, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        asked = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0] if message.startswith("unrecognized") else ""
        near = difflib.get_close_matches(asked, self._option_string_actions, n=1) if asked.startswith("--") else []
        raise UserError(f"{self.prog}: {message}.{f' Did you mean {near[0]}?' if near else ''} Run `{self.prog} --help`.")


def _top_parser() -> _Parser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = _Parser(
        prog="vla",
        usage="vla [--help] [--version] COMMAND ...",
        description="Vision-language-action foundation models.",
        epilog=f"commands:\n{listed}\n\nexample:\n  vla doctor\n  vla train --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vla {__version__}")
    return parser
