"""The experiment on a new robot: its data are what they are said to be, its commands exist, its figures are right by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import new_robot
from tests.data.episodes import ROBOT, make_episode
from vla import cli
from vla.data.format import DatasetInfo
from vla.data.reader import Dataset
from vla.data.writer import ShardWriter
from vla.evaluate.result import EvalResult, Row


@pytest.fixture
def every(tmp_path):
    with ShardWriter(tmp_path / "all", DatasetInfo(name="all", embodiment=ROBOT.to_json())) as writer:
        for number in range(6):
            writer.add(make_episode(f"e{number}", steps=4 + number, seed=number))
    return tmp_path / "all"


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


def test_every_stage_is_a_command_that_there_is_and_needs_what_stands_before_it():
    asked = argparse.Namespace(out=Path("runs/x"), seeds=2, steps=3, pretrain_steps=4, episodes=5)
    robots = list(new_robot.TARGETS)
    stages = new_robot.collecting(robots, 10, asked.out, 2) + new_robot.learning(robots, [5, 10], new_robot.ARMS, asked)
    seen: set[str] = set()
    for stage in stages:
        cli.parse(stage.command)
        assert set(stage.needs) <= seen and stage.name not in seen
        seen.add(stage.name)
        if stage.command[0] == "train":
            new_robot.load_recipe(stage.command[1])
    assert len(stages) == 2 + len(robots) + 3 + 2 * len(robots) * 2 * 2 * len(new_robot.ARMS)


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
    better = new_robot._row([result([1, 0, 1, 1]), result([1, 1, 0, 0])], {"scratch": scratch})
    against = better["against_scratch"]
    assert (against["better"], against["worse"], against["difference"]) == (3, 1, 2 / 8)
    assert better["raw"] == ["1011", "1100"] and better["successes"] == 5 and better["by_seed"] == [3, 2]
    assert not [key for key in new_robot._row(scratch, {}) if key.startswith("against")]


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
    new_robot._same_settings(tmp_path, {"most": 30, "episodes": 40, "steps": 300, "pretrain_steps": 1000})
    monkeypatch.setattr("sys.argv", ["new_robot", "--out", str(tmp_path), *words])
    monkeypatch.setattr(new_robot, "run_stages", lambda *_: pytest.fail("it began"))
    with pytest.raises(SystemExit, match=reason):
        new_robot.main()
