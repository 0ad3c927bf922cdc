"""A run of a latent-action model as a whole: killed and resumed, collapsed, and what it says about its codes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.latent_action.dots import CONFIG, write_dots
from tests.latent_action.dots import STEPS as DOT_STEPS
from vla.cli import main
from vla.codecs.quantizer import NSVQ, VQ, ResidualVQ
from vla.data.mixture import Mixture
from vla.data.reader import Dataset
from vla.errors import Damaged, UnsafeChange, UserError
from vla.latent_action.checkpoint import load_latent
from vla.latent_action.moving_distractor import ROBOT, write_moving_distractor
from vla.latent_action.probe import agreement, true_moves
from vla.latent_action.report import health_report
from vla.latent_action.run import LatentRun
from vla.latent_action.train import frame_pairs, train_latent
from vla.noise import Noise
from vla.train.checkpoint import lock

ROOT = Path(__file__).parents[2]
SETTINGS = {"steps": 24, "batch": 8, "log_every": 5, "save_every": 4, "min_perplexity_share": 0.0}


class _Killed(Exception):
    pass


def _until(pairs, position):
    """`pairs.samples`, until the batch from `position` on is asked for."""

    def samples(positions):
        if positions[0] >= position:
            raise _Killed
        return pairs.samples(positions)

    return samples


def test_a_killed_run_goes_on_bit_for_bit(dots, tmp_path):
    pairs = frame_pairs(CONFIG, [dots[1]])
    whole = train_latent(CONFIG, pairs.samples, out=tmp_path / "whole", **SETTINGS)
    for killed_at in (13, 19):  # not at a step that is saved
        with pytest.raises(_Killed):
            train_latent(CONFIG, _until(pairs, killed_at * 8), out=tmp_path / "cut", resume=killed_at == 19, **SETTINGS)
    assert json.loads((tmp_path / "cut/state/state.json").read_text())["step"] == 16
    again = train_latent(CONFIG, pairs.samples, out=tmp_path / "cut", resume=True, **SETTINGS)
    assert again.hash() == whole.hash()
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("whole", "cut")]
    for row in (*logs[0], *logs[1]):
        row.pop("seconds")
    assert logs[0] == logs[1]


def test_another_run_is_not_resumed(dots, tmp_path):
    pairs = frame_pairs(CONFIG, [dots[1]])
    train_latent(CONFIG, pairs.samples, out=tmp_path, **SETTINGS)
    with pytest.raises(UnsafeChange, match="learning_rate"):
        train_latent(CONFIG, pairs.samples, out=tmp_path, resume=True, learning_rate=1e-3, **SETTINGS)
    weights = tmp_path / "state/state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(Damaged, match="state"):
        train_latent(CONFIG, pairs.samples, out=tmp_path, resume=True, **SETTINGS)
    with pytest.raises(UserError, match="folder"):
        train_latent(CONFIG, pairs.samples, resume=True, steps=2, batch=2)


def test_a_run_goes_on_with_the_data_that_it_began_with(dots, tmp_path):
    run, labelled, video = _small_run(steps=4, save_every=2), Mixture.of([dots[0]], "dots", 0.0), Mixture.of([dots[1]], "dots", 0.0)
    run.train(tmp_path, video)
    again = run.train(tmp_path, video, resume=True)
    assert again.hash() == load_latent(tmp_path).hash()
    with pytest.raises(UnsafeChange, match="another data"):  # finished
        run.train(tmp_path, labelled, resume=True)
    with pytest.raises(UnsafeChange, match="another model, steps"):
        replace(run, steps=8, model=replace(CONFIG, gap_s=(0.1, 0.3))).train(tmp_path, video, resume=True)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UnsafeChange, match="another data"):  # killed before its end
        run.train(tmp_path, labelled, resume=True)
    assert run.train(tmp_path, video, resume=True).hash() == again.hash()


def test_a_run_killed_before_its_report_writes_it_when_it_is_resumed(dots, tmp_path, monkeypatch):
    run, video = _small_run(), Mixture.of([dots[1]], "dots", 0.0)
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr("vla.latent_action.run.write_report", _kill)
        run.train(tmp_path, video)
    assert (tmp_path / "model").is_dir() and not (tmp_path / "health.json").exists()
    run.train(tmp_path, video, resume=True)
    assert (tmp_path / "health.json").is_file() and (tmp_path / "codes.png").is_file()


def test_a_launcher_and_a_second_job_are_refused(tmp_path, monkeypatch):
    write_dots(tmp_path / "data" / "video", episodes=4, labelled=False)
    (tmp_path / "mixture.yaml").write_text("name: dots\nwhy: a dot\nsources:\n  - path: video\n    weight: 1\n")
    recipe = tmp_path / "dots.py"
    recipe.write_text(
        "from tests.latent_action.dots import CONFIG\nfrom vla.latent_action.run import LatentRun\n"
        "RUN = LatentRun('dots', 'mixture.yaml', steps=2, batch_size=8, model=CONFIG, min_perplexity_share=0.0)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vla", "train", str(recipe), "--data-root", str(tmp_path / "data"), "--out", str(out)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    alone = _run(command)
    assert alone.returncode == 2 and "one process, not on 2 ranks" in alone.stderr and not out.exists()
    monkeypatch.delenv("WORLD_SIZE")
    with lock(out):
        second = _run(command)
    assert second.returncode == 2 and "is in use by process" in second.stderr and not out.exists()


def test_no_space_for_the_log_is_one_line(dots, tmp_path):
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(UserError, match=r"could not save .*log\.jsonl.* MB are free there"):
            train_latent(CONFIG, frame_pairs(CONFIG, [dots[1]]).samples, steps=1, batch=4, out=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def _small_run(**changes):
    return LatentRun("dots", "dots.yaml", batch_size=8, model=CONFIG, min_perplexity_share=0.0, **{"steps": 2, **changes})


def _kill(*_):
    raise _Killed


@pytest.fixture(name="recipe")
def _recipe(tmp_path):
    """A command that trains LAPO's tiny variant on the toy video."""
    write_moving_distractor(tmp_path / "data" / "video", 6, seed=0)
    recipe = [str(ROOT / "pretrain/lapo.py:tiny"), "--data-root", str(tmp_path / "data")]
    return [sys.executable, "-m", "vla", "train", *recipe, "--steps", "600"]


