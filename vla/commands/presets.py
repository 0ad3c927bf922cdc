"""`vla presets`: the published systems that can be built, with their sizes."""

from __future__ import annotations

import argparse
import json
from typing import Any

SUMMARY = "List the published systems that a recipe can name, with their sizes and where they depart from the paper."
EXAMPLES = """
vla presets
vla presets pi0 cogact_b
vla presets --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Names, and the form of the answer."""
    parser.add_argument("names", nargs="*", help="presets to show (default: all)")
    parser.add_argument("--action-width", type=int, default=7, help="numbers of the action that sizes are counted for (default: 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Builds each without weights, counts, and prints."""
    from vla.presets import PRESETS, preset

    rows = {name: _row(preset(name), args.action_width) for name in args.names or PRESETS}
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("preset", "paper", "backbone", "decoder", "chunk", "departs from the paper in", title="vla.presets.preset(name)")
    for name, row in rows.items():
        backbone = f"{row['backbone']}\n{row['backbone_parameters'] / 1e9:.2f}B"
        table.add_row(name, row["paper"], backbone, f"{row['decoder_parameters'] / 1e6:.1f}M", str(row["horizon"]), row["deviates"])
    Console().print(table)
    return 0


def _row(chosen: Any, width: int) -> dict[str, Any]:
    from vla.backbones.empty import build_empty, count_parameters
    from vla.roster import Roster

    model = build_empty(chosen.model(), Roster(("arm",), chosen.horizon, width, width))
    return {
        "paper": chosen.paper,
        "backbone": chosen.backbone if isinstance(chosen.backbone, str) else "its own",
        "backbone_parameters": count_parameters(model.backbone),
        "decoder": chosen.decoder.kind,
        "decoder_parameters": count_parameters(model.decoder),
        "horizon": chosen.horizon,
        "deviates": chosen.deviates,
    }
