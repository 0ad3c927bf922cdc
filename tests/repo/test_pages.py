"""Pages that are written from results say what the results say."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from benchmarks.cases import CASES
from benchmarks.evidence import _codes, evidence
from benchmarks.pages import RESULTS, ROOT, draw, pages, performance


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_a_page_is_what_its_results_say(path):
    assert path.read_text() == pages()[path], "run: python -m benchmarks.pages"


def test_a_result_that_falls_short_is_shown_as_short_and_a_missing_one_as_missing(tmp_path):
    (tmp_path / "loader.json").write_text(json.dumps({"ratio_to_decode": 0.8, "ratio_to_webdataset": 2.0}))
    text = performance(tmp_path)
    assert "| delivered / simplejpeg into one buffer that stays in the caches | 0.8 | at least 0.85 | **short** |" in text
    assert "| against stock webdataset | 2 x | at least 2 | met |" in text
    assert "| memory then | not measured | | |" in text
    assert text.count("Not measured yet.") == len(CASES) - 1
    assert "Not run yet." in evidence(tmp_path)


def test_codes_are_shown_by_source_and_by_what_a_probe_reads():
    row = {"probe_r2": {"displacement/hand": [0.5, 0.7], "action/move": [0.2]}, "perplexity_share": 0.81, "dead_share": 0.03}
    lines = _codes({"sawyer": row})
    assert "| sawyer | displacement of hand | 0.60 | 0.50, 0.70 | 81% | 3% |" in lines
    assert "| sawyer | action of move | 0.20 | 0.20 | 81% | 3% |" in lines and _codes({}) == []


def test_pictures_are_drawn_of_what_there_is(tmp_path):
    (picture,) = draw(RESULTS, tmp_path)
    with Image.open(picture) as drawn, Image.open(ROOT / "docs" / "images" / picture.name) as shown:
        assert drawn.size == shown.size and len(drawn.convert("RGB").getcolors(1 << 20)) > 100
    assert f"(images/{picture.name})" in evidence(RESULTS) and draw(tmp_path, tmp_path) == []


def test_every_command_names_a_module_that_is_there():
    modules = [case.command.split()[2].replace(".", "/") + ".py" for case in CASES if (RESULTS / case.file).is_file()]
    assert modules and not [module for module in modules if not (ROOT / module).is_file()]
