"""The demo's plan is made of commands that exist, files that exist, and stages that feed each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla import cli
from vla.demo.plan import DECODERS, stages
from vla.errors import UnknownName, UserError
from vla.train.run import load_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_command_parses_and_every_recipe_loads(decoder, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = stages(decoder, Path("runs/demo"))
    for stage in plan:
        _, args = cli.parse(stage.command)
        if stage.command[0] == "train":
            assert load_recipe(args.recipe).steps > 0
    made = {word for stage in plan if stage.command[0] in ("collect", "train") for word in stage.command[-1:]}
    for stage in plan:
        used = [word for word in stage.command if word.startswith("runs/demo/") and word not in stage.command[-1:]]
        for word in used:
            if ("data" in Path(word).parts[2:3] and len(Path(word).parts) == 3) or word.endswith(".json") or "videos" in word:
                continue
            assert word in made, f"{stage.name} uses {word}, which no stage makes"
    assert {stage.phase for stage in plan} == {"collect", "latent", "pretrain", "finetune", "evaluate"}


def test_mistakes_are_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    module, args = cli.parse(["demo", "--decoder", "nothing"])
    with pytest.raises(UnknownName, match="Choices: dit, latent, masked, parallel, tokens"):
        module.run(args)
    (tmp_path / "thesis.tex").touch()
    module, args = cli.parse(["demo", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="was not made by the demo"):
        module.run(args)
    assert (tmp_path / "thesis.tex").exists()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="from the root of the repository"):
        module.run(args)
