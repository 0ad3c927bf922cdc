"""Benchmarks that need what is not installed here say so, and what they run of ours runs."""

from __future__ import annotations

import argparse
import importlib.util

import pytest

from benchmarks import peers
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
