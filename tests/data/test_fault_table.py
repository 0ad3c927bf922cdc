"""The table of docs/data.md names tests that exist."""

from __future__ import annotations

import re

from tests.repo.tracked import ROOT


def test_every_fault_names_tests_that_exist():
    page = (ROOT / "docs/data.md").read_text()
    rows = re.findall(r"^\| .* \| .* \| (`.*test_.*`) \|$", page, re.M)
    assert len(rows) > 20
    for row in rows:
        file = ""
        for name in re.findall(r"`([^`]+)`", row):
            path, _, test = name.rpartition("::")  # a bare name is of the file before
            file = path or file
            source = (ROOT / file if "/" in file else ROOT / "tests/data" / file).read_text()
            assert f"def {test}(" in source, name
