"""`vla serve` as a process: it says where it serves, answers, drains on SIGTERM, and refuses what cannot be served in one line."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.parts import ROBOTS, contents
from tests.serve.parts import LONG_S, get, request, said
from vla import cli
from vla.checkpoint import save_checkpoint
from vla.decoders.parallel import Parallel
from vla.errors import UserError
from vla_client import Mismatch, PolicyClient, Unavailable

ROBOT_FILE = """
from fractions import Fraction
from vla.embodiment import Embodiment, Field, Space
SPACE = Space((Field("move", 2, "command", "step"),))
STATE = Space((Field("joints", 3, "rad"),))
EMBODIMENT = Embodiment("narrow", ("third_person", "wrist"), STATE, SPACE, SPACE, Fraction(10), 4, ((-1.0, 1.0),) * 2)
"""


@contextmanager
def served(*words: str):
    """The process of `vla serve ...` and the address that it says it serves on."""
    command = [sys.executable, "-u", "-m", "vla", "serve", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"ws://(\S+);", line):
                    break
            else:
                raise AssertionError("".join(lines) + process.stderr.read())
            yield process, found[1]
        finally:
            process.kill()


@pytest.fixture
def robot_file(tmp_path) -> str:
    path = tmp_path / "narrow.py"
    path.write_text(ROBOT_FILE)
    return str(path)


def test_it_serves_without_torch_until_sigterm_and_then_drains(robot_file):
    with served("--policy", "hold", "--embodiment", robot_file, "--deadline", "60") as (process, address):
        maps = Path(f"/proc/{process.pid}/maps")
        assert not maps.exists() or "libtorch" not in maps.read_text()
        with PolicyClient(f"ws://{address}", LONG_S, expect={"embodiment": "narrow", "policy": "hold"}) as client:
            assert np.array_equal(client.infer(said(0.3))["actions"], np.zeros((4, 2)))
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=LONG_S)
            assert process.returncode == 0 and "stopped: 1 answered, 0 refused" in out and not err
            with pytest.raises(Unavailable):
                client.infer(said(0.3))


SLOW = """
import threading, time
from vla.serve import batcher
inner = batcher.outcomes_of
def slow(*args):
    time.sleep(0.5)
    return inner(*args)
