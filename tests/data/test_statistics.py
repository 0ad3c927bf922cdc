from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from vla.checkpoint import write_folder
from vla.cli import main
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.shard import Dataset, DatasetInfo, ShardWriter, is_validation
from vla.data.statistics import compute_stats, stats_path
from vla.data.stats_diff import diff
from vla.embodiment import Field, Space
from vla.errors import Damaged, SchemaError, StatsMissing, UserError
from vla.normalize import RobotNormalizer, RobotStats

from .episodes import ROBOT, make_episode, make_video

PLAIN = replace(ROBOT, action=ROBOT.command)


def write(folder, episodes, **info):
    with ShardWriter(folder, DatasetInfo(**{"name": folder.name, "embodiment": ROBOT.to_json(), **info})) as writer:
        for episode in episodes:
            writer.add(episode)
    return folder


@pytest.fixture
def folders(tmp_path):
    return [
        write(tmp_path / "one", [make_episode(f"e{i}", 5 + i, i) for i in range(12)]),
        write(tmp_path / "two", [make_episode("a", 1), make_episode("b", 33, 7)]),
        write(tmp_path / "fast", [make_episode("c", 40, 3, rate_hz=Fraction(25))]),
    ]


@pytest.mark.parametrize("robot", [ROBOT, replace(ROBOT, rate_hz=Fraction(5), horizon=3)], ids=["from_state", "other_rate"])
def test_statistics_are_those_of_the_targets_that_training_sees(folders, robot):
    stats = compute_stats([Dataset.open(folder) for folder in folders], {"arm": robot}, val_fraction=0.0)["arm"]
    rows, states = [], []
    for folder in folders:
        pipeline = Pipeline(Mixture.of([folder], val_fraction=0.0), {"arm": robot}, block=1)
        for sample in pipeline.samples(range(Dataset.open(folder).anchors)):
            rows.append(sample.action_TA[sample.valid_T])
            states.append(sample.observation.state)
    rows, states = np.concatenate(rows), np.concatenate(states)
    assert (stats.action.count, stats.state.count) == (len(rows), len(states))
    for found, want in ((stats.action, rows), (stats.state, states)):
        np.testing.assert_allclose(found.mean_A, want.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.std_A, want.std(0), rtol=1e-9)
        np.testing.assert_array_equal(found.max_A, want.max(0))
        np.testing.assert_array_equal(found.quantile(0.5), np.quantile(want, 0.5, axis=0, method="inverted_cdf"))


def test_rows_that_no_chunk_changes_count_once(folders):
    stats = compute_stats([Dataset.open(folders[0])], {"arm": PLAIN}, val_fraction=0.0)["arm"]
    rows = np.concatenate([make_episode(f"e{i}", 5 + i, i).action for i in range(12)])
    assert stats.action.count == len(rows)
    np.testing.assert_array_equal(stats.action.min_A, rows.min(0))


def test_held_out_episodes_have_no_part(folders):
    dataset = Dataset.open(folders[0])
    train = [i for i in range(12) if not is_validation("one", f"e{i}", 0.3)]
    stats = compute_stats([dataset], {"arm": PLAIN}, val_fraction=0.3)["arm"]
    assert 0 < len(train) < 12 and stats.action.count == sum(5 + i for i in train)
    assert compute_stats(Mixture.of(folders[:1], val_fraction=0.3), {"arm": PLAIN})["arm"].action.count == stats.action.count


def test_kept_statistics_are_the_same_and_never_of_something_else(folders, tmp_path):
    dataset = Dataset.open(folders[0])
    fresh = compute_stats([dataset], {"arm": ROBOT}, 0.1)["arm"].to_json()
    assert not (folders[0] / "stats").exists()
    assert compute_stats([dataset], {"arm": ROBOT}, 0.1, save=True)["arm"].to_json() == fresh
    path = stats_path(dataset, ROBOT, 0.1)
    asked = []
    again = compute_stats([dataset], {"arm": ROBOT}, 0.1, progress=lambda *row: asked.append(row))["arm"]
    assert again.to_json() == fresh and not asked  # read, not computed
    for other in (replace(ROBOT, horizon=5), replace(ROBOT, rate_hz=Fraction(5)), PLAIN):
        assert stats_path(dataset, other, 0.1) != path
    assert stats_path(dataset, ROBOT, 0.2) != path
    newer = Dataset.open(write(tmp_path / "newer" / "one", [make_episode("z", 9)]))
    (newer.folder / "stats").mkdir()
    path.rename(newer.folder / "stats" / path.name)
    assert compute_stats([newer], {"arm": ROBOT}, 0.1)["arm"].state.count == 9  # stale ones are not used
    (newer.folder / "stats" / path.name).write_text("{")
    with pytest.raises(Damaged, match="run `vla stats` again"):
        compute_stats([newer], {"arm": ROBOT}, 0.1)


