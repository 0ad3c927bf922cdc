"""What the benchmarks' command lines share: a parser whose description is the module's, and what a result says of its machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
"""Of the repository."""


def parser_of(doc: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser with `--json`; `doc`, the module's own, is printed as it stands."""
    parser = argparse.ArgumentParser(description=doc, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    return parser


def machine() -> dict[str, Any]:
    """The processor and all of its cores."""
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}


def usable() -> dict[str, Any]:
    """The cores that this process may use, and torch's version."""
    return {"cores": len(os.sched_getaffinity(0)), "torch": version("torch")}


def show(found: Mapping[str, Any], as_json: bool) -> None:
    """One object, or a line for each figure."""
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{key}: {value}" for key, value in found.items()))
