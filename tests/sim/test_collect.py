"""Collecting with real simulators in real processes: order, bytes, yields, noise, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from vla.cli import main
from vla.data.format import read_manifest
from vla.errors import UserError
from vla.sim.collect import Plan, attempts, collect
from vla.sim.demonstrate import Attempt, Recorder, ar1_noise
from vla.sim.suites import load_suite

HOPELESS = """
from dataclasses import replace
from vla.sim.suites import load_suite

suite = load_suite("fetch")
reach, push = suite.task("reach"), suite.task("push")
SUITE = replace(suite, name="hopeless", tasks=(reach, replace(push, max_steps=3)))
"""
CRASHING = (
    HOPELESS
    + """
import os
SUITE = replace(SUITE, tasks=(replace(reach, make=lambda task, image_size: os._exit(7)),))
"""
)


SMALL = 200_000
"""Bytes of a shard: several, so that an interrupted run has something to keep."""


MISSING = (
    HOPELESS
    + """
from vla.errors import UserError

def make(task, image_size):
    raise UserError("pip install it")

SUITE = replace(SUITE, tasks=(replace(reach, make=make),))
"""
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan("fetch", episodes=3, tasks=("lift", "reach"), noise_share=0.5, seed=40)


@pytest.fixture(scope="module")
def collected(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "data"
    seen: list[tuple[int, int, str]] = []
    report = collect(plan, folder, workers=2, max_shard_bytes=SMALL, progress=lambda *now: seen.append(now))
    assert report.episodes == 6 and not report.missing and report.folder == folder
    assert [row.task for row in report.yields] == ["lift", "reach"]
    assert seen[-1][:2] == (6, 6) and len(seen) == sum(row.attempts for row in report.yields)
    return folder


@pytest.mark.thorough
def test_one_worker_writes_the_bytes_of_two(plan: Plan, collected: Path, tmp_path: Path) -> None:
    collect(plan, tmp_path / "data", workers=1, max_shard_bytes=SMALL)
    names = sorted(path.name for path in collected.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "data").iterdir())
    for name in names:
        assert (collected / name).read_bytes() == (tmp_path / "data" / name).read_bytes(), name


def test_a_dataset_says_what_it_holds(collected: Path) -> None:
    manifest = read_manifest(collected)
    info = manifest["info"]
    assert info["supervision"] == "actions" and info["embodiment"]["name"] == "fetch" and info["licence"] == "MIT"
    assert manifest["episodes"] == 6 and sorted(manifest["cameras"]) == ["side", "third_person"]
    for row in info["info"]["yields"]:
        assert row["successes"] == 3 <= row["attempts"]


@pytest.mark.thorough
def test_a_resumed_run_writes_the_bytes_of_an_uninterrupted_one(plan: Plan, collected: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_late(done: int, wanted: int, task: str) -> None:
        if done == wanted - 1:
            raise Stop

    folder = tmp_path / "data"
    with pytest.raises(Stop):
        collect(plan, folder, workers=1, progress=stop_late, max_shard_bytes=SMALL)
    assert list(folder.glob("shard-*")), "nothing was kept, so nothing is resumed"
    with pytest.raises(UserError, match="resume"):
        collect(plan, folder, max_shard_bytes=SMALL)
    collect(plan, folder, workers=1, resume=True, max_shard_bytes=SMALL)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {path.name: path.read_bytes() for path in collected.iterdir()}


def recorded(suite: str, task: str, seed: int, noise_sd: float = 0.0, image_every: int = 2) -> Attempt:
    loaded = load_suite(suite)
    env = loaded.make(task, 32)
    attempt = Recorder(loaded, image_every).attempt(env, seed, noise_sd)
    env.close()
    return attempt


def test_an_episode_holds_what_was_seen_and_commanded() -> None:
    attempt = recorded("fetch", "reach", seed=3, image_every=3)
    episode = attempt.episode
    assert attempt.success and episode is not None
    assert episode.steps == attempt.steps + load_suite("fetch").task("reach").tail
    assert episode.state is not None and episode.state.shape == (episode.steps, 5)
    assert episode.action is not None and episode.action.shape == (episode.steps, 4)
    assert np.abs(episode.action).max() <= 1
    np.testing.assert_allclose(np.diff(episode.time_s), 0.04)
    (span,) = episode.instructions
    assert (span.text, span.start, span.stop) == ("reach the red ball", 0, episode.steps)
    for frames in episode.frames.values():
        assert frames.step.tolist() == list(range(0, episode.steps, 3))
        assert simplejpeg.decode_jpeg(frames.jpeg[0]).shape == (32, 32, 3)
    assert episode.info == {"task": "reach", "seed": 3, "success": True, "expert": "scripted", "noise_sd": 0.0}


def test_tracks_are_where_the_gripper_is_seen() -> None:
    """The same episode as commands and as tracks: what goes left in the world goes one way in the picture."""
    tracks, commands = (recorded(suite, "reach", seed=3).episode for suite in ("fetch-tracks", "fetch"))
    assert tracks is not None and commands is not None and tracks.state is not None and commands.state is not None
    assert (tracks.embodiment, tracks.supervision, list(tracks.frames)) == ("human_tracks", "tracks", ["third_person"])
    np.testing.assert_array_equal(tracks.action[:-1], tracks.state[1:])
    assert ((tracks.state > 0) & (tracks.state < 256)).all(), "the gripper is in the picture throughout"
    sideways, seen = commands.state[:, 1], tracks.state[:, 0]
    assert np.ptp(seen) > 5 and abs(np.corrcoef(sideways, seen)[0, 1]) > 0.9


def test_noise_moves_the_arm_but_not_the_label() -> None:
    """From the same first state the label is the same; afterwards the arm is elsewhere, and the label brings it back."""
    clean, noisy = (recorded("fetch", "reach", 3, noise_sd).episode for noise_sd in (0.0, 0.15))
    assert clean is not None and noisy is not None and noisy.state is not None and clean.state is not None
    np.testing.assert_array_equal(clean.action[0], noisy.action[0])
    assert np.abs(clean.state[3] - noisy.state[3]).max() > 0.001
    env = load_suite("fetch").make("reach", 32)  # the label of a noisy step is what the expert does in that very state
    env.reset(seed=3)
    expert, noise = env.expert(), ar1_noise(3, 0.15 * env.noise_A, env.noise_decay)
    for state_P, label_A in zip(noisy.state, noisy.action, strict=True):
        np.testing.assert_array_equal(env.state(), state_P)
        np.testing.assert_array_equal(expert(), label_A)
        env.step(label_A + next(noise))
    env.close()


def test_noise_is_stationary_lasting_and_spares_the_gripper() -> None:
    noise = ar1_noise(0, np.array([0.5, 0.5, 0.0]), decay=0.8)
    rows = np.array([next(noise) for _ in range(20_000)])
    assert rows.std(axis=0) == pytest.approx([0.5, 0.5, 0.0], abs=0.02)
    assert np.corrcoef(rows[:-1, 0], rows[1:, 0])[0, 1] == pytest.approx(0.8, abs=0.02)
    assert abs(np.corrcoef(rows[:, 0], rows[:, 1])[0, 1]) < 0.05


def test_video_has_pictures_and_nothing_else() -> None:
    episode = recorded("fetch-video", "reach", seed=3).episode
    assert episode is not None and episode.supervision == "none"
    assert episode.state is None and episode.action is None and episode.frames


@pytest.mark.slow
def test_failures_are_topped_up_to_a_limit_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "hopeless.py"
    suite.write_text(HOPELESS, encoding="utf-8")
    code = main(["collect", "--suite", str(suite), "--episodes", "2", "--attempts", "3", "--out", str(tmp_path / "data")])
    assert code == 1
    printed = capsys.readouterr().out
    assert "push lacks 2 of 2 episodes" in printed
    yields = read_manifest(tmp_path / "data")["info"]["info"]["yields"]
    assert {row["task"]: (row["successes"], row["attempts"]) for row in yields} == {"reach": (2, 2), "push": (0, 6)}
    with pytest.raises(UserError, match="succeeded in no attempt"):
        collect(Plan(str(suite), episodes=1, tasks=("push",)), tmp_path / "empty", workers=1)


def test_a_simulator_that_dies_is_named(tmp_path: Path) -> None:
    suite = tmp_path / "crashing.py"
    suite.write_text(CRASHING, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"died at task reach, seed 100000 \(exit code 7\)"):
        list(attempts(Plan(str(suite), episodes=1), workers=1))


def test_a_simulator_that_is_not_installed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "missing.py"
    suite.write_text(MISSING, encoding="utf-8")
    assert main(["collect", "--suite", str(suite), "--out", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err == "error: pip install it\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--suite", "metaworld"], "metaworld-objects"),
        (["--suite", "fetch", "--tasks", "reech"], "reach"),
        (["--suite", "fetch", "--episodes", "0"], "at least 1"),
        (["--suite", "fetch", "--noise-share", "1.5"], "between 0 and 1"),
        (["--suite", "fetch", "--workers", "0"], "at least 1"),
        (["--suite", "fetch", "--image-every", "0"], "at least 1"),
        (["--suite", "fetch", "--seed", str(2**30 - 10)], "evaluations"),
        ([], "--suite"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", *words, "--out", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


def test_the_list_names_every_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "metaworld-mt50" in printed and "button-press-topdown" in printed