def test_merged_statistics_fit_a_normaliser_and_are_deterministic(folders):
    datasets = [Dataset.open(folder) for folder in folders]
    one, two = (compute_stats(datasets, {"arm": ROBOT})["arm"] for _ in range(2))
    assert one.to_json() == two.to_json()
    RobotNormalizer.fit(one, ROBOT).check(ROBOT)


def test_video_and_other_robots_have_none(tmp_path, folders):
    with ShardWriter(tmp_path / "v", DatasetInfo(name="v", supervision="none")) as writer:
        writer.add(make_video("a"))
    assert compute_stats([Dataset.open(tmp_path / "v")], {"arm": ROBOT}) == {}
    assert compute_stats([Dataset.open(folders[0])], {"leg": replace(ROBOT, name="leg")}) == {}
    with pytest.raises(SchemaError, match="another state"):
        compute_stats([Dataset.open(folders[0])], {"arm": replace(ROBOT, state=Space((*ROBOT.state.fields, Field("x", 1, "m"))))})


def test_rows_that_are_not_numbers_leave_the_statistics_bit_for_bit(tmp_path, monkeypatch):
    """A NaN in a row takes the row out, of states and actions alike, and is counted; the rest is as if it had never been recorded."""
    clean = [make_episode(f"e{i}", 30 + i, i) for i in range(5)]
    dirty = []
    for number, episode in enumerate(clean):
        at, n = 7 * number, episode.steps + 2  # two rows more: NaN in an action, infinity in a state
        rows = {k: np.insert(getattr(episode, k), [at, at], np.full((2, 4), 0.5), axis=0) for k in ("state", "action")}
        rows["action"][at, 1], rows["state"][at + 1, 2] = np.nan, np.inf
        frames = {c: replace(f, step=np.arange(n), jpeg=f.jpeg + f.jpeg[-2:]) for c, f in episode.frames.items()}
        dirty.append(replace(episode, time_s=np.arange(n) / 10, frames=frames, **rows))
    want = compute_stats([Dataset.open(write(tmp_path / "a" / "arms", clean))], {"arm": PLAIN}, 0.0)["arm"]
    monkeypatch.setattr("vla.data.writer.check_episode", lambda *args: None)  # a writer that checks less
    monkeypatch.setattr("vla.embodiment.Space.check", lambda *args: None)
    dataset = Dataset.open(write(tmp_path / "b" / "arms", dirty))
    monkeypatch.undo()
    found = compute_stats([dataset], {"arm": PLAIN}, 0.0)["arm"]
    assert (found.state.dropped, found.action.dropped) == (10, 10) and (want.state.dropped, want.action.dropped) == (0, 0)
    for kind in ("state", "action"):
        one, two = getattr(found, kind).to_json(), getattr(want, kind).to_json()
        assert {**one, "dropped": 0} == two  # every bit of mean, deviation, extremes and sketch
    encoded = compute_stats([dataset], {"arm": ROBOT}, 0.0)["arm"]  # chunks of four steps from the state: all that hold one are out
    assert np.isfinite(encoded.action.mean_A).all() and encoded.state.dropped == 10 and encoded.action.dropped >= 10
    assert "dropped" in found.state.to_json() and RobotStats.from_json(found.to_json()).state.dropped == 10


def test_a_mixture_and_any_grouping_of_its_datasets_give_one_statistic(folders):
    datasets = [Dataset.open(folder) for folder in folders]
    parts = [compute_stats([d], {"arm": ROBOT}, 0.0)["arm"].to_json() for d in datasets]
    together = compute_stats(Mixture.of(folders, val_fraction=0.0), {"arm": ROBOT})["arm"]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        merged = RobotStats.from_json(parts[order[0]])
        for i in order[1:]:
            merged.merge(RobotStats.from_json(parts[i]))
        assert merged.action.count == together.action.count
        for q in (0.01, 0.5, 0.99):  # small enough to be exact
            np.testing.assert_array_equal(merged.action.quantile(q), together.action.quantile(q))
        np.testing.assert_allclose(merged.action.std_A, together.action.std_A, rtol=1e-12)
    other = compute_stats([datasets[0]], {"arm": replace(ROBOT, horizon=9)}, 0.0)["arm"]
    with pytest.raises(UserError, match="cannot merge"):
        other.merge(together)


