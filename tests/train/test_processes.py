"""Runs that are killed: what comes after is, to the bit, what would have come."""

from __future__ import annotations

import json
import random
import re
import signal
from pathlib import Path

import pytest

from tests.train.processes import warm
from vla.train.checkpoint import STATE, steps_saved


@pytest.fixture(scope="module")
def processes():
    with warm() as running:
        yield running


def samples(ledger: Path, batch_size: int = 8) -> dict[int, str]:
    """Position -> sample. What was taken before a start, past the step that it starts from, was lost with its process."""
    found: dict[int, str] = {}
    for line in ledger.read_text().splitlines():
        first, rest = line.split(" ", 1)
        if first == "from":
            found = {position: sample for position, sample in found.items() if position < int(rest) * batch_size}
        else:
            assert int(first) not in found, f"position {first} came twice"
            found[int(first)] = rest
    return found


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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_two_ranks_then_one_then_two(processes, uninterrupted, shards, tmp_path):
    """Each position of the order once, with its own sample; the losses of one process."""
    settings = {"root": shards, "steps": 12, "save_every": 4, "module": "tests.train.faults", "name": "trains"}
    run = {**settings, "out": tmp_path / "run", "ledger": tmp_path / "ledger"}
    assert processes.run("elsewhere", world=2, die=("stop", 3), **run) == [75, 75]
    assert processes.run("elsewhere", die=("stop", 7), resume=True, **run) == [75]
    assert processes.run("elsewhere", world=2, resume=True, **run) == [0, 0]
    assert processes.run("elsewhere", out=tmp_path / "one", ledger=tmp_path / "one-ledger", **settings) == [0]
    assert samples(tmp_path / "ledger") == samples(tmp_path / "one-ledger")
    want, got = uninterrupted[2], fingerprint(tmp_path / "run")[2]
    assert [row[0] for row in got.values()] == pytest.approx([row[0] for row in want.values()], rel=1e-5, abs=1e-5)


@pytest.mark.thorough
def test_ranks_share_the_features_that_are_missing(processes, shards, tmp_path):
    for name, folder in (("plain", ""), ("kept", tmp_path / "f")):
        assert processes.run("with_features", world=2, root=shards, out=tmp_path / name, folder=folder) == [0, 0]
    logs = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("plain", "kept"))
    plain, kept = ([row["loss"] for row in log if row["kind"] == "train"] for log in logs)
    assert kept and kept == pytest.approx(plain, rel=1e-4)
    assert len(list((tmp_path / "f").rglob("*.safetensors"))) == 2  # each wrote its half


def test_a_rank_that_is_killed_is_named(processes, shards, tmp_path):
    settings = {"root": shards, "out": tmp_path / "run", "module": "tests.train.faults", "name": "fails"}
    assert processes.run("elsewhere", world=2, how="killed", who=1, **settings) == [1, -signal.SIGKILL]
    assert re.search(r"error: rank 1 \(process \d+ on .*\) is gone", (tmp_path / "said-0.txt").read_text())


@pytest.mark.thorough
def test_data_gone_on_one_rank_ends_all_with_the_reason(processes, shards, tmp_path):
    """No rank waits for the one that left: it says what is wrong, and so do the others."""
    exits = processes.run("unreadable_on_one", world=2, root=shards, out=tmp_path / "run")
    assert all(code not in (0, None) and code > 0 for code in exits)
    assert (tmp_path / "said-0.txt").read_text().startswith("rank 1 could not go on: ")
    assert "samples are bad" in (tmp_path / "said-1.txt").read_text()
