"""`vla doctor` on the real machine, and on one that lacks things."""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path

import pytest

from vla.commands import doctor


def report(capsys, **kwargs) -> tuple[int, dict]:
    code = doctor.run(argparse.Namespace(json=True, nodes=False, path=kwargs.get("path", Path())))
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_json_report_tells_what_is_here(capsys, tmp_path):
    code, data = report(capsys, path=tmp_path)
    checks = {check["name"]: check for check in data["checks"]}
    assert code == 0 and data["ok"]
    assert metadata.version("torch") in checks["torch"]["detail"]
    assert metadata.version("numpy") in checks["packages"]["detail"]
    assert any(checks[backend]["status"] == "ok" for backend in doctor.BACKENDS), "no backend renders here"
    assert all(check["fix"] for name, check in checks.items() if check["status"] != "ok" and name not in doctor.BACKENDS)


def test_a_package_that_is_missing_is_named_with_its_fix():
    needed = doctor._packages("", ("numpy", "no-such-distribution"))
    assert needed.status == "bad" and "no-such-distribution missing" in needed.detail and "pip install" in needed.fix
    extra = doctor._packages("sim", ("no-such-distribution",))
    assert extra.status == "note" and "vla[sim]" in extra.fix


def test_a_backend_that_cannot_render_is_a_note_with_the_libraries_to_install():
    check = doctor._rendering("no-such-backend")
    assert check.status == "note"
    assert "no-such-backend" in check.detail
    assert "libegl1" in check.fix


def test_a_folder_that_is_not_there_is_bad(capsys, tmp_path):
    check = doctor._disk(tmp_path / "absent")
    assert check.status == "bad" and "absent" in check.detail


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("raise OSError('libGL is gone')", "OSError: libGL is gone"),
        ("raise SystemExit(3)", "exit code 3 without a word"),
    ],
)
def test_a_probe_that_dies_is_an_answer(body, expected, tmp_path, monkeypatch):
    # The probe runs `from vla.commands.doctor import NAME; NAME()` in a new process: give it another doctor to import.
    package = tmp_path / "vla" / "commands"
    package.mkdir(parents=True)
    (tmp_path / "vla" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "doctor.py").write_text(f"def probe():\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    assert doctor._probe("probe", PYTHONPATH=str(tmp_path)) == expected


def test_a_probe_without_an_answer_ends():
    assert doctor._probe("probe_torch", timeout_s=0.01) == "no answer in 0 s"


def test_a_busy_machine_is_no_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "_probe", lambda *args, **environment: "no answer in 180 s")
    for check in (doctor._torch(), doctor._deepspeed(), doctor._rendering("egl")):
        assert check.status == "note" and "install" not in check.fix and "busy" in check.fix
