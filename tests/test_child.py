"""Processes of ours run our modules and nothing that lies where one stands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vla.child import command, environment


@pytest.mark.parametrize("trap", ["json", "numpy", "torch", "runpy", "vla"])
def test_a_module_in_the_working_folder_is_not_run(trap, tmp_path):
    (tmp_path / f"{trap}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    done = subprocess.run(command("vla.interop.torch_file"), env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "sprung").exists()


def test_arguments_and_variables_arrive(tmp_path):
    done = subprocess.run(command("vla", "--version"), env=environment(VLA_TRIED="1"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("vla "), done.stderr
    assert environment(VLA_TRIED="1")["VLA_TRIED"] == "1" and environment()["PATH"] == os.environ["PATH"]
    assert command("vla", python="other")[0] == "other" and command("vla")[0] == sys.executable
