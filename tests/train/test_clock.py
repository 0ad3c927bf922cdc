"""Where a step's time goes: every second has one name, and a rank that holds the others up is named."""

from __future__ import annotations

import itertools
import json
import time

import pytest
import torch

from tests.train.processes import warm
from tests.train.toy import toy_run
from vla.train.clock import MOST_MARKS, PHASES, Phases, slowest
from vla.train.loop import train


def test_a_phase_within_another_counts_for_itself(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 16.0])  # begins, begins, ends, ends; begins, taken, ends
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    phases = Phases(torch.device("cpu"))
    with phases("outer"), phases("inner"):
        pass
    with phases("outer"):
        assert phases.take() == {"outer": 1.0 + 3.0 + 5.0, "inner": 2.0, "other": 4.0}


def test_on_a_gpu_events_are_read_once_a_line(monkeypatch):
    """Its clock stood in for: events that note when they were recorded, and that know whether anything waited for them."""
    now, waits = itertools.count(), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at_ms = 1e3 * next(now)

        def synchronize(self):
            waits.append(self.at_ms)

        def elapsed_time(self, later):
            return later.at_ms - self.at_ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    phases = Phases(torch.device("cuda"))
    phases.take()
    for _ in range(3):
        with phases("forward"):
            pass
        with phases("backward"):
            pass
    assert len(waits) == 1  # that of `take`
    assert phases.take() == {"forward": 3.0, "backward": 3.0, "other": 7.0}
    for _ in range(MOST_MARKS):
        with phases("forward"):
            pass
    assert 2 < len(waits) < 6
    assert phases.take()["forward"] == MOST_MARKS


def test_the_line_of_the_log_splits_the_step_and_counts_tokens(shards, tmp_path):
    train(toy_run(tensorboard=True, validate_every=3, save_every=3), tmp_path / "run", data_root=shards, near=shards)
    rows = [row for row in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()) if row["kind"] == "train"]
    assert len(rows) == 6
    for row in rows:
        parts = [row[f"{name}_s"] for name in (*PHASES, "other")]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(row["step_s"], rel=0.02)
        assert row["samples_per_s"] == pytest.approx(8 / row["step_s"])
        # One step of 8 samples: 1 view's token, a state token, 1 or 2 words, and 3 or 4 queries each.
        assert 8 * 5 <= row["tokens_per_s"] * row["step_s"] <= 8 * 9
        assert row["tflops_per_s"] > 0 and "mfu" not in row  # no peak is known of a CPU
        assert {*row["grad_norms"]} == {"backbone", "state_in", "decoder"}
        assert sum(norm**2 for norm in row["grad_norms"].values()) == pytest.approx(row["grad_norm"] ** 2, rel=1e-4)
    assert "validation_total_s" in rows[3] and "save_total_s" in rows[3]  # after the third: named, and no part of the step
    assert rows[-1]["left_s"] == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_the_slow_one_of_two_or_of_many_is_named():
    assert slowest([0.1, 0.2]) == {"rank_median_s": 0.1, "rank_slowest_s": 0.2, "rank_slowest": 1, "straggler": 1}
    assert "straggler" not in slowest([0.10, 0.14])
    assert slowest([0.1, 0.1, 0.1, 0.9, 0.1])["straggler"] == 3


@pytest.mark.slow
def test_a_rank_that_sleeps_is_named_in_the_log(shards, tmp_path):
    with warm() as processes:
        assert processes.run("sleeps", world=2, root=shards, out=tmp_path / "run", seconds=0.5) == [0, 0]
    rows = [row for row in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()) if row["kind"] == "train"]
    assert [row["straggler"] for row in rows] == [1]
    assert rows[0]["rank_slowest_s"] > 0.5 and rows[0]["communication_s"] > rows[0]["rank_median_s"]  # the other waited for it
    assert "rank 1 is slow" in (tmp_path / "said.txt").read_text()
