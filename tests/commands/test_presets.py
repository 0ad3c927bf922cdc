"""`vla presets` counts what it lists."""

from __future__ import annotations

import json

import pytest

from vla.cli import main


def test_sizes_as_json_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "cogact_s", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["cogact_s"]
    assert 12e6 < row["decoder_parameters"] < 14e6 and 7.3e9 < row["backbone_parameters"] < 7.4e9 and row["horizon"] == 16
    assert main(["presets", "cogact_s"]) == 0
    assert "CogACT" in capsys.readouterr().out


def test_a_mistyped_name_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "pi1"]) == 2
    assert "pi0_fast" in capsys.readouterr().err
