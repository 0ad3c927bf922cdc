"""The scheduler of the demo, on real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from vla.demo.stages import Stage, StageFailed, estimate, run_stages

HELP = ("doctor", "--help")


def test_order_needs_and_cores(tmp_path):
    stages = [
        Stage("a", "collect", HELP, cores=2, typical_s=4),
        Stage("b", "pretrain", HELP, needs=("a",), typical_s=6),
        Stage("c", "latent", HELP, needs=("a",), typical_s=2),
        Stage("d", "evaluate", HELP, needs=("b", "c"), typical_s=3),
    ]
    assert estimate(stages, {}, {}, cores=2) == 4 + 6 + 3
    assert estimate(stages, {}, {}, cores=1) == 4 + 6 + 2 + 3
    assert estimate(stages, {"a": None}, {"b": 5.0}, cores=2) == 2 + 3
    seen = []
    state = run_stages(stages, tmp_path, 2, False, lambda now: seen.append(set(now.running)))
    assert list(state.done) == ["a", *sorted(["b", "c"], key=list(state.done).index), "d"]
    assert not any({"a", "b"} <= running for running in seen) and not any({"c", "d"} <= running for running in seen)
    assert all(row.cpu_seconds > 0 and row.seconds > 0 for row in state.done.values()) and state.peak_rss_mb > 1
    assert (tmp_path / "logs" / "a.log").read_text().startswith("$ vla doctor --help\n")


def test_resume_runs_only_what_changed_and_what_needs_it(tmp_path):
    def plan(last):
        return [Stage("a", "x", HELP), Stage("b", "x", last, needs=("a",)), Stage("c", "x", HELP, needs=("b",))]

    first = run_stages(plan(HELP), tmp_path, 2, False, lambda now: None)
    again = run_stages(plan(HELP), tmp_path, 2, True, lambda now: None)
    assert again.done == first.done and again.reused == ("a", "b", "c") and first.reused == ()
    changed = run_stages(plan(("collect", "--help")), tmp_path, 2, True, lambda now: None)
    assert changed.done["a"] == first.done["a"]
    assert changed.done["b"].command == "vla collect --help" and changed.done["c"].digest != first.done["c"].digest


def test_what_a_stage_made_before_is_removed_before_it_starts_anew(tmp_path):
    stale = tmp_path / "made"
    stale.mkdir()
    run_stages([Stage("a", "x", HELP, makes=stale)], tmp_path, 1, True, lambda now: None)
    assert not stale.exists()


def test_a_failure_names_its_command_and_log_and_stops_the_rest(tmp_path):
    stages = [Stage("a", "x", ("collect", "--suite", "no-such-suite", "--out", "x")), Stage("b", "x", HELP, needs=("a",))]
    with pytest.raises(StageFailed, match="(?s)exit code 2: vla collect --suite no-such-suite.*Choices") as caught:
        run_stages(stages, tmp_path, 2, False, lambda now: None)
    assert caught.value.exit_code == 1 and not (tmp_path / "logs" / "b.log").exists()


def test_being_told_to_stop_leaves_no_stage_running(tmp_path):
    code = (
        "import sys; from pathlib import Path; from vla.demo.stages import Stage, run_stages\n"
        "run_stages([Stage('a', 'x', ('serve', '--policy', 'hold', '--embodiment', 'pusht', '--port', '0'))], Path(sys.argv[1]), 1, False,"
        " lambda now: print(*now.running.values(), flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None and job.stdout.readline()
        family = psutil.Process(job.pid).children(recursive=True)
        assert family
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 10
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)
