"""`vla train` as a user types it: real processes, real files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vla.cli import main

ROOT = Path(__file__).parents[2]
RECIPE = """
from dataclasses import replace
from tests.train.toy import toy_run
RUN = toy_run(steps=4)
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def vla(shards, tmp_path, capsys, monkeypatch):
    """Runs a command line in this process; (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*words) -> tuple[int, str, str]:
        code = main(["train", *map(str, words), "--data-root", str(shards)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_recipe_trains_and_resumes_with_more_steps(vla, recipe, tmp_path):
    code, out, _ = vla(recipe)
    assert code == 0 and "step 4: held-out loss" in out
    assert (tmp_path / "runs" / "toy" / "checkpoints" / "000004" / "pretrained_model").is_dir()
    code, _, err = vla(recipe)
    assert code == 2 and "--resume" in err
    code, _, err = vla(recipe, "--resume", "--steps", 6)
    assert code == 2 and "steps: 4 -> 6" in err
    code, out, _ = vla(recipe, "--resume", "--steps", 6, "--allow-changed")
    assert code == 0 and "goes on at step 4 of 6" in out


def test_a_dry_run_says_everything_and_leaves_nothing(vla, recipe, tmp_path):
    code, out, _ = vla(recipe, "--dry-run", "--batch-size", 12, "--lr", "0.5")
    assert code == 0 and "batch: 12 = 1 ranks" in out and "is sound" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mime.py"], "mine.py"),
        (["mine.py:LONGER"], "Choices: RUN"),
        (["mine.py", "--stepz", "5"], "vla train --help"),
        (["mine.py", "--steps", "many"], "invalid int value"),
        (["mine.py", "--zero", "5"], "Choices: 0, 1, 2, 3"),
        (["mine.py", "--batch-size", "0"], "batch_size must be at least 1"),
        (["mine.py", "--init", "nowhere"], "no checkpoint at nowhere"),
    ],
)
def test_a_mistyped_word_is_one_line_with_the_choices(vla, recipe, words, says):
    code, _, err = vla(*words)
    assert code == 2 and says in err and err.count("\n") == 1 and err.startswith("error: ")


@pytest.mark.slow
def test_torchrun_trains(recipe, shards, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vla", "train", recipe, "--data-root", shards]
    done = subprocess.run([*command, "--out", tmp_path / "run"], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "batch: 8 = 2 ranks x 1 micro-batches x 4" in done.stdout and done.stdout.count("saved ") == 1


def test_a_batch_that_does_not_divide_over_a_launchers_ranks_is_refused(vla, recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = vla(recipe, "--batch-size", "9", "--dry-run")
    assert code == 2 and "Use --batch-size 8 or 10." in err
