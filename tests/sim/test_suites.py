"""Suites by name and from a file, without any simulator being imported."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from vla.errors import UnknownName, UserError
from vla.sim.suites import load_suite, suite_names

REQUIRED = ("door-open", "drawer-open", "button-press-topdown", "window-open", "window-close", "faucet-open")


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_is_what_it_says(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == suite.spec == name
    tasks = [task.name for task in suite.tasks]
    assert tasks and len(set(tasks)) == len(tasks)
    for task in suite.tasks:
        assert task.instruction == task.instruction.lower() and len(task.instruction.split()) >= 2
        assert task.max_steps > 2 * suite.embodiment.horizon
        assert task.noise_sd > 0


def test_training_and_held_out_tasks_do_not_meet() -> None:
    seen = {task.name for task in load_suite("metaworld-objects").tasks}
    held_out = load_suite("metaworld-heldout")
    assert set(REQUIRED) <= seen and len(seen) == 8
    assert held_out.held_out and not seen & {task.name for task in held_out.tasks}


def test_mt50_has_its_groups_and_an_instruction_of_its_own_for_each_task() -> None:
    tasks = load_suite("metaworld-mt50").tasks
    assert Counter(task.group for task in tasks) == {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    assert len({task.instruction for task in tasks}) == 50
    assert len(load_suite("metaworld-mt10").tasks) == 10


def test_video_suites_have_no_labels() -> None:
    assert {name for name in suite_names() if load_suite(name).supervision == "none"} == {"metaworld-video", "fetch-video"}
    tracks = {name for name in suite_names() if load_suite(name).supervision == "tracks"}
    assert tracks == {"metaworld-tracks", "fetch-tracks"} and {load_suite(name).embodiment.name for name in tracks} == {"human_tracks"}


def test_a_mistyped_suite_or_task_lists_the_choices() -> None:
    with pytest.raises(UnknownName, match=r"metaworld-objcts.*metaworld-objects"):
        load_suite("metaworld-objcts")
    with pytest.raises(UnknownName, match=r"door-opn.*door-open"):
        load_suite("metaworld-objects").task("door-opn")


def test_a_suite_file_must_exist_and_define_a_suite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no suite file"):
        load_suite(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("SUITE = 3\n", encoding="utf-8")
    with pytest.raises(UserError, match="defines no SUITE"):
        load_suite(str(tmp_path / "empty.py"))


def test_listing_suites_imports_no_simulator() -> None:
    code = (
        "import sys; from vla.sim.suites import load_suite, suite_names; [load_suite(n) for n in suite_names()];"
        "sys.exit(bool({'mujoco', 'metaworld', 'torch', 'gym_aloha', 'robosuite'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
