"""The experiment on a new robot: its data are what they are said to be, its commands exist, its figures are right by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from benchmarks import new_robot
from benchmarks.experiment import same_settings, success
from tests.data.episodes import ROBOT, make_episode
from tests.latent_action.dots import CONFIG, write_dots
from vla import cli
from vla.checkpoint import load_checkpoint, steps_saved
from vla.data.format import DatasetInfo
from vla.data.latents import read_latents, write_latents
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.reader import Dataset
from vla.data.writer import ShardWriter
from vla.embodiment import Embodiment, load_embodiment
from vla.evaluate.result import EvalResult, Row
from vla.latent_action.label import label
from vla.latent_action.train import frame_pairs, train_latent
from vla.types import Episode, Frames, Span


@pytest.fixture
def every(tmp_path):
    with ShardWriter(tmp_path / "all", DatasetInfo(name="all", embodiment=ROBOT.to_json())) as writer:
        for number in range(6):
            writer.add(make_episode(f"e{number}", steps=4 + number, seed=number))
    return tmp_path / "all"


@pytest.fixture
def one_thread():
    """Two beside busy cores take many times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_fewer_demonstrations_are_among_more_and_each_seed_has_its_own(every, tmp_path):
    def chosen(count, seed):
        folder = tmp_path / f"{count}-{seed}"
        new_robot.choose(every, folder, count, seed)
        new_robot.choose(every, folder, count, seed)  # once more: it is there
        dataset = Dataset.open(folder)
        return {dataset.episode(index).id for index in range(len(dataset))}

    assert chosen(2, 0) < chosen(4, 0) and len(chosen(2, 0)) == 2 and len(chosen(4, 0)) == 4
    assert len({frozenset(chosen(3, seed)) for seed in range(4)}) > 1


def test_permuting_gives_every_episode_the_actions_of_another_and_changes_nothing_else(every, tmp_path):
    new_robot.permute(every, tmp_path / "permuted")
    before, after = Dataset.open(every), Dataset.open(tmp_path / "permuted")
    rows = {before.episode(index).id: before.read(index) for index in range(len(before))}
    givers = set()
    for index in range(len(after)):
        found = after.read(index)
        own = rows[found.id]
        assert np.array_equal(found.state, own.state) and [*found.frames] == [*own.frames]
        assert all(found.frames[camera].jpeg == own.frames[camera].jpeg for camera in own.frames)
        fits = [name for name, row in rows.items() if np.array_equal(found.action, np.resize(row.action, own.action.shape))]
        assert len(fits) == 1 and fits != [found.id]
        givers.update(fits)
    assert givers == set(rows)


def test_without_labels_the_same_frames_are_drawn_in_the_same_order(every, tmp_path):
    new_robot.unlabel(every, tmp_path / "video" / "all")
    new_robot.unlabel(every, tmp_path / "video" / "all")  # once more: it is there
    info = Dataset.open(tmp_path / "video" / "all").info
    assert (info.supervision, info.recorded_state, info.recorded_action) == ("none", None, None) and info.robot == ROBOT
    robots = {ROBOT.name: ROBOT}
    labelled, video = (Pipeline(Mixture.of([folder], val_fraction=0.3), robots) for folder in (every, tmp_path / "video" / "all"))
    for own, found in zip(labelled.samples(range(30)), video.samples(range(30)), strict=True):
        assert (found.source, found.episode, found.step) == (own.source, own.episode, own.step)
        assert found.observation.instruction == own.observation.instruction and found.action_TA is None and own.action_TA is not None
        assert found.observation.state.shape == (1, 0)
        assert all(np.array_equal(found.observation.images[camera], image) for camera, image in own.observation.images.items())


def test_codes_of_the_video_are_compared_with_labels_that_it_does_not_have(tmp_path, one_thread):
    videos = [tmp_path / new_robot.VIDEO / name for name in new_robot.SOURCES]
    for folder in videos:
        new_robot.unlabel(write_dots(tmp_path / "data" / folder.name), folder)
    model = train_latent(CONFIG, frame_pairs(CONFIG, videos).samples, steps=150, batch=32, out=tmp_path / new_robot.WATCHER)
    for folder in videos:
        label(Dataset.open(folder), model)
    found = new_robot.codes(tmp_path)
    assert [*found] == [*new_robot.SOURCES]
    for row in found.values():
        assert [*row["probe_r2"]] == ["displacement/place", "action/move"] and min(row["probe_r2"]["displacement/place"]) > 0.5
        assert len(row["perplexity"]) == CONFIG.quantizer.codes and 0 < row["perplexity_share"] <= 1 and 0 <= row["dead_share"] < 1


