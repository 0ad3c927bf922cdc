from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.shard import Dataset, DatasetInfo, ShardWriter, is_validation
from vla.data.statistics import compute_stats, stats_path
from vla.embodiment import Field, Space
from vla.errors import Damaged, SchemaError
from vla.normalize import RobotNormalizer

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
    RobotNormalizer.fit(one).check(ROBOT)


def test_video_and_other_robots_have_none(tmp_path, folders):
    with ShardWriter(tmp_path / "v", DatasetInfo(name="v", supervision="none")) as writer:
        writer.add(make_video("a"))
    assert compute_stats([Dataset.open(tmp_path / "v")], {"arm": ROBOT}) == {}
    assert compute_stats([Dataset.open(folders[0])], {"leg": replace(ROBOT, name="leg")}) == {}
    with pytest.raises(SchemaError, match="another state"):
        compute_stats([Dataset.open(folders[0])], {"arm": replace(ROBOT, state=Space((*ROBOT.state.fields, Field("x", 1, "m"))))})
