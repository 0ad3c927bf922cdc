"""What was served can be looked at: recorded beside the serving, and drawn as a page that a real browser shows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.serve.parts import LONG_S, ROBOT, Echo, eventually, said, service
from vla import cli
from vla.serve.background import serving
from vla.serve.page import page
from vla.serve.record import Recorder
from vla.serve.rollout import Rollout, rollouts
from vla_client import PolicyClient

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture
def recorded(tmp_path) -> Path:
    """Five requests of one session; the robot says what it carried out."""
    served = service(Echo())
    served.recorder = Recorder(tmp_path / "served", ROBOT, "echo")
    with serving(served) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        done = None
        for number in range(5):
            observation = said(number / 10, side=32)
            observation["images"]["wrist"][:] = 50 * number
            observation["prompt"] = f'step {number}: <b>lift</b> & "put" </script>'
            client.infer(observation, executed=done)
            done = np.full((2, 2), number / 10)
            time.sleep(0.02)
    served.recorder.close()
    return tmp_path / "served"


def test_a_session_is_recorded_as_it_was(recorded):
    (folder,) = rollouts(recorded)
    rollout = Rollout.read(folder)
    assert (rollout.name, rollout.policy, rollout.robot, len(rollout.requests)) == ("session-000001", "echo", ROBOT, 5)
    assert [request.action_TA[0, 0] for request in rollout.requests] == [0, 0.1, 0.2, 0.3, 0.4]
    assert all(file.is_file() for request in rollout.requests for file in request.frames.values())
    times = [request.at_s for request in rollout.requests]
    assert times[0] == 0 and times == sorted(times)
    pieces, told = rollout.executed()
    assert told and [rows[0, 0] for _, rows in pieces] == [0, 0.1, 0.2, 0.3]
    assert np.allclose(pieces[0][0], times[1] - np.array([0.2, 0.1]))


def test_sessions_of_a_later_server_are_numbered_on(recorded):
    again = Recorder(recorded, ROBOT, "echo")
    served = service(Echo())
    served.recorder = again
    with serving(served) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        client.infer(said(0.1))
    again.close()
    assert [path.name for path in rollouts(recorded)] == ["session-000001", "session-000002"]


def test_a_disk_that_is_full_is_counted_and_serving_goes_on(tmp_path, monkeypatch):
    served = service(Echo())
    served.recorder = recorder = Recorder(tmp_path / "served", ROBOT, "echo")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with serving(served) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        for _ in range(3):
            assert client.infer(said(0.1))["actions"][0, 0] == 0.1
        eventually(lambda: recorder.dropped == 3)
    recorder.close()


def test_a_session_whose_beginning_does_not_fit_the_disk_begins_with_what_comes_next(tmp_path, monkeypatch):
    recorder, other = Recorder(tmp_path / "served", ROBOT, "echo"), Recorder(tmp_path / "served", ROBOT, "other")
    served = service(Echo())
    served.recorder = recorder
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with serving(served) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        client.infer(said(0.1))
        eventually(lambda: recorder.dropped == 1)
        monkeypatch.setattr(Path, "write_text", write)
        assert not rollouts(tmp_path / "served")
        served.recorder = other  # it takes the number that is free
        client.infer(said(0.2))
        other.close()
        served.recorder = recorder
        client.infer(said(0.3))
    recorder.close()
    read = [Rollout.read(folder) for folder in rollouts(tmp_path / "served")]
    assert [(each.name[-1], each.policy, each.requests[0].action_TA[0, 0]) for each in read] == [("1", "other", 0.2), ("2", "echo", 0.3)]


def test_the_page_loads_nothing_and_runs_nothing_but_its_own_script(recorded, tmp_path, capsys):
    assert cli.main(["show", str(recorded), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out' / 'session-000001.html'}\n"
    text = (tmp_path / "out" / "session-000001.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "http:" not in text and "https:" not in text
    assert "<b>lift</b>" not in text and text.count("</script>") == 2
    assert "default-src 'none'" in text and "script-src 'sha256-" in text


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "requests.jsonl").unlink(), "nothing was answered"),
        (lambda folder: (folder / "requests.jsonl").write_text("{"), "damaged"),
        (lambda folder: (folder / "requests.jsonl").write_text('{"at_s": 1}\n'), "damaged"),
        (lambda folder: (folder / "rollout.json").write_text('{"format_version": 99}'), "rollout format 99"),
    ],
)
def test_a_recording_that_cannot_be_read_is_said_in_one_line(recorded, spoil, reason, capsys):
    spoil(recorded / "session-000001")
    assert cli.main(["show", str(recorded)]) in (1, 2)
    assert reason in capsys.readouterr().err


def test_a_recording_leads_to_no_file_outside_it(recorded):
    folder = recorded / "session-000001"
    row = json.loads((folder / "requests.jsonl").read_text().splitlines()[0])
    row["frames"] = {"wrist": "../../../../etc/passwd"}
    (folder / "requests.jsonl").write_text(json.dumps(row) + "\n")
    (request,) = Rollout.read(folder).requests
    assert request.frames["wrist"] == folder / "passwd"
    assert "root:" not in page(Rollout.read(folder))


def browse(address: str, folder: Path) -> str:
    """The page's DOM after its script has run, in a browser without a screen."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--virtual-time-budget=2000"]
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_a_real_browser_shows_the_request_that_is_asked_for(recorded, tmp_path):
    assert cli.main(["show", str(recorded), "--out", str(tmp_path)]) == 0
    rollout = Rollout.read(recorded / "session-000001")
    dom = browse(f"{(tmp_path / 'session-000001.html').as_uri()}#request=4", tmp_path / "profile")
    root = re.search(r"<html[^>]*>", dom)[0]
    assert 'data-ready="yes"' in root and 'data-shown="3"' in root and "data-error" not in root
    assert html.unescape(re.search(r'id="instruction">(.*?)</div>', dom)[1]) == rollout.requests[3].instruction
    assert "request 4 of 5" in dom
    pictures = dict(re.findall(r'<img data-role="(\w+)" src="([^"]*)"', dom))
    from vla.serve.page import _picture

    assert pictures == {role: _picture(file) for role, file in rollout.requests[3].frames.items()}
    here = re.findall(r'<polyline class="chunk here" data-request="(\d)"', dom)
    assert here == ["3"] * ROBOT.command.size  # one plot per number of a command