batcher.outcomes_of = slow
"""


def test_what_is_in_the_policy_when_sigterm_comes_is_answered_and_what_comes_later_refused(robot_file, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(ROBOT_FILE + SLOW)
    with served("--policy", "hold", "--embodiment", str(slow), "--deadline", "60") as (process, address):
        clients = [PolicyClient(f"ws://{address}", LONG_S) for _ in range(2)]
        clients[1].infer(said(0.0))  # connected
        answers = []
        thread = threading.Thread(target=lambda: answers.append(clients[0].infer(said(0.0))))
        thread.start()
        while b'"in_flight": 1' not in get(address, "/statistics")[1]:
            pass
        process.send_signal(signal.SIGTERM)
        with pytest.raises(Unavailable, match="draining|cannot|closed|no close|1001"):
            for _ in range(100):  # until the signal has arrived
                clients[1].infer(said(0.0))
        thread.join()
        assert len(answers) == 1 and answers[0]["actions"].shape == (4, 2)
        assert process.wait(timeout=LONG_S) == 0


@pytest.mark.slow
def test_a_checkpoint_is_served_for_one_of_its_robots(tmp_path):
    made = contents(Parallel())  # which observes history
    save_checkpoint(tmp_path / "ckpt", made, made.build().state_dict())
    with served(str(tmp_path / "ckpt"), "--embodiment", "narrow", "--deadline", "60", "--optimize") as (_, address):
        with PolicyClient(f"ws://{address}", LONG_S) as client:
            one = said(0.3, of=ROBOTS[0])
            two = {
                "images": {role: np.stack([pixels] * 2) for role, pixels in one["images"].items()},
                "state": np.stack([one["state"]] * 2),
            }
            actions = client.infer({**one, **two, "request": {"offsets_s": [-0.1, 0.0]}})["actions"]
            assert actions.shape == (4, 2) and np.abs(actions).max() <= 1 and client.metadata["offsets_s"] == [-0.1, 0.0]
            assert len(client.metadata["statistics"]) == 64 and str(tmp_path) not in str(client.metadata)
        with PolicyClient(f"ws://{address}", LONG_S, expect={"statistics": "0" * 64}) as other, pytest.raises(Mismatch, match="statistics"):
            other.infer(said(0.3))


def test_a_token_from_a_file_is_asked_of_everyone(robot_file, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-long-and-random-token\n")
    words = ("--policy", "hold", "--embodiment", robot_file, "--deadline", "60", "--host", "0.0.0.0", "--token-file", str(token))
    with served(*words) as (_, address):
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert get(address, "/healthz")[0] == 200
        assert get(address, "/metadata")[0] == 401
        assert get(address, "/metadata", {"Authorization": "Bearer a-long-and-random-tokem"})[0] == 401
        assert get(address, "/metadata", {"Authorization": "Bearer a-long-and-random-token"})[0] == 200
        assert request(address, "POST", "/act", b"{}")[0] == 401
        with PolicyClient(f"ws://{address}", LONG_S) as client, pytest.raises(Unavailable, match="401"):
            client.infer(said(0.1))
        with PolicyClient(f"ws://{address}", LONG_S, token="a-long-and-random-token") as client:
            assert client.infer(said(0.1))["actions"].shape == (4, 2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "give a checkpoint folder, or --policy replay, hold, random"),
        (["no/such/folder"], "no checkpoint at no/such/folder"),
        (["--policy", "hold"], "--policy hold needs --embodiment"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--optimize"], "--optimize is for a checkpoint"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--evaluations", "2"], "--evaluations is for a checkpoint"),
        (["no/such/folder", "--float8"], "--float8 goes with --optimize"),
        (["--policy", "replay"], "needs --episode"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--host", "0.0.0.0"], "give a token"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--host", "0.0.0.0", "--token-file", "SHORT"], "at least 16"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--deadline", "0"], "deadline_s must be positive"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--max-change", "1"], "must be 2 positive numbers"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--max-change", "a,b"], "numbers separated by commas"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--map", "x"], "write THEIRS=OURS"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--map", "top=images.topp"], "unknown name of"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--execute", "9"], "cannot execute 9"),
        (["--policy", "hold", "--embodiment", "ROBOT", "--port", "99999"], "--port 99999 is none"),
        (["no/such/folder", "--groot-port", "99999"], "--groot-port 99999 is none"),
        (["no/such/folder", "--port", "48123", "--groot-port", "48123"], "both 48123; give each its own"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(words, reason, robot_file, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VLA_SERVE_TOKEN", raising=False)
    (tmp_path / "short").write_text("short")
    words = [{"ROBOT": robot_file, "SHORT": str(tmp_path / "short")}.get(word, word) for word in words]
    assert cli.main(["serve", *words, *([] if "--port" in words else ["--port", "0"])]) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1


def test_a_taken_port_is_said_before_anything_is_loaded(robot_file, capsys):
    with served("--policy", "hold", "--embodiment", robot_file) as (_, address):
        assert cli.main(["serve", "no/such/folder", "--port", address.rsplit(":", 1)[1]]) == 2
        assert "Give another --port" in capsys.readouterr().err
        assert cli.main(["serve", "no/such/folder", "--port", "0", "--groot-port", address.rsplit(":", 1)[1]]) == 2
        assert "Give another --groot-port" in capsys.readouterr().err


def test_a_policy_that_is_always_too_late_is_refused_at_the_start():
    from tests.serve.parts import Gated, service

    gated = Gated()
    gated.go.release(1000)
    with pytest.raises(UserError, match="would miss every deadline"):
        service(gated, deadline_s=1e-9).warm_up()
