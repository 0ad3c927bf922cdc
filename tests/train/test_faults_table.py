"""The page's table of faults names tests that there are."""

from __future__ import annotations

import re

from tests.repo.tracked import ROOT


def test_every_test_of_the_table_exists():
    page = (ROOT / "docs" / "training.md").read_text()
    rows = page.split("## What is survived", 1)[1].split("\n## ", 1)[0]
    named: set[str] = set()
    for row in rows.splitlines():
        for files, tests in re.findall(r"((?:`[\w/]+\.py`(?:, )?)+): ((?:`test_\w+`(?:, )?)+)", row):
            for file in re.findall(r"`([\w/]+\.py)`", files):
                path = ROOT / file if "/" in file else ROOT / "tests" / "train" / file
                for test in re.findall(r"`(test_\w+)`", tests):
                    assert f"def {test}(" in path.read_text(), f"{file}: {test}"
                    named.add(test)
    assert len(named) > 30 and named == set(re.findall(r"`(test_\w+)`", rows)), "a row of another form: `file.py`: `test_x`, `test_y`"
