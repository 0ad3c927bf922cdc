"""Numbers that must not reach the weights: skipped on all ranks, written down, and never mistaken for what is only noisy."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.train.processes import DEEPSPEED, warm
from tests.train.test_faults_processes import go
from tests.train.toy import toy_run
from vla.train import spikes
from vla.train.engine import Limits, Update
from vla.train.job import Job
from vla.train.loop import Diverged, train


def rows(out, kind):
    return [row for row in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if row["kind"] == kind]


@pytest.fixture
def spoilt(monkeypatch):
    """Labels of the given steps become a thousand times as large."""

    def spoil(steps: set[int], batch_size: int = 8) -> None:
        batch = Job.batch

        def made(self, samples):
            found = batch(self, samples)
            if samples[0].position // batch_size in steps and len(samples) == batch_size:
                found = replace(found, target=replace(found.target, action_BTA=found.target.action_BTA * 1000))
            return found

        monkeypatch.setattr(Job, "batch", made)

    return spoil


def test_a_spike_is_skipped_and_its_positions_written_down(shards, tmp_path, spoilt):
    spoilt({70})
    train(toy_run(steps=72, log_every=60), tmp_path / "run", data_root=shards, near=shards)
    (skip,) = rows(tmp_path / "run", "skip")
    assert skip["why"] == "a spike" and skip["step"] == 71 and skip["positions"] == [560, 568]
    assert float(skip["loss"]) > 10 * rows(tmp_path / "run", "train")[0]["loss"]
    assert rows(tmp_path / "run", "train")[-1]["skipped"] == 1


@pytest.mark.faults
def test_without_a_limit_it_would_have_moved_the_weights(shards, tmp_path, spoilt):
    spoilt({70})
    train(toy_run(steps=72, log_every=60, spike_sigmas=0.0), tmp_path / "run", data_root=shards, near=shards)
    assert rows(tmp_path / "run", "skip") == []


@pytest.mark.faults
def test_too_many_spikes_in_a_row_stop_the_run_with_a_checkpoint(shards, tmp_path, spoilt):
    spoilt(set(range(90, 120)))
    with pytest.raises(Diverged, match=r"3 updates in a row were skipped, the last at step 93 .*a spike.*Saved"):
        train(toy_run(steps=120, log_every=50, max_skips=3), tmp_path / "run", data_root=shards, near=shards)
    assert (tmp_path / "run" / "checkpoints" / "000093").is_dir()


def walk(pairs, sigmas=10.0):
    """Steps that would be skipped."""
    recent, skipped = (), []
    for step, (loss, norm) in enumerate(pairs):
        limit = spikes.limits(recent, sigmas)
        update = Update(loss, norm, limit.refuse(loss, norm))
        recent = spikes.remembered(recent, update, limit)
        skipped += [step] if update.skipped else []
    return skipped


@pytest.mark.thorough
def test_no_clean_step_of_ten_thousand_is_taken_for_a_spike():
    """Norms with the heavy tail that small batches have, a loss that falls, jumps down, and all but vanishes."""
    rng = np.random.default_rng(0)
    for tail in (0.05, 0.8):
        steps = np.arange(10_000)
        loss = (0.02 + 3 * np.exp(-steps / 1000)) * rng.lognormal(0, tail / 2, len(steps)) * np.where(steps > 6000, 0.3, 1)
        norm = 0.5 * rng.lognormal(0, tail, len(steps)) * (1 + 10 * np.exp(-steps / 50))
        assert walk(zip(loss.tolist(), norm.tolist(), strict=True)) == []


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_far_out_is_one_even_where_all_is_noisy(which):
    rng = np.random.default_rng(1)
    pairs = rng.lognormal(0, 0.3, (500, 2))
    pairs[300, which] = math.exp(10.5 * 0.3 * 1.1)
    assert walk(pairs.tolist()) == [300]


def test_a_lasting_change_is_taken_for_usual_after_some_steps():
    rng = np.random.default_rng(2)
    pairs = rng.lognormal(0, 0.1, (400, 2))
    pairs[200:] *= 4
    skipped = walk(pairs.tolist())
    assert skipped and skipped[0] == 200 and skipped[-1] < 220 and len(skipped) < 10  # fewer in a row than end a run


def test_batches_without_labels_say_nothing():
    assert spikes.limits([(0.0, 0.0)] * 128, 10.0) == Limits()
    assert walk([(0.0, 0.0)] * 100 + [(1.0, 1.0)] * 100) == []


@pytest.mark.faults
def test_no_step_of_ten_thousand_of_a_clean_run_is_skipped(shards, tmp_path):
    train(toy_run(steps=10_000, log_every=1000), tmp_path / "run", data_root=shards, near=shards)
    assert rows(tmp_path / "run", "skip") == []
    assert [row["skipped"] for row in rows(tmp_path / "run", "train")] == [0] * 10


@pytest.mark.faults
@pytest.mark.parametrize("stages", [[0], [1, 2, 3]], ids=["plain", "zero"])
def test_an_infinite_gradient_or_a_spike_on_one_rank_is_skipped_on_all(shards, tmp_path, stages):
    with warm("tests.train.faults", *(DEEPSPEED if stages != [0] else ())) as processes:
        assert go(processes, "odd_steps", world=2, root=shards, out=tmp_path, stages=stages) == [0, 0]
