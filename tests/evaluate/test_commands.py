"""`vla eval` and `vla compare` as a user types them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.evaluate.results import result
from vla.cli import main, parse
from vla.commands.eval import _command
from vla.evaluate.result import read_result, write_result

TOY = str(Path(__file__).with_name("toy_suite.py"))


def test_eval_then_compare(tmp_path, capsys):
    for name in ("expert", "hold"):
        line = f"eval {name} --suite {TOY} --tasks easy,hard --episodes 3 --workers 1 --json {tmp_path / name}.json"
        assert main(line.split()) == 0
        out = capsys.readouterr().out
        assert "easy" in out and ("6/6" if name == "expert" else "6 max_steps") in out
    found = read_result(tmp_path / "expert.json")
    words = shlex.split(found.command)
    assert words[:3] == ["vla", "eval", "expert"] and "--episodes 3" in found.command and "--seed 0" in found.command
    _, again = parse(words[1:])
    assert (again.policy, again.suite, again.tasks, again.seed, again.optimize) == ("expert", TOY, "easy,hard", 0, False)
    again.optimize = True
    assert parse(shlex.split(_command(again))[1:])[1] == again

    assert main(["compare", str(tmp_path / "expert.json"), str(tmp_path / "hold.json"), "--json", str(tmp_path / "both.json")]) == 0
    out = capsys.readouterr().out
    assert "A is better than B" in out and "McNemar" in out and "+100.0" in out
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["paired"] and both["pooled"]["only_a"] == 6 and both["pooled"]["comparison"]["p_value"] == pytest.approx(2 * 0.5**6)


def test_a_result_is_not_written_over_by_another_commands(tmp_path, capsys):
    line = f"eval hold --suite {TOY} --tasks easy --episodes 1 --workers 1 --json {tmp_path / 'a.json'}".split()
    assert main(line) == 0
    before = (tmp_path / "a.json").read_text()
    capsys.readouterr()
    assert main([*line, "--seed", "7", "--slots", "2"]) == 2
    assert "holds another evaluation (seed 0 against 7). Choose another --json" in capsys.readouterr().err
    assert (tmp_path / "a.json").read_text() == before
    assert main([*line, "--slots", "2"]) == 0


def test_where_no_simulator_ran_nothing_is_measured(tmp_path, capsys):
    assert main(f"eval hold --suite {TOY} --tasks broken --episodes 2 --workers 1 --json {tmp_path / 'a.json'}".split()) == 1
    assert "nothing was measured: in every episode the simulator crashed" in capsys.readouterr().err
    assert read_result(tmp_path / "a.json").pooled.successes == 0


def test_an_interval_alone_declares_nobody_better(tmp_path, capsys):
    """Four pairs of four: Tango's interval leaves zero out, McNemar's p is 1/8."""
    for name, outcomes in (("a", "++++"), ("b", "----")):
        write_result(tmp_path / f"{name}.json", result({"open": outcomes}))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "No difference is shown: the interval over all tasks leaves zero out, but p = 0.12" in capsys.readouterr().out


def test_a_test_alone_declares_nobody_better(tmp_path, capsys):
    """2 of 20 against 0 of 40 other episodes: Barnard's p is 0.045, Newcombe's interval reaches below zero."""
    write_result(tmp_path / "a.json", result({"open": "++" + 18 * "-"}))
    write_result(tmp_path / "b.json", result({"open": 40 * "-"}, seed=1))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "No difference is shown: p = 0.045, but the interval over all tasks includes zero." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["eval", "hold", "--suite", "nowhere"], "unknown suite 'nowhere'. Or give a .py file that defines SUITE. Choices: aloha, "),
        (["eval", "hold", "--suite", TOY, "--tasks", "easy,fly"], "unknown task of suite toy 'fly'. Choices: broken, easy"),
        (["eval", "nothing", "--suite", TOY], "no checkpoint folder nothing. Give one, or a baseline: random, hold, expert."),
        (["eval", "hold", "--suite", TOY, "--timeout", "-1"], "--timeout is -1 s; give a time"),
        (["eval", "checkpoints/arms-small", "--suite", TOY, "--device", "cuda:99"], "device"),
        (["eval", "checkpoints/arms-small", "--suite", TOY, "--device", "cude"], "'cude' is no device; there are cpu"),
        (["eval", "hold", "--suite", TOY, "--execute", "9"], "cannot execute 9 commands of chunks of 4"),
        (["eval", "hold", "--suite", TOY, "--optimize"], "optimize is for a checkpoint"),
        (["eval", "hold", "--suite", TOY, "--evaluations", "2"], "evaluations are for a checkpoint"),
        (["eval", "hold"], "the following arguments are required: --suite"),
        (["eval", "expert", "--suite", "pusht", "--episodes", "1", "--workers", "1"], "there is no scripted expert for 'push' of 'pusht'"),
        (["eval", "hold", "--suite", TOY, "--shard", "3/2"], "shard '3/2' is not understood; give 1/4 to 4/4"),
        (["eval", "hold", "--suite", "calvin", "--episodes", "1001"], "has 1000 layouts, each for one episode; give --episodes 1000"),
        (["compare", "a.json"], "one result has nothing to be compared with"),
        (["compare", "a.json", "b.json"], "cannot read a.json: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(line, message, capsys):
    assert main(line) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]  # after a progress bar, if it came so far
    assert message in err and err.startswith("error: ")


@pytest.mark.thorough
def test_a_simulator_that_cannot_run_is_one_line_and_exit_code_1(capsys):
    assert main(["eval", "hold", "--suite", TOY, "--tasks", "broken", "--episodes", "5", "--workers", "1"]) == 1
    err = capsys.readouterr().err.strip()
    assert "error: the environment of task 'broken' failed 3 times" in err.splitlines()[-1]