def test_a_difference_is_in_units_of_the_range_and_flagged(folders, tmp_path):
    one = compute_stats([Dataset.open(folders[0])], {"arm": PLAIN}, 0.0)["arm"]
    moved = [replace(e, action=e.action * [1, 3, 1, 1] + [2.0, 0, 0, 0]) for e in (make_episode(f"e{i}", 5 + i, i) for i in range(12))]
    two = compute_stats([Dataset.open(write(tmp_path / "moved", moved))], {"arm": PLAIN}, 0.0)["arm"]
    rows = diff(RobotNormalizer.fit(one, PLAIN), RobotNormalizer.fit(two, PLAIN), PLAIN)
    flagged = {(row.kind, row.name): row for row in rows if row.flagged}
    assert set(flagged) == {("action", "position[0]"), ("action", "position[1]")} and len(rows) == 8
    half = RobotNormalizer.fit(one, PLAIN).action.scale[0]
    assert flagged["action", "position[0]"].shift == pytest.approx(2.0 / half) and flagged[
        "action", "position[0]"
    ].stretch == pytest.approx(1)
    assert flagged["action", "position[1]"].stretch == pytest.approx(3)
    assert not [row for row in diff(RobotNormalizer.fit(one, PLAIN), RobotNormalizer.fit(one, PLAIN), PLAIN) if row.flagged]
    with pytest.raises(StatsMissing, match="horizon 4 and 5"):
        diff(RobotNormalizer.fit(one, PLAIN), RobotNormalizer.fit(RobotStats(replace(one.key, horizon=5), one.state, one.action), PLAIN), PLAIN)
    with pytest.raises(StatsMissing, match="only like"):
        diff(RobotNormalizer.fit(one, PLAIN), RobotNormalizer.fit(one, PLAIN, "zscore"), PLAIN)


def test_the_command_compares_datasets_files_and_checkpoints(folders, tmp_path, capsys):
    (tmp_path / "robot.py").write_text(f"from vla.embodiment import Embodiment\nEMBODIMENT = Embodiment.from_json({PLAIN.to_json()!r})\n")
    robot = ["--embodiment", str(tmp_path / "robot.py"), "--val-fraction", "0"]
    same, other = folders[0], write(tmp_path / "moved", [replace(make_episode("e", 40), state=np.full((40, 4), 0.5))])
    assert main(["stats", str(same), "--diff", str(same), *robot]) == 0
    assert "0 of 8 dimensions have moved" in capsys.readouterr().out
    assert main(["stats", str(same), "--diff", str(other), "--json", *robot]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert rows["flagged"] >= 4 and {row["name"] for row in rows["dimensions"] if row["flagged"]} >= {"position[0]"}
    file = stats_path(Dataset.open(same), PLAIN, 0.0)
    assert main(["stats", str(file), "--diff", str(same), *robot]) == 0
    capsys.readouterr()
    normalizer = RobotNormalizer.fit(compute_stats([Dataset.open(same)], {"arm": PLAIN}, 0.0)["arm"], PLAIN)
    config = {"embodiments": [PLAIN.to_json()], "normalizers": {"arm": normalizer.to_json()}}

    def write_config(folder):
        (folder / "config.json").write_text(json.dumps(config))

    checkpoint = write_folder(tmp_path / "ckpt", write_config)
    assert main(["stats", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dimensions"][0]["name"] == "position[0]"
    assert main(["stats", str(checkpoint), "--diff", str(other)]) == 1  # the robot is the checkpoint's own
    assert "position[0]" in capsys.readouterr().out
    for wrong, text in (
        ([str(same)], "give --embodiment"),
        ([str(checkpoint), "--embodiment", "leg"], "unknown embodiment 'leg'. Choices: arm"),
        ([str(tmp_path / "robot.py"), *robot], "is a recipe"),
    ):
        assert main(["stats", *wrong]) == 2
        assert text in capsys.readouterr().err
    (checkpoint / "config.json").write_text("{}")
    assert main(["stats", str(checkpoint)]) == 1  # damaged: its manifest knows
