"""Shipped checkpoints: every row of the index names what exists and acts as it did; and the check that says so sees what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.verify import Row, main, problems, row_text, rows
from tests.parts import DECODERS, contents
from tests.repo.tracked import ROOT
from vla.checkpoint import load_model, save_checkpoint
from vla.errors import UserError
from vla.golden import GOLDEN
from vla.policy import Policy
from vla.train.run import load_recipe

RECIPE, MIXTURE = "pretrain/demo.py:parallel", "data_mixtures/demo.yaml"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_every_shipped_checkpoint_is_what_its_row_says(row, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert not problems(row)
    assert load_recipe(row.recipe)


@pytest.fixture
def shipped(tmp_path) -> Path:
    """A folder like checkpoints/, with one."""
    torch.manual_seed(0)
    holds = contents(DECODERS["parallel"])
    Policy(holds, holds.build()).save_pretrained(tmp_path / "tidy")
    (tmp_path / "tidy" / "README.md").write_text("# tidy\n")
    text = row_text(tmp_path / "tidy", RECIPE, MIXTURE).replace('licence = "???"', 'licence = "apache-2.0"')
    (tmp_path / "index.toml").write_text(text.replace("???", "for a test") + "\n")
    return tmp_path


def test_a_row_is_written_read_and_found_true(shipped, capsys):
    (row,) = rows(shipped / "index.toml")
    assert (row.recipe, row.mixture, row.licence, row.folder) == (RECIPE, MIXTURE, "apache-2.0", "tidy")
    assert not problems(row, shipped)
    assert main(["--row", str(shipped / "tidy"), RECIPE, MIXTURE]) == 0
    assert row.manifest_sha256 in capsys.readouterr().out


def test_whatever_is_not_as_it_should_be_is_named(shipped):
    (row,) = rows(shipped / "index.toml")

    def said(changed: Row) -> str:
        return "\n".join(problems(changed, shipped, act=False))

    assert "recipe pretrain/none.py is not there" in said(replace(row, recipe="pretrain/none.py"))
    assert "mixture none.yaml is not there" in said(replace(row, mixture="none.yaml"))
    assert "scores none.json are not there" in said(replace(row, scores=("none.json",)))
    assert "there is no checkpoint" in said(replace(row, folder="none"))
    assert "its manifest is not the one" in said(replace(row, manifest_sha256="0" * 64))
    (shipped / "tidy" / "README.md").unlink()
    assert "it has no card" in said(row)
    weights = shipped / "tidy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "damaged: model.safetensors" in said(row)


def test_a_checkpoint_that_acts_otherwise_is_named(shipped):
    (row,) = rows(shipped / "index.toml")
    holds, model = load_model(shipped / "tidy")
    golden = json.loads((shipped / "tidy" / GOLDEN).read_text())
    golden["rows"][0]["action_TA"][0][0] += 0.01
    save_checkpoint(shipped / "tidy", holds, model.state_dict(), beside={GOLDEN: json.dumps(golden)})
    assert any("narrow, seed 1: actions moved by 0.01" in line for line in problems(row, shipped))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("why =", "reason =", "unknown key 'reason'"),
        ('licence = "apache-2.0"\n', "", "the key 'licence' is missing"),
        ('why = "for a test"', 'why = "???"', "'why' must be text that says something"),
        ('folder = "tidy"', 'folder = "../tidy"', "the name of one beside"),
        ("[[checkpoint]]", "[checkpoints]", "only"),
        ("[[checkpoint]]", "[[checkpoint", "is no TOML"),
    ],
)
def test_a_wrong_row_is_refused(shipped, old, new, says):
    path = shipped / "index.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=says):
        rows(path)