def test_exchanged_codes_are_those_of_another_episode_and_a_run_finds_them(every, tmp_path):
    """Every anchor's codes tell whose they are; the same video, so that a mixture draws the same."""
    for name in ("video", "mixed"):
        new_robot.unlabel(every, tmp_path / name)
    video, mixed = (Dataset.open(tmp_path / name) for name in ("video", "mixed"))
    owner_X = np.repeat(np.arange(len(video)), video.anchors_E)
    write_latents(video, "a" * 64, np.stack([owner_X, np.arange(len(owner_X))], 1))
    new_robot.exchange_codes(tmp_path / "video", tmp_path / "mixed", "a" * 64)
    found_XN, first_E = read_latents(mixed, "a" * 64), np.cumsum(video.anchors_E) - video.anchors_E
    givers = []
    for index, (first, count) in enumerate(zip(first_E, video.anchors_E, strict=True)):
        (giver,) = np.unique(found_XN[first : first + count, 0])
        assert np.array_equal(found_XN[first : first + count, 1], first_E[giver] + np.arange(count) % video.anchors_E[giver])
        assert giver != index
        givers.append(giver)
    assert sorted(givers) == list(range(len(video)))
    assert [mixed.episode(index).id for index in range(len(mixed))] == [video.episode(index).id for index in range(len(video))]


@pytest.mark.thorough
def test_codes_train_a_backbone_that_a_new_robot_starts_from(tmp_path, monkeypatch, one_thread):
    """The arm `latent` in a few steps, by the commands of its stages, on pictures that tell nothing."""
    monkeypatch.chdir(new_robot.ROOT)
    robots = {"sawyer": "metaworld_sawyer", "fetch": "fetch"}
    for name in new_robot.SOURCES:
        _write_noise(tmp_path / "data" / name, load_embodiment(robots[name]))
        new_robot.unlabel(tmp_path / "data" / name, tmp_path / new_robot.VIDEO / name)
    _write_noise(tmp_path / "panda" / "4-0" / "new_robot", load_embodiment("panda"))
    config, videos = new_robot.latent_action.model, [tmp_path / new_robot.VIDEO / name for name in new_robot.SOURCES]
    train_latent(config, frame_pairs(config, videos).samples, 2, 8, out=tmp_path / new_robot.WATCHER, min_perplexity_share=0.0)
    asked = argparse.Namespace(out=tmp_path, seeds=1, steps=2, pretrain_steps=2, episodes=1)
    plan = new_robot.coding(tmp_path) + new_robot.learning(["panda"], [4], ["scratch", "latent"], asked)
    stages = {stage.name: stage for stage in plan}
    for name in ("label", "pretrain latent", "panda 4-0 latent"):
        assert cli.main([*stages[name].command, *(("--batch-size", "8") if stages[name].phase == "train" else ())]) == 0
    (before, weights), (after, tuned) = (
        load_checkpoint(steps_saved(tmp_path / "runs" / name)[-1] / "pretrained_model") for name in ("pretrain latent", "panda 4-0 latent")
    )
    assert before.untrained and not after.untrained and after.model == new_robot.panda_scratch.model
    assert after.normalizers["panda"].action.method == "quantile"
    moved = [float((tensor - weights[name]).abs().max()) for name, tensor in tuned.items() if name.startswith("backbone.")]
    assert moved and 0 < max(moved) < 0.02  # two steps of AdamW from there; fresh weights would lie tenths away