def _run(command, *more):
    return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_survives_sigkill(recipe, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert _run(recipe, "--out", str(whole)).returncode == 0
    process = subprocess.Popen([*recipe, "--out", str(cut)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (cut / "state").exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cut / "model").exists()
    refused = _run(recipe, "--out", str(cut))
    assert refused.returncode == 2 and "--resume" in refused.stderr
    assert _run(recipe, "--out", str(cut), "--resume").returncode == 0
    assert load_latent(cut).hash() == load_latent(whole).hash()


def test_a_collapse_stops_the_command_with_the_diagnosis(tmp_path, capsys):
    write_dots(tmp_path / "data" / "video", episodes=4, labelled=False, still=True)
    recipe = tmp_path / "still.py"
    recipe.write_text(
        "from tests.latent_action.dots import CONFIG\nfrom vla.latent_action.run import LatentRun\n"
        "RUN = LatentRun('still', 'mixture.yaml', steps=50, batch_size=8, model=CONFIG, threads=1)\n"
    )
    (tmp_path / "mixture.yaml").write_text("name: still\nwhy: nothing moves\nsources:\n  - path: video\n    weight: 1\n")
    assert main(["train", str(recipe), "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out" / "model").exists()
    for words in ("collapsed", "perplexity", "below the threshold of 20%", "hardly differ", "gap_s"):
        assert words in said, said


@pytest.mark.parametrize("quantizer", [ResidualVQ(codes=1, vocabulary=4, latent=2), VQ(codes=1, vocabulary=4, width=2), NSVQ(1, 4, 2)])
def test_dead_entries_are_revived(quantizer):
    built, data = quantizer.build().train(), torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    built(data, Noise(torch.arange(64)))
    with torch.no_grad():
        built.entry_NKd[0, 1:] = 100.0  # far from everything: three of four are dead
        if hasattr(built, "sum_NKd"):
            built.sum_NKd[0, 1:] = 100.0 * built.used_NK[0, 1:, None]
    assert built(data, Noise(torch.arange(64))).code_BN.unique().numel() == 1
    for step in range(400):
        codes = built(data, Noise(torch.arange(64), step)).code_BN
    assert codes.unique().numel() == 4


def test_agreement_between_embodiments(tmp_path):
    one = Dataset.open(write_moving_distractor(tmp_path / "one", 6, 0, labelled=True))
    two = Dataset.open(write_dots(tmp_path / "two", 6))
    codes = {}
    for dataset, sign in ((one, 1), (two, 1)):
        _, moves = true_moves(dataset, 0.1)
        place_XD = sign * moves["displacement/place"]
        codes[dataset.info.name] = (dataset, np.clip(((place_XD + 0.3) / 0.6 * 8).astype(int), 0, 7), None)
    same = agreement(codes, 8, 0.1)
    assert same["one"]["two"] > 0.8 and same["two"]["one"] > 0.8
    mirrored = {**codes, "two": (two, 7 - codes["two"][1], None)}
    assert agreement(mirrored, 8, 0.1)["one"]["two"] < 0
    assert agreement({"one": codes["one"], "again": codes["one"]}, 8, 0.1) == {}  # of one robot


def test_health_names_what_it_cannot_measure(trained, dots, tmp_path):
    model, _ = trained
    slow = write_dots(tmp_path / "slow", episodes=2, labelled=False, every=5)
    health = health_report(model, [Dataset.open(folder) for folder in (*dots, slow)], episodes=6)
    assert "every 0.5 s" in health["sources"]["slow"]["not_measured"]
    assert health["sources"]["video"]["probe_r2"] == {} and health["sources"]["labelled"]["anchors"] == 6 * DOT_STEPS
    both = np.sum([health["sources"][name]["count"] for name in ("video", "labelled")], axis=0)
    np.testing.assert_array_equal(health["count"], both)


def test_the_toy_is_what_it_says(tmp_path):
    info = Dataset.open(write_moving_distractor(tmp_path / "a", 3, 0, labelled=True))
    plain = Dataset.open(write_moving_distractor(tmp_path / "b", 3, 0))
    episode = info.episode(1)
    assert info.info.robot == ROBOT and plain.info.recorded_action is None
    np.testing.assert_allclose(np.diff(episode.state, axis=0), episode.action[:-1], atol=1e-6)
    said = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    ways = np.array([said[span.text.split()[1]] for span in episode.spans for _ in range(span.start, span.stop)])
    assert ((ways * episode.action).sum(1) > 0).mean() > 0.9  # obedient, but for the walls
    assert info.frame(1, "third_person", 3) == plain.frame(1, "third_person", 3)


@pytest.mark.slow
def test_two_stages_beat_one_with_a_distractor(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from latent import measure
    finally:
        sys.path.pop(0)
    rows = [measure(tmp_path, seed, 500, ("one_stage", "two_stage")) for seed in range(3)]
    one, two = (np.mean([row[name]["r2"] for row in rows]) for name in ("one_stage", "two_stage"))
    assert two >= one + 0.05 and two >= 0.7
    assert min(row["two_stage"]["perplexity_share"] for row in rows) >= 0.6
