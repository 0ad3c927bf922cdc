"""Results on disk, and two of them side by side."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.evaluate.results import result
from vla.commands.eval import print_result
from vla.errors import UserError
from vla.evaluate.compare import compare
from vla.evaluate.pages import evaluation_page
from vla.evaluate.result import episode_seed, read_result, write_result
from vla.evaluate.statistics import compare_paired, compare_unpaired, wilson
from vla.sim.collect import FIRST_SEED as FIRST_COLLECTED
from vla.sim.env import EVALUATION_SEEDS


def test_a_result_survives_the_disk(tmp_path):
    before = result({"open": "++-+", "close": "-"}, videos=({"task": "open", "file": "a.webp"},), notes=("one",))
    assert read_result(write_result(tmp_path / "new" / "r.json", before)) == before
    data = json.loads((tmp_path / "new" / "r.json").read_text())
    assert data["success"] == {**data["success"], "successes": 3, "episodes": 5, "low": wilson(3, 5).low, "high": wilson(3, 5).high}
    assert data["tasks"]["open"]["rate"] == 0.75
    assert "first control step" in data["termination"]
    assert data["rows"][2] == {"task": "open", "episode": 2, "seed": episode_seed(0, "open", 2), "success": False, "steps": 80,
                               "reason": "max_steps", "reward": 0.0, "decisions": 0}  # fmt: skip
    for row in data["rows"]:  # a file from before decisions were counted
        del row["decisions"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert read_result(tmp_path / "old.json") == before


def test_each_group_of_tasks_counts_as_much_as_another(tmp_path, capsys):
    of = {"open": "easy", "close": "easy", "insert": "hard"}
    found = result({"open": "++++", "close": "+++-", "insert": "+---"}, group_of=of)
    assert {name: (rate.successes, rate.episodes) for name, rate in found.groups.items()} == {"easy": (7, 8), "hard": (1, 4)}
    assert found.mean_over_groups == (7 / 8 + 1 / 4) / 2 != found.pooled.rate
    data = json.loads(write_result(tmp_path / "r.json", found).read_text())
    assert (data["groups"]["easy"]["rate"], data["mean_over_groups"]) == (7 / 8, 9 / 16)
    assert read_result(tmp_path / "r.json").mean_over_groups == 9 / 16
    print_result(found)
    printed = capsys.readouterr().out
    assert "easy tasks" in printed and "7/8" in printed and "mean over the 2 groups of tasks: 56.2%" in printed
    page = evaluation_page(found)
    assert page.tiles["mean over groups of tasks"] == "56.2%" and "hard tasks" in page.sections[0].body()


def test_tasks_of_one_group_have_no_mean_over_groups(tmp_path):
    found = result({"open": "+-", "close": "+-"}, group_of={"open": "easy", "close": "easy"})
    assert found.groups == {} and found.mean_over_groups is None
    assert "groups" not in json.loads(write_result(tmp_path / "r.json", found).read_text())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "is no evaluation"),
        ('{"kind": "evaluation", "format_version": 1}', "incomplete evaluation"),
        (None, "cannot read"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match=complaint):
        read_result(tmp_path / "r.json")


def test_evaluations_and_collections_never_share_a_seed():
    seeds = {episode_seed(seed, task, i) for seed in range(3) for task in ("a", "b") for i in range(200)}
    assert len(seeds) == 3 * 2 * 200
    assert min(seeds) >= EVALUATION_SEEDS > FIRST_COLLECTED + 10**6 and max(seeds) < 2**31


def test_equal_seeds_are_paired_per_task_and_pooled():
    a, b = result({"open": "++++--", "close": "++"}), result({"open": "++---+", "close": "+-"})
    got = compare(a, b)
    assert got.paired and got.notes == ()
    assert (got.tasks[0].only_a, got.tasks[0].only_b) == (2, 1)
    assert got.tasks[0].comparison == compare_paired(2, 2, 1, 1)
    assert got.pooled.comparison == compare_paired(3, 3, 1, 1)


def test_only_episodes_with_a_partner_are_compared():
    got = compare(result({"open": "++++"}), result({"open": "+-", "close": "+"}))
    assert got.paired and got.pooled.episodes_a == got.pooled.episodes_b == 2
    assert "only in B, left out: close" in got.notes and "2 episodes without a partner of the same seed left out" in got.notes


def test_other_seeds_are_compared_unpaired_and_said_so():
    got = compare(result({"open": "+++-"}, seed=0), result({"open": "+---"}, seed=1))
    assert not got.paired and got.pooled.comparison == compare_unpaired(3, 4, 1, 4)
    assert "seeds differ" in got.notes[-1]


def test_settings_that_could_explain_a_difference_are_named():
    got = compare(result({"open": "+"}), result({"open": "+"}, execute=5, max_steps={"open": 500}))
    assert "execute: 10 against 5" in got.notes and "max_steps of open: 200 against 500" in got.notes


def test_failures_of_the_simulator_are_told_from_those_of_the_policy():
    a, b = result({"open": "++--"}), result({"open": "+---"})
    rows = (*b.rows[:3], replace(b.rows[3], reason="timed out: no answer in 60 s"))
    notes = compare(a, replace(b, rows=rows)).notes
    assert notes == ("B: the simulator failed in 1 of its episodes, which count as failures of the policy",)
    assert not compare(a, b).notes


def test_nothing_in_common_is_refused():
    with pytest.raises(UserError, match="different suites: s and t"):
        compare(result({"open": "+"}), result({"open": "+"}, suite="t"))
    with pytest.raises(UserError, match="no task in common: open against close"):
        compare(result({"open": "+"}), result({"close": "+"}))
