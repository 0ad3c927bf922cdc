"""Writes docs/performance.md and docs/results.md, and the pictures on them, from benchmarks/results/*.json: no number is typed by hand.

python -m benchmarks.pages           # write both pages and draw their pictures
python -m benchmarks.pages --check   # exit 1 where a page is not what its results say
python -m benchmarks.pages --commands

A result that is not there is a row that says so, with the command that makes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Row
from benchmarks.command import ROOT
from benchmarks.evidence import ARMS, evidence, load
from benchmarks.pictures import new_robot

RESULTS = ROOT / "benchmarks" / "results"
HEADER = "<!-- Written by `python -m benchmarks.pages` from benchmarks/results/. Do not edit. -->\n"


def main() -> int:
    """Writes both pages; exit code 1 if `--check` finds one out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="print what makes the results of docs/performance.md, a line each")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is out of date")
    args = parser.parse_args()
    if args.commands:
        print("\n".join(case.command for case in CASES))
        return 0
    stale = []
    for path, text in pages().items():
        if args.check:
            stale += [path] if not path.is_file() or path.read_text() != text else []
        else:
            path.write_text(text)
    if not args.check:  # other versions of matplotlib draw other bytes
        draw()
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what benchmarks/results/ says. Run: python -m benchmarks.pages", file=sys.stderr)
    return 1 if stale else 0


def draw(results: Path = RESULTS, images: Path = ROOT / "docs" / "images") -> list[Path]:
    """The pictures on the pages, as far as there are results."""
    found = load(results / "new_robot.json")
    if found is None:
        return []
    new_robot(found, ARMS, images / "new_robot.png")
    return [images / "new_robot.png"]


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Each page and its text."""
    return {ROOT / "docs" / "performance.md": performance(results), ROOT / "docs" / "results.md": HEADER + evidence(results)}


def performance(results: Path) -> str:
    """A table a case: what was measured, what is asked, and whether that is met."""
    parts = [HEADER + "# Performance\n\nWhat was measured, as `benchmarks/results/` holds it; each table's command makes it again.\n"]
    for case in CASES:
        found = load(results / case.file)
        failed = found.get("could_not_run") if found else None
        lines = [f"## {case.title}\n\n{case.what}\n\n```bash\n{case.command}\n```\n"]
        if found is None:
            lines.append("Not measured yet.\n")
        elif failed:
            lines.append(f"Could not run: {failed}.\n")
        elif case.columns:
            lines.append("| | " + " | ".join(heading for heading, _ in case.columns) + " |\n|---" + "|---" * len(case.columns) + "|")
            lines += [_cells(name, row, case.columns) for name, row in found["rows"].items()]
            lines.append(_machine(found))
        else:
            lines.append("| | measured | asked | |\n|---|---|---|---|")
            lines += [_row(row, _at(found, row.key)) for row in case.rows]
            lines.append(_machine(found))
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _cells(name: str, row: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> str:
    if "could_not_run" in row:
        return f"| {name} | could not run: {row['could_not_run']} |" + " |" * (len(columns) - 1)
    return f"| {name} | " + " | ".join(f"{row[key]:,}" if key in row else "" for _, key in columns) + " |"


def _row(row: Row, value: Any) -> str:
    if value is None:
        return f"| {row.label} | not measured | | |"
    asked, verdict = "", ""
    if row.at_least is not None:
        asked, verdict = f"at least {row.at_least:g}", "met" if value >= row.at_least else "**short**"
    elif row.at_most is not None:
        asked, verdict = f"at most {row.at_most:g}", "met" if value <= row.at_most else "**short**"
    return f"| {row.label} | {value:.4g} {row.unit} | {asked} | {verdict} |".replace("  ", " ")


def _machine(found: dict[str, Any]) -> str:
    machine = found.get("machine")
    if isinstance(machine, dict):
        return "\n" + ", ".join(f"{key}: {value}" for key, value in machine.items() if not isinstance(value, dict | list)) + "\n"
    return f"\n{machine}\n" if machine else ""


def _at(found: dict[str, Any], key: str) -> Any:
    value: Any = found
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


if __name__ == "__main__":
    sys.exit(main())
