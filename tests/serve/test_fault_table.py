"""The page's table of faults names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.repo.tracked import ROOT


def test_every_test_of_the_table_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "serve.md").read_text()))
    there = {name for path in Path(__file__).parent.glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert len(named) > 15 and named <= there, named - there
