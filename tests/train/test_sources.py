"""Whose gradient it is: each source's part of a batch, which add up to the whole."""

from __future__ import annotations

import json

import pytest

from tests.train.test_engine import start
from tests.train.toy import toy_run
from vla.noise import Noise
from vla.train.loop import train
from vla.train.validate import source_gradients


def test_the_sources_gradients_add_up_to_the_step_s(shards):
    job, engine = start(shards)
    found = source_gradients(engine.run, job, engine, step=2)
    assert set(found) >= {"a", "b"} and sum(row["samples"] for row in found.values()) == 8
    assert sum(row["share"] for row in found.values()) == pytest.approx(1, abs=1e-4)
    if "c" in found:  # video has no labels
        assert found["c"]["norm"] == 0
    batch = job.batch(job.train.samples(range(16, 24)))
    noise = Noise(batch.position_B, 0)
    weights = job.model.weights(batch, noise)
    whole = engine.gradient(batch, noise, weights)
    assert all(p.grad is None for p in engine.trained)
    engine.forward_backward(batch, noise, weights, last=True)
    assert engine.step(1e-3).grad_norm == pytest.approx(float(whole.norm()), rel=1e-5)


def test_they_are_written_down_when_held_out_data_are_measured_and_change_no_step(shards, tmp_path):
    for name, every in (("with", 2), ("without", 0)):
        train(toy_run(steps=4, validate_every=every, source_gradients=bool(every)), tmp_path / name, data_root=shards, near=shards)
    log = [json.loads(line) for line in (tmp_path / "with" / "log.jsonl").read_text().splitlines()]
    measured = [row["gradients"] for row in log if row["kind"] == "validation"]
    assert len(measured) == 2 and all({"samples", "norm", "share"} == {*row} for sources in measured for row in sources.values())
    state = [tmp_path / name / "checkpoints" / "000004" / "training_state" / "state.safetensors" for name in ("with", "without")]
    assert state[0].read_bytes() == state[1].read_bytes()
