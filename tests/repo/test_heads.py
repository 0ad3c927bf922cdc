"""The experiment on heads: its trainings differ in the head alone, its commands exist, its figures are right by hand, and it runs."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import heads
from benchmarks.decoders import in_turn
from benchmarks.evidence import evidence
from tests.evaluate.results import result
from vla import cli
from vla.evaluate.result import write_result
from vla.train.run import load_recipe

ROOT = Path(__file__).resolve().parents[2]
ASKED = argparse.Namespace(
    out=Path("runs/x"), data_root=None, tasks="", demonstrations=3, steps=4, latent_steps=5, seeds=2, episodes=6, cores=2, threads=1
)


def test_trainings_differ_in_the_head_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = {name: load_recipe(f"{heads.RECIPES}:{name}") for name in heads.HEADS}
    base = runs[heads.BASE]
    assert len({run.model.decoder for run in runs.values()}) == len(runs)
    for run in runs.values():
        assert run.model.backbone == base.model.backbone and replace(run, name=base.name, model=base.model) == base
    watching = load_recipe(f"{heads.RECIPES}:latent_action")
    assert watching.mixture == base.mixture  # the frames that all see, and no others
    assert runs["flow_8"].model.decoder == replace(runs["flow"].model.decoder, samples_per_context=8)


def test_every_stage_is_a_command_that_there_is_and_needs_what_stands_before_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    everything = [*heads.HEADS]
    stages = heads.stages(everything, Path("runs/x/data"), ASKED)
    seen: set[str] = set()
    for stage in stages:
        _, args = cli.parse(stage.command)
        assert set(stage.needs) <= seen and stage.name not in seen
        seen.add(stage.name)
        if stage.command[0] == "train":
            load_recipe(args.recipe)
    rows = heads.rows_of(everything)
    assert len(rows) == 17 and len(stages) == 3 + 2 * (len(everything) + len(rows))
    assert len({row.result(ASKED.out, seed) for row in rows for seed in (0, 1)}) == 2 * len(rows)


def test_what_is_not_asked_for_is_not_done():
    given = argparse.Namespace(**{**vars(ASKED), "data_root": Path("data"), "seeds": 1})
    stages = heads.stages(["parallel", "masked"], Path("data"), given)
    assert [stage.phase for stage in stages] == ["train", "evaluate", "train", *["evaluate"] * 4]
    assert [stage.command[stage.command.index("--evaluations") + 1] for stage in stages[3:]] == ["1", "4", "8", "12"]


@pytest.fixture
def compared(tmp_path):
    """Two seeds of a head with one row, and of one with two."""
    outcomes = {
        ("parallel", None): ("++--", "+---"),
        ("flow", 1): ("++++", "++++"),
        ("flow", 2): ("++--", "-+--"),
    }
    rows = [heads.Row(*key) for key in outcomes]
    for row, by_seed in zip(rows, outcomes.values(), strict=True):
        for seed, one in enumerate(by_seed):
            write_result(row.result(tmp_path, seed), result({"open": one[:2], "close": one[2:]}))
    cost = {"ms_per_call": 2.5, "actions_per_s": 4800, "train_samples_per_s": 640.4}
    args = argparse.Namespace(**{**vars(ASKED), "out": tmp_path})
    return heads.compared(rows, args, {"rows": {row.name: cost for row in rows}})


def test_rows_are_paired_with_the_base_by_seed_and_episode(compared):
    base, one, two = compared
    assert "against_parallel" not in base and (base["successes"], base["episodes"], base["by_seed"]) == (3, 8, [2, 1])
    assert base["by_task"] == {"open": 3, "close": 0}
    ahead, level = one["against_parallel"], two["against_parallel"]
    assert (ahead["better"], ahead["worse"], ahead["p_value"]) == (5, 0, 2 * 0.5**5) and ahead["p_holm"] == 2 * ahead["p_value"]
    assert (level["better"], level["worse"], level["p_value"], level["p_holm"]) == (1, 1, 1.0, 1.0)


def test_the_page_shows_success_beside_cost(compared, tmp_path):
    facts = {"command": "python -m benchmarks.heads --json", "steps": 4, "batch": 64, "seeds": 2, "episodes": 2, "threads": 2}
    found = {**facts, "train_threads": 1, "data": {"episodes": 16}, "rows": compared}
    (tmp_path / "heads.json").write_text(json.dumps(found))
    text = evidence(tmp_path)
    assert "4 steps of 64 samples from 16 demonstrations; seeds: 2; episodes a task: 2; threads: 2 of a call, 1 of training." in text
    assert "| parallel, L1 |  | 3/8 | 37.5% | 13.7 to 69.4% |  | 2.5 | 4,800 | 640 |" in text
    assert "| flow DiT, K = 1 | 1 | 8/8 | 100.0% | 67.6 to 100.0% | +62 points, p = 0.12 | 2.5 | 4,800 | 640 |" in text


def test_turns_are_taken_and_the_first_round_is_not_counted():
    said: list[str] = []
    took = in_turn({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, blocks=2, repeats=2)
    assert said == ["a", "a", "b", "b"] * 3 and {name: len(seconds) for name, seconds in took.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--heads", "parallel,mlp"], "mlp: heads are parallel, tokens, "),
        (["--heads", "flow"], "`parallel` is what the other heads are compared with"),
        (["--seeds", "0"], "at least 1"),
        (["--data-root", "nowhere"], "nowhere holds no dataset `sawyer`; leave --data-root out"),
        (["--steps", "7"], "was begun with .*'steps': 1000.*choose another --out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_collected(words, reason, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["heads", "--out", str(tmp_path)])
    args = heads._arguments()
    settings = {"data_root": "", **{name: getattr(args, name) for name in heads.SETTINGS}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    monkeypatch.setattr("sys.argv", ["heads", "--out", str(tmp_path), *words])
    monkeypatch.setattr(heads, "run_all", lambda *_: pytest.fail("it began"))
    with pytest.raises(SystemExit, match=reason):
        heads.main()


@pytest.mark.slow
def test_the_whole_of_it_on_one_task(tmp_path, monkeypatch, capsys):
    """Demonstrations, codes, three heads, their evaluations and times; then the same command again, for which nothing is left to do."""
    monkeypatch.chdir(ROOT)
    size = "--tasks drawer-open --demonstrations 2 --steps 2 --latent-steps 4 --seeds 1 --episodes 1 --cores 2 --threads 1"
    words = ["heads", *size.split(), "--heads", "parallel,flow_8,latent", "--out", str(tmp_path), "--json"]
    monkeypatch.setattr("sys.argv", words)
    heads.main()
    first = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in first["rows"]] == ["parallel", "flow_8 1", "flow_8 2", "flow_8 4", "flow_8 10", "latent"]
    assert first["data"]["episodes"] == 2 and first["steps"] == 2
    for row in first["rows"]:
        assert row["episodes"] == 1 and row["by_task"].keys() == {"drawer-open"}
        assert min(row["ms_per_call"], row["actions_per_s"], row["train_samples_per_s"]) > 0
    heads.main()
    assert json.loads(capsys.readouterr().out) == first
    monkeypatch.setattr("sys.argv", [*words, "--time-again"])
    heads.main()
    again = json.loads(capsys.readouterr().out)
    assert again["command"] == first["command"] and again["seconds"] == first["seconds"] and again["rows"] != first["rows"]
