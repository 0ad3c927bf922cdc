"""`vla show RUN`: what a run's log says, as a row and as curves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.train.toy import toy_run
from vla.cli import main
from vla.errors import UserError
from vla.train.curves import History, _line, save_curves, summary
from vla.train.loop import train


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """Two runs, one of which validated and probed on the way."""
    root = tmp_path_factory.mktemp("runs")
    train(toy_run(name="one", steps=40, log_every=2, validate_every=10), root / "one", data_root=shards, near=shards)
    train(toy_run(name="two", steps=20, log_every=2, probe=False, seed=1), root / "two", data_root=shards, near=shards)
    return root


def colours(path):
    """How many pixels are neither white nor grey."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=-1) > 40).sum())


@pytest.mark.thorough
def test_one_run_and_several_are_drawn_and_summed_up(runs, tmp_path, capsys):
    assert main(["show", str(runs / "one"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "40 of 40" in said and "samples/s" in said and "one-curves.png" in said
    assert main(["show", str(runs / "one"), str(runs / "two"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "20 of 20" in said and "one-two-curves.png" in said
    assert colours(tmp_path / "one-curves.png") > 5000 and colours(tmp_path / "one-two-curves.png") > 1000


def test_a_row_says_what_the_log_says(runs):
    history = History.read(runs / "one")
    rows = [json.loads(line) for line in (runs / "one" / "log.jsonl").read_text().splitlines()]
    steps, losses = history.series("train", "loss")
    assert list(zip(steps.tolist(), losses.tolist(), strict=True)) == [(r["step"], r["loss"]) for r in rows if r["kind"] == "train"]
    assert history.names("train", "sources") == ["a", "b"]
    assert len(history.series("validation", "probe", "blank")[0]) == 4
    row = summary(history)
    assert row["step"] == "40 of 40" and row["skipped"] == "0" and row["MFU"] == "-" and row["shuffled"].endswith("%")
    assert summary(History.read(runs / "two"))["shuffled"] == "-"


def test_a_log_that_goes_on_or_was_torn_can_be_shown(runs, tmp_path):
    folder = tmp_path / "going"
    folder.mkdir()
    lines = (runs / "one" / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("\n".join([*lines[:1], lines[1][:20]]))
    save_curves(tmp_path / "going.png", [History.read(folder)])  # one step, no validation
    assert (tmp_path / "going.png").stat().st_size > 10_000
    (folder / "log.jsonl").write_text("\n".join([lines[0][:20], *lines[1:]]))
    with pytest.raises(UserError, match="line 1: not a line of a training log"):
        History.read(folder)
    (folder / "log.jsonl").write_text("")
    with pytest.raises(UserError, match="has not logged a step yet"):
        History.read(folder)


def test_a_long_run_is_smoothed(runs, tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    line = json.loads((runs / "one" / "log.jsonl").read_text().splitlines()[0])
    rows = [{**line, "step": step, "loss": 1.0 + step % 2} for step in range(1, 301)]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    figure = Figure()
    axes = figure.subplots()
    _line(axes, History.read(folder).series("train", "loss"), "long", "red")
    faint, mean = axes.get_lines()
    assert faint.get_alpha() < 0.5 and set(faint.get_ydata()) == {1.0, 2.0}
    assert set(mean.get_ydata()) == {1.5} and len(mean.get_xdata()) == 300 - 300 // 50 + 1


def test_what_is_no_run_is_said(runs, tmp_path, capsys):
    assert main(["show", str(runs / "one"), str(tmp_path)]) == 2
    assert "is no run: it has no log.jsonl" in capsys.readouterr().err
    assert main(["show", str(runs / "one"), "--batch", "3"]) == 2
    assert "--rerun and --batch show data" in capsys.readouterr().err
