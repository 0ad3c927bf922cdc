"""Every file a user reads and copies under pretrain/ and finetune/: recipes construct, ZeRO blocks parse, launchers launch."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.repo.test_packaging import PROJECT
from vla.embodiment import Embodiment, load_embodiment
from vla.train.optim import Zero
from vla.train.run import Run, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*ROOT.glob("pretrain/*.py"), *ROOT.glob("finetune/*.py")])
LAUNCH = ROOT / "pretrain" / "launch"


def variants(path: Path) -> list[str]:
    names = [target.id for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign) for target in node.targets]
    return [name for name in names if name == "RUN" or name.islower()]


@pytest.mark.parametrize(
    "recipe", [f"{path.relative_to(ROOT)}:{name}" for path in RECIPES for name in variants(path)], ids=lambda text: text.split("/", 1)[1]
)
def test_every_recipe_and_variant_constructs(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = load_recipe(recipe)
    assert (ROOT / run.mixture).is_file()
    if isinstance(run, Run):
        run.check(1)
        assert all(isinstance(robot, Embodiment) or load_embodiment(robot) for robot in run.embodiments)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_reads_like_a_lab_note(path):
    note = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert all(word in note for word in ("Hardware", "Expect", "Command", f"vla train {path.relative_to(ROOT)}")), path


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_zero_blocks_are_deepspeeds_own(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = Zero.of(str(ROOT / "pretrain" / f"{name}.json"))
    assert zero is not None and zero.stage == int(name[4])
    known = DeepSpeedZeroConfig(**{**zero.settings, "stage": zero.stage})
    assert not known.model_extra  # a mistyped key would be carried along in silence


def stub(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def said(tmp_path):
    """What a launcher runs, with stand-ins for the cluster's own programs on the path."""

    def launch(*command, **environment) -> subprocess.CompletedProcess:
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(command, env={"PATH": path, **environment}, capture_output=True, text=True, cwd=ROOT)

    return launch


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "accelerate"])
def test_launchers_resume_what_they_are_given(said, tmp_path, launcher):
    stub(tmp_path, launcher, 'echo "$@"')
    done = said(LAUNCH / f"{launcher}.sh", "pretrain/demo.py", "--zero", "pretrain/zero2.json")
    assert done.returncode == 0, done.stderr
    assert "vla train pretrain/demo.py --zero pretrain/zero2.json --resume" in done.stdout


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (2, False)])
def test_slurm_tells_each_task_its_rank_and_requeues_what_was_stopped(said, tmp_path, code, requeued):
    stub(tmp_path, "scontrol", '[ "$1" = show ] && printf "node1\\nnode2\\n" || echo "scontrol $*"')
    stub(tmp_path, "srun", 'shift; for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" || code=$?; done; exit "${code:-0}"')
    stub(tmp_path, "python", f'echo "rank $RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT runs $*"; exit {code}')
    done = said(LAUNCH / "slurm.sbatch", "pretrain/demo.py", SLURM_JOB_NODELIST="node[1-2]", SLURM_NTASKS="2", SLURM_JOB_ID="7")
    assert done.returncode == (0 if requeued else code), done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of 2 at node1:20007 runs -m vla train pretrain/demo.py --resume" in done.stdout
    assert ("scontrol requeue 7" in done.stdout) == requeued


def test_the_container_copies_what_there_is_and_installs_extras_that_there_are():
    lines = (LAUNCH / "Containerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
    extras = re.search(r"\.\[([a-z,]+)\]", "\n".join(lines))
    assert extras and {*extras[1].split(",")} <= {*PROJECT["optional-dependencies"]}


def test_skypilots_file_launches_the_recipe_it_names():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert (ROOT / task["envs"]["RECIPE"]).is_file() and Zero.of(str(ROOT / task["envs"]["ZERO"]))
    assert subprocess.run(["bash", "-n"], input=task["run"] + task["setup"], text=True).returncode == 0
    assert "--resume" in task["run"]
