"""The commands of a recipe, run as they stand in its docstring: found, clocked, and taken up again where one failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.from_scratch import commands, named
from vla.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = '''"""Small.

Command   vla collect --suite metaworld-objects --tasks door-close --episodes 2 --workers 1 --out data/small
          vla train small.py   (a remark)
          vla eval runs/small --suite metaworld-objects --tasks door-close --episodes 1 --workers 1 --json runs/small/eval.json
Parts     none
"""

from dataclasses import replace
from vla.train.run import load_recipe

RUN = load_recipe({demo!r})
RUN = replace(RUN, name="small", mixture="small.yaml", embodiments=("metaworld_sawyer",), steps={steps}, batch_size=4, threads=1, workers=0)
'''


@pytest.mark.parametrize("name", ["mt10", "mt50", "mt50_two_cores"])
def test_recipes_on_the_results_page_say_their_commands(name):
    told = commands(ROOT / "pretrain" / f"{name}.py")
    assert [named(words) for words in told] == ["collect", "train", "eval"]
    assert f"pretrain/{name}.py" in told[1] and told[2][-2:] == ["--json", f"runs/{name}/eval.json"]


def test_a_recipe_that_says_no_commands_is_refused(tmp_path):
    for text in ('"""Nothing."""', '"""Two.\n\nCommand  vla collect --list\n"""', "x = 1"):
        (tmp_path / "recipe.py").write_text(text)
        with pytest.raises(UserError, match="no commands under `Command`"):
            commands(tmp_path / "recipe.py")


@pytest.mark.thorough
def test_what_is_done_is_not_done_again_and_its_seconds_stay(tmp_path):
    recipe, kept = tmp_path / "small.py", tmp_path / "runs/small/eval.json.seconds.json"
    (tmp_path / "small.yaml").write_text("name: small\nval_fraction: 0\nsources:\n  - {path: small, weight: 1}\n")
    recipe.write_text(RECIPE.format(demo=str(ROOT / "pretrain/demo.py"), steps="0"))
    failed = _run(recipe)
    assert failed.returncode and "exit code 2 of: vla train small.py" in failed.stderr and "steps must be at least 1" in failed.stderr
    before = json.loads(kept.read_text())
    assert before["done"] == ["collect"] and before["seconds"]["collect"] > 0 < before["seconds"]["train"]
    recipe.write_text(RECIPE.format(demo=str(ROOT / "pretrain/demo.py"), steps="2"))
    passed = _run(recipe)
    assert passed.returncode == 0 and "collect: done before" in passed.stderr, passed.stderr
    result = json.loads(passed.stdout)
    assert result["recipe"] == "small.py" and result["success"]["episodes"] == 1
    assert result["wall_s"]["collect"] == round(before["seconds"]["collect"], 1)
    assert result["wall_s"]["train"] > before["seconds"]["train"] and set(result["wall_s"]) == {"collect", "train", "eval"}


def _run(recipe: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.from_scratch", recipe.name, "--json"]
    return subprocess.run(command, cwd=recipe.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
