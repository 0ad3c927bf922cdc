"""The import contracts hold, and each of them sees the import that it forbids."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.tracked import ROOT, tracked

FORBIDDEN = {
    "Layers": ("normalize.py", "import vla.data"),
    "Data, converters, simulators and robots know no model": ("data/__init__.py", "import vla.decoders"),
    "Only commands import training": ("policy.py", "def late():\n    from vla.train import run"),
    "Only training, and the doctor, import deepspeed": ("model.py", "def late():\n    import deepspeed"),
    "The package imports no outer folder": ("types.py", "from pretrain import demo"),
}
"""Beginning of a contract's name -> a file of the package, and lines that break the contract when they are added to it."""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", "pyproject.toml", "--no-cache"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder), "COLUMNS": "500"}, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path in tracked(".py", under=("vla",)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_the_contracts_hold(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(FORBIDDEN)} kept, 0 broken" in " ".join(done.stdout.split())


def test_each_contract_sees_what_it_forbids(copy):
    for name, lines in FORBIDDEN.values():
        with (copy / "vla" / name).open("a") as file:
            file.write(f"\n{lines}\n")
    done = lint(copy)
    said = [re.sub(r" \(\d+ ignored imports?\)$", "", line) for line in done.stdout.splitlines()]
    results = {line.rsplit(" ", 1)[0]: line.rsplit(" ", 1)[-1] for line in said if line.endswith(("KEPT", "BROKEN"))}
    assert done.returncode == 1
    for beginning in FORBIDDEN:
        assert [verdict for contract, verdict in results.items() if contract.startswith(beginning)] == ["BROKEN"], done.stdout