def _write_noise(folder: Path, robot: Embodiment, episodes: int = 120, steps: int = 4) -> None:
    with ShardWriter(folder, DatasetInfo(name=folder.name, embodiment=robot.to_json())) as writer:
        for number in range(episodes):
            rng = np.random.default_rng(number)
            images = [simplejpeg.encode_jpeg(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(steps)]
            writer.add(
                Episode(
                    id=f"{folder.name}{number}",
                    embodiment=robot.name,
                    rate_hz=robot.rate_hz,
                    supervision="actions",
                    instructions=(Span("open the drawer", 0, steps),),
                    time_s=np.arange(steps) / float(robot.rate_hz),
                    frames={camera: Frames(np.arange(steps), tuple(images)) for camera in robot.cameras},
                    state=rng.normal(size=(steps, robot.state.size)),
                    action=rng.uniform(-1, 1, size=(steps, robot.command.size)),
                )
            )


def test_every_stage_is_a_command_that_there_is_and_needs_what_stands_before_it():
    asked = argparse.Namespace(out=Path("runs/x"), seeds=2, steps=3, pretrain_steps=4, episodes=5)
    robots = list(new_robot.TARGETS)
    stages = new_robot.collecting(robots, 10, asked.out, 2) + new_robot.coding(asked.out)
    stages += new_robot.learning(robots, [5, 10], new_robot.ARMS, asked)
    seen: set[str] = set()
    for stage in stages:
        cli.parse(stage.command)
        assert set(stage.needs) <= seen and stage.name not in seen
        seen.add(stage.name)
    for recipe in {stage.command[1] for stage in stages if stage.command[0] == "train"}:
        new_robot.load_recipe(recipe)
    assert len(stages) == 2 + len(robots) + 2 + len(new_robot.PRETRAINED) + 2 * len(robots) * 2 * 2 * len(new_robot.ARMS)


def test_how_many_demonstrations_from_scratch_a_success_is_worth():
    scratch = {5: 0.2, 10: 0.4, 20: 0.3, 40: 0.8}  # at 20 it is known to be no worse than at 10
    worth = new_robot.demonstrations_for
    assert worth(scratch, 0.9, 10) == {"at_least": 4.0}
    assert worth(scratch, 0.1, 10) == {"at_most": 0.5}
    assert worth(scratch, 0.6, 5) == {"about": pytest.approx((20 * 40) ** 0.5 / 5)}
    assert worth(scratch, 0.3, 5) == {"about": pytest.approx(2**0.5)}
    assert worth({10: 0.8, 30: 0.8}, 0.8, 30) == {"about": 1.0} == worth({10: 0.0, 30: 0.0}, 0.0, 30)
    assert worth(scratch, 0.4, 10) == {"about": pytest.approx(1.0)}


def test_arms_are_paired_by_seed_and_episode():
    def result(outcomes):
        rows = tuple(Row("lift", number, 100 + number, ok, 5, "success" if ok else "max_steps", 0.0) for number, ok in enumerate(outcomes))
        facts = {"name": "x"}
        return EvalResult(facts, "panda", "panda", False, 0, 10, "", 64, {"lift": 9}, rows, 1.0, 1.0, 1, {})

    scratch = [result([0, 0, 1, 1]), result([0, 0, 0, 1])]
    better = success([result([1, 0, 1, 1]), result([1, 1, 0, 0])], {"scratch": scratch})
    against = better["against_scratch"]
    assert (against["better"], against["worse"], against["difference"]) == (3, 1, 2 / 8)
    assert better["raw"] == ["1011", "1100"] and better["successes"] == 5 and better["by_seed"] == [3, 2]
    assert not [key for key in success(scratch, {}) if key.startswith("against")]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--demonstrations", "x"], "give numbers of at least 2"),
        (["--demonstrations", "1,5"], "give numbers of at least 2"),
        (["--robots", "panda,robot"], "robot: robots are panda, "),
        (["--arms", "pretrained"], "`scratch` is what the other arms are compared with"),
        (["--seeds", "0"], "at least 1"),
        (["--demonstrations", "10,50"], "was begun with .*'most': 30.*choose another --out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_collected(words, reason, tmp_path, monkeypatch):
    same_settings(tmp_path, {"most": 30, "episodes": 40, "steps": 300, "pretrain_steps": 1000})
    monkeypatch.setattr("sys.argv", ["new_robot", "--out", str(tmp_path), *words])
    monkeypatch.setattr(new_robot, "run_all", lambda *_: pytest.fail("it began"))
    with pytest.raises(SystemExit, match=reason):
        new_robot.main()
