"""Runs that are killed: what comes after is, to the bit, what would have come."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.train.processes import warm
from vla.train.checkpoint import STATE, steps_saved


@pytest.fixture(scope="module")
def processes():
    with warm() as running:
        yield running


def fingerprint(out: Path) -> tuple:
    """All of the newest training state by digest, and the losses of every step."""
    newest = steps_saved(out)[-1]
    files = json.loads((newest / STATE / "manifest.json").read_text())["files"]
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = {row["step"]: (row["loss"], row["grad_norm"], row["parts"], row["sources"]) for row in rows if row["kind"] == "train"}
    return newest.name, files["state.safetensors"]["sha256"], losses


@pytest.fixture(scope="module")
def uninterrupted(processes, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "whole"
    assert processes.run("run_and_die", root=shards, out=out, steps=12, save_every=4) == [0]
    return fingerprint(out)


def test_killed_and_resumed_is_bit_identical(processes, uninterrupted, shards, tmp_path):
    settings = {"root": shards, "out": tmp_path / "run", "steps": 12, "save_every": 4, "workers": 1}
    first, second = sorted(random.Random(7).sample(range(1, 12), 2))
    assert processes.run("run_and_die", kill_at=first, **settings) == [-signal.SIGKILL]
    assert processes.run("run_and_die", kill_at=second, resume=True, **settings) == [-signal.SIGKILL]
    assert processes.run("run_and_die", resume=True, **settings) == [0]
    assert fingerprint(tmp_path / "run") == uninterrupted


def test_asked_to_stop_saves_everything_and_says_so(processes, uninterrupted, shards, tmp_path):
    settings = {"root": shards, "out": tmp_path / "run", "steps": 12, "save_every": 4}
    assert processes.run("run_until_step", until=6, **settings) == [75]
    assert steps_saved(tmp_path / "run")[-1].name == "000006"  # no step lost
    assert processes.run("run_and_die", resume=True, **settings) == [0]
    assert fingerprint(tmp_path / "run") == uninterrupted


def test_ranks_of_a_launcher_train_together(processes, shards, tmp_path):
    (tmp_path / "mine.py").write_text("from tests.train.toy import toy_run\nRUN = toy_run(steps=3)\n")
    words = ["train", tmp_path / "mine.py", "--data-root", shards, "--out", tmp_path / "run"]
    for more, code, says in (
        ([], 0, "batch: 8 = 2 ranks x 1 micro-batches x 4"),
        ([], 2, "--resume"),  # the second rank learns from the first that there is a run
        (["--batch-size", "9"], 2, "Use --batch-size 8 or 10."),
    ):
        said = tmp_path / "said"
        said.write_text("")
        assert processes.run("command", world=2, words=[*words, *more], said=said) == [code, code]
        assert says in said.read_text()
        assert said.read_text().count("saved ") == (code == 0)  # only the first rank speaks


@pytest.mark.faults
def test_killed_at_every_step(processes, uninterrupted, shards, tmp_path):
    for step in range(1, 12):
        settings = {"root": shards, "out": tmp_path / str(step), "steps": 12, "save_every": 4}
        assert processes.run("run_and_die", kill_at=step, **settings) == [-signal.SIGKILL]
        assert processes.run("run_and_die", resume=True, **settings) == [0]
        assert fingerprint(tmp_path / str(step)) == uninterrupted


@pytest.mark.faults
def test_killed_at_every_write_of_a_save(processes, shards, tmp_path):
    """At each flush to disk: the newest complete checkpoint is found, nothing half-written is, and the run ends as it would have."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert processes.run("run_and_die", root=shards, out=whole, steps=6) == [0]
    for write in itertools.count(1):
        shutil.rmtree(out, ignore_errors=True)
        assert processes.run("run_and_die", root=shards, out=out, steps=6, save_every=3, kill_at=4) == [-signal.SIGKILL]
        died = processes.run("save_and_die", root=shards, out=out, at_write=write) == [-signal.SIGKILL]
        assert steps_saved(out)[0].name == "000003"
        assert processes.run("run_and_die", root=shards, out=out, resume=True, steps=6, save_every=3) == [0]
        assert fingerprint(out) == fingerprint(whole)
        if not died:
            break
    assert write > 8  # two folders of a few files each, themselves, and the folder around them


def test_data_gone_on_one_rank_ends_all_with_the_reason(processes, shards, tmp_path):
    """No rank waits for the one that left: it says what is wrong, the others that somebody did."""
    exits = processes.run("unreadable_on_one", world=2, root=shards, out=tmp_path / "run")
    assert all(code not in (0, None) and code > 0 for code in exits)
    assert (tmp_path / "said-0.txt").read_text() == "another rank could not go on; its error says why"
    assert "samples are bad" in (tmp_path / "said-1.txt").read_text()
