"""Benchmarks that need what is not installed here say so, and what they run of ours runs."""

from __future__ import annotations

import argparse
import importlib.util
import json

import pytest
import torch

from benchmarks import inference, peers, published, training
from benchmarks.pages import performance


def test_without_lerobot_the_result_and_the_page_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = peers.measure(argparse.Namespace(threads=1))
    assert found["could_not_run"] == "lerobot is not installed" and "pip install lerobot" in found["install"]
    (tmp_path / "peers.json").write_text('{"could_not_run": "lerobot is not installed"}')
    assert "Could not run: lerobot is not installed." in performance(tmp_path)


@pytest.mark.parametrize(("name", "frames", "horizon"), [("act", 1, 100), ("diffusion_policy", 2, 16)])
def test_our_side_of_the_comparison_acts(name, frames, horizon):
    ours = peers.Ours(name, peers.Data.random(1, frames, 32, horizon))
    assert ours.call().shape == (1, horizon, peers.WIDTH)


@pytest.mark.thorough
def test_inference_is_measured_against_the_machine(capsys, monkeypatch):
    words = ["inference", "--json", "--only", "act", "openvla", "--blocks", "1", "--calls", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", words)
    inference.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found["rows"]) == {case.name for case in inference.CASES if case.preset in ("act", "openvla")}
    assert found["ceilings"]["tflops_per_s"] > 0 and found["ceilings"]["gb_per_s"] > 0
    for row in found["rows"].values():
        assert (
            row["cosine"] > 0.999
            and row["limit_ms"] > 0
            and row["share_of_limit"] > 0
            and row["refused"] == ["no GPU: nothing is captured"]
        )
    monkeypatch.setattr("sys.argv", [*words, "--size", "published"])
    monkeypatch.setattr(published, "memory_bytes", lambda device: 1 << 30)
    inference.main()
    row = json.loads(capsys.readouterr().out)["rows"]["OpenVLA, 7 tokens one by one, 1 image"]
    assert "needs about 88" in row["could_not_run"] and "this machine has 1" in row["could_not_run"]


def test_the_least_time_of_a_product_is_that_of_its_bytes_or_of_its_operations():
    a, b = torch.zeros(64, 32), torch.zeros(32, 16)
    for flops_per_s, bytes_per_s, seconds in ((1.0, 1e9, 2 * 64 * 32 * 16), (1e12, 1.0, 4 * (64 * 32 + 32 * 16 + 64 * 16))):
        with torch.inference_mode(), inference.Roofline(published.Ceilings(flops_per_s, bytes_per_s)) as roofline:
            torch.relu(a @ b)
        assert roofline.seconds == pytest.approx(seconds)


@pytest.mark.thorough
def test_a_training_step_is_measured_beside_transformers(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["training", "--json", "--only", "pi0", "--blocks", "1", "--batch", "1", "--threads", "1"])
    training.main()
    (row,) = json.loads(capsys.readouterr().out)["rows"].values()
    assert row["batch"] == 1 and row["gflop_a_sample"] > 10 and row["plain_mfu"] > 0
    assert row["peer_samples_per_s"] > 0 and row["speed_over_peer"] > 0


@pytest.mark.parametrize("benchmark", [inference, training])
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_without_a_gpu_the_result_says_so(benchmark, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark", "--device", "cuda", "--json"])
    benchmark.main()
    assert json.loads(capsys.readouterr().out)["could_not_run"] == "no CUDA device"
