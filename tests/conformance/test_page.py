"""docs/conformance.md names tests that exist, and leaves out none of tests/conformance."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (?P<fact>[^|]+) \| `(?P<file>tests/[\w/]+\.py)::(?P<test>test_\w+)` \| (?P<source>[^|]+) \|$", re.M)


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_"}


def test_every_row_names_a_test_that_exists():
    rows = list(ROW.finditer(PAGE))
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(rows) == len(lines) - 1 > 50  # all but the head
    missing = [row["test"] for row in rows if row["test"] not in functions_of(ROOT / row["file"])]
    assert not missing


def test_no_conformance_test_is_left_out():
    listed = {(row["file"], row["test"]) for row in ROW.finditer(PAGE)}
    here = {
        (f"tests/conformance/{path.name}", test) for path in (ROOT / "tests/conformance").glob("test_*.py") for test in functions_of(path)
    }
    here -= {("tests/conformance/test_page.py", test) for test in functions_of(Path(__file__))}
    assert here and here <= listed, sorted(here - listed)
