"""`vla merge`: shards of an evaluation become the result of the whole."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Put the shards of an evaluation together into one result."
EXAMPLES = """
vla merge part1.json part2.json --json whole.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART.json", help="what `vla eval --shard K/N --json` wrote, all N of them")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="the result of the whole")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 if the parts do not make one whole."""
    from vla.commands.eval import print_result
    from vla.evaluate.result import read_result, write_result
    from vla.evaluate.shards import merge

    result = merge({str(path): read_result(path) for path in args.parts})
    print_result(result)
    write_result(args.json, result)
    return 0
