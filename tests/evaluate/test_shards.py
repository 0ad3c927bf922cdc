"""Evaluations in parts, on several machines or after being killed: the result is that of one piece."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluate.results import result
from vla.cli import main
from vla.errors import UserError
from vla.evaluate.journal import SUFFIX, check_replaced
from vla.evaluate.result import read_result, write_result
from vla.evaluate.runner import evaluate
from vla.evaluate.shards import Shard, merge
from vla.evaluate.stopping import Rival
from vla.execute.ensemble import TemporalEnsemble
from vla.sim.suites import load_suite

TOY = str(Path(__file__).with_name("toy_suite.py"))
TASKS = ["easy", "kills"]


@pytest.fixture(scope="module")
def whole():
    """With crashes in it."""
    return evaluate("random", TOY, TASKS, 4, workers=1, slots=2)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_episode_is_in_exactly_one_shard(count):
    parts = [Shard(number, count).part(TASKS, 4) for number in range(1, count + 1)]
    assert [key for part in parts for key in part] == [(task, episode) for task in TASKS for episode in range(4)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.thorough
def test_merged_shards_are_the_run_in_one_piece(whole, tmp_path, capsys):
    files = []
    for number in (2, 1):
        files.append(str(tmp_path / f"part{number}.json"))
        line = ["eval", "random", "--suite", TOY, "--tasks", ",".join(TASKS), "--episodes", "4", "--shard", f"{number}/2"]
        assert main([*line, "--workers", "1", "--json", files[-1]]) == 0
    assert {read_result(file).shard for file in files} == {"1/2", "2/2"}
    assert main(["merge", *files, "--json", str(tmp_path / "whole.json")]) == 0
    merged = read_result(tmp_path / "whole.json")
    assert merged.rows == whole.rows and merged.tasks == whole.tasks and merged.pooled == whole.pooled
    assert merged.max_steps == whole.max_steps and merged.shard == "" and merged.episodes == 4
    assert any(row.reason.startswith("crashed") for row in merged.rows)
    assert len(merged.command.splitlines()) == 2
    assert not list(tmp_path.glob(f"*{SUFFIX}"))


def test_parts_that_make_no_whole_are_refused():
    one, two = (result({"open": "++++"}, shard=f"{i}/2", episodes=4) for i in (1, 2))
    one, two = replace(one, rows=one.rows[:2]), replace(two, rows=two.rows[2:])
    assert merge({"a": one, "b": two}).rows == result({"open": "++++"}).rows
    with pytest.raises(UserError, match=r"2 of 4 episodes are missing, such as open 2; there are shards 1/2"):
        merge({"a": one})
    with pytest.raises(UserError, match="a and b both hold open 0"):
        merge({"a": one, "b": one})
    with pytest.raises(UserError, match="differ in seed, policy manifest_sha256"):
        merge({"a": one, "b": replace(two, seed=1, policy={"name": "p", "manifest_sha256": "1"})})
    for key in ("evaluations", "optimized", "agree", "self_guidance"):
        with pytest.raises(UserError, match=f"differ in policy {key}"):
            merge({"a": one, "b": replace(two, policy={**one.policy, key: 1})})
    with pytest.raises(UserError, match="does not say how many episodes"):
        merge({"a": replace(one, episodes=0)})


@pytest.mark.parametrize("spec", ["0/4", "5/4", "1", "a/b", "1/0", ""])
def test_a_shard_that_is_none_is_refused(spec):
    with pytest.raises(UserError, match="give 1/4 to 4/4"):
        Shard.of(spec)


@pytest.mark.faults
def test_a_killed_run_goes_on_where_it_was(whole, tmp_path):
    """SIGKILL in the middle; what was finished is not run again, and the result is the same."""
    out = tmp_path / "r.json"
    words = ["eval", "random", "--suite", TOY, "--tasks", "easy,kills", "--episodes", "4", "--workers", "1", "--slots", "1"]
    journal = out.with_name(out.name + SUFFIX)
    running = subprocess.Popen([sys.executable, "-m", "vla", *words, "--json", str(out)], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    lines = journal.read_bytes().splitlines(keepends=True)
    assert not out.exists() and len(lines) >= 4
    journal.write_bytes(b"".join(lines) + lines[-1][:25])  # and the last write was cut short

    videos = tmp_path / "videos"
    assert main([*words, "--json", str(out), "--video", str(videos)]) == 0
    got = read_result(out)
    assert got.rows == whole.rows
    assert f"{len(lines) - 1} of 8 episodes were run before; times are of the rest" in got.notes
    assert got.videos and not journal.exists()  # also of episodes that the killed run played


@pytest.mark.thorough
def test_a_journal_of_another_evaluation_is_refused(tmp_path, capsys):
    out = tmp_path / "r.json"
    evaluate("random", TOY, ["easy"], 2, workers=1, journal=out)
    with pytest.raises(UserError, match=r"r.json.rows.jsonl holds episodes of another evaluation \(seed 0 against 1\). Delete it"):
        evaluate("random", TOY, ["easy"], 2, seed=1, workers=1, journal=out)
    with pytest.raises(UserError, match=r"ensemble newest chunk against TemporalEnsemble"):
        evaluate("random", TOY, ["easy"], 2, workers=1, journal=out, ensemble=TemporalEnsemble())
    with pytest.raises(UserError, match=r"max_steps easy 24 against 12; options hard \{\} against \{'after': '3'\}\)"):
        evaluate("random", _other_rules(), ["easy"], 2, workers=1, journal=out)
    more = evaluate("random", TOY, ["easy"], 3, workers=1, journal=out)  # more of the same go on from it
    assert more.notes == ("2 of 3 episodes were run before; times are of the rest",)
    out.with_name(out.name + SUFFIX).write_text("no journal\n[]\n")
    with pytest.raises(UserError, match="holds no episodes of an evaluation. Delete it"):
        evaluate("random", TOY, ["easy"], 2, workers=1, journal=out)


def test_a_result_is_replaced_by_the_same_evaluation_alone(tmp_path):
    """Whatever command it came from: a merged one names several, one made from Python none."""
    out, policy = tmp_path / "r.json", {"name": "p", "manifest_sha256": "aa"}
    write_result(out, result({"easy": "+-"}, policy={**policy, "parameters": 9}, episodes=2))
    rules = {"suite": "s", "seed": 0, "image_size": 64, "execute": 10, "ensemble": "newest chunk", "probe": None}
    same = {**rules, "tasks": {"easy": "200 steps"}, "episodes": 2, "shard": "", "policy": policy}
    check_replaced(out, same)
    check_replaced(tmp_path / "none.json", same)
    for changed, says in (
        ({"policy": {**policy, "manifest_sha256": "bb"}}, "policy manifest_sha256 aa against bb"),
        ({"probe": {"spec": "no-language", "says": "x"}, "seed": 3}, "seed 0 against 3; probe none against no-language"),
        ({"tasks": {"easy": "200 steps", "hard": "9 steps"}, "episodes": 5}, "tasks hard None against 9 steps; episodes 2 against 5"),
        ({"against": "a.json"}, "against None against a.json"),
    ):
        with pytest.raises(UserError, match=re.escape(f"r.json holds another evaluation ({says}). Choose another --json, or remove it")):
            check_replaced(out, {**same, **changed})
    out.write_text("notes of mine")
    with pytest.raises(UserError, match="r.json is no evaluation that this one could replace"):
        check_replaced(out, same)


def _other_rules():
    suite = load_suite(TOY)
    changed = {"easy": {"max_steps": 12}, "hard": {"options": {"after": 3}}}
    return replace(suite, tasks=tuple(replace(task, **changed.get(task.name, {})) for task in suite.tasks))


def test_two_at_once_on_one_file_are_refused(tmp_path):
    from vla.evaluate.journal import Journal

    first = Journal(tmp_path / "r.json", {"seed": 0})
    with pytest.raises(UserError, match="another evaluation is writing"):
        Journal(tmp_path / "r.json", {"seed": 0})
    first.close()
    Journal(tmp_path / "r.json", {"seed": 0}).close()


@pytest.mark.thorough
def test_a_run_beside_a_finished_one_stops_when_it_is_decided(tmp_path, capsys):
    """The expert against one that never succeeds: a few pairs are enough."""
    write_result(tmp_path / "hold.json", toy("-" * 20))
    line = f"eval expert --suite {TOY} --tasks easy,hard --episodes 20 --workers 1 --against {tmp_path / 'hold.json'}"
    assert main([*line.split(), "--json", str(tmp_path / "stopped.json")]) == 0
    assert "better after" in capsys.readouterr().out
    got = read_result(tmp_path / "stopped.json")
    assert got.stopping["verdict"] == "better" and got.stopping["planned"] == 40 and got.stopping["level"] == 0.05
    assert got.stopping["pairs"] == got.stopping["only_this"] <= len(got.rows) == 10


def toy(outcomes: str):
    return result({"easy": outcomes, "hard": outcomes}, suite="toy", embodiment="dot", max_steps={"easy": 24, "hard": 24})


def test_looks_come_by_episode_and_end_with_the_last():
    """Against a twin: nothing differs, all are run. In rounds of five episodes of each task."""
    declared = {"suite": "toy", "seed": 0, "probe": None, "max_steps": {"easy": 24, "hard": 24}}
    rival, rows = Rival("twin", toy("+-" * 6)), {(row.task, row.episode): row for row in toy("+-" * 6).rows}
    rounds = rival.rounds(["easy", "hard"], 12, declared)
    assert [len(part) for part in rounds] == [10, 10, 4] and rounds[0][:3] == [("easy", 0), ("hard", 0), ("easy", 1)]
    assert [rival.decided([rows[key] for key in part]) for part in rounds] == [False, False, True]
    assert rival.to_json()["verdict"] == "no difference shown" and rival.to_json()["pairs"] == 24
    with pytest.raises(UserError, match=r"was run with seed 0, this with 1"):
        rival.rounds(["easy"], 2, {**declared, "seed": 1})
    with pytest.raises(UserError, match="lacks 1 of these 13 episodes, such as easy 12"):
        rival.rounds(["easy"], 13, declared)
    with pytest.raises(UserError, match="they are no pair"):
        rival.rounds(["easy"], 2, declared)
        rival.decided([replace(rows["easy", 0], seed=5)])


def test_a_rival_that_is_no_fair_sample_is_refused():
    """One that its own outcomes ended, and one that had longer to succeed."""
    declared = {"suite": "toy", "seed": 0, "probe": None, "max_steps": {"easy": 24, "hard": 12}}
    stopped = replace(toy("+" * 5), stopping={"planned": 40, "verdict": "better"})
    with pytest.raises(UserError, match=r"was itself ended early by its outcomes \(better\).* run that policy without --against first"):
        Rival("r.json", stopped).rounds(["easy"], 5, declared)
    blind = replace(toy("+" * 5), probe={"spec": "no-vision", "what": "every picture is one grey"})
    with pytest.raises(UserError, match="r.json was run with probe no-vision, this with none; episodes pair up only if they are the same"):
        Rival("r.json", blind).rounds(["easy"], 5, declared)
    ran_all = replace(toy("+" * 5), stopping={"planned": 10, "verdict": "no difference shown"})
    assert Rival("r.json", ran_all).rounds(["easy"], 5, declared)
    with pytest.raises(UserError, match="had 24 steps for an episode of hard, this has 12; they are no pair"):
        Rival("r.json", toy("+" * 5)).rounds(["easy", "hard"], 5, declared)


def test_what_sampling_met_is_summed_over_shards():
    one, two = (result({"open": "++++"}, shard=f"{i}/2", episodes=4) for i in (1, 2))
    one = replace(one, rows=one.rows[:1], policy={"name": "p", "device": "cpu", "chunks": 10, "repaired": 1, "repair_rate": 0.1})
    two = replace(two, rows=two.rows[1:], policy={"name": "p", "device": "cuda", "chunks": 30, "repaired": 9, "repair_rate": 0.3})
    merged = merge({"a": one, "b": two})
    assert merged.policy == {"name": "p", "chunks": 40, "repaired": 10, "repair_rate": 0.25}
    assert merged.notes == ("a and b acted on different devices",)


def test_results_of_before_are_still_read(tmp_path):
    path = write_result(tmp_path / "r.json", result({"open": "+-"}))
    data = json.loads(path.read_text())
    for name in ("probe", "shard", "episodes", "stopping"):
        del data[name]
    path.write_text(json.dumps(data))
    assert read_result(path).rows == result({"open": "+-"}).rows
