"""Processes that are killed, hang, crash, are asked to leave, come back in other numbers: nothing of a run is lost or done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.train.processes import DEEPSPEED, Warm, warm
from tests.train.test_processes import fingerprint, samples
from tests.train.toy import toy_run
from vla.checkpoint import MODEL, folder_problems
from vla.train.checkpoint import STATE, steps_saved
from vla.train.job import assemble

pytestmark = pytest.mark.faults
STEPS = 41
RUN = {"steps": STEPS, "batch_size": 8, "microbatch": 4, "save_every": 5, "validate_every": 10, "log_every": 5}
KILLED = [-9]


@pytest.fixture(scope="module")
def processes():
    with warm("tests.train.faults") as running:
        yield running


def go(processes: Warm, scenario: str, world: int = 1, **args) -> list[int]:
    return processes.run("elsewhere", world=world, module="tests.train.faults", name=scenario, **args)


def everything(out: Path) -> tuple:
    """State, acting weights and where the run stands; every loss that was written down. The seconds alone may differ."""
    folder = steps_saved(out)[-1]
    progress = json.loads((folder / STATE / "progress.json").read_text())
    model = json.loads((folder / MODEL / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]
    return (*fingerprint(out), model, {name: value for name, value in progress.items() if name != "seconds"})


@pytest.fixture(scope="module")
def whole(processes, shards, tmp_path_factory):
    """An uninterrupted run: everything of it, and its samples by position."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ledger = out.with_name("ledger")
    assert go(processes, "trains", root=shards, out=out, ledger=ledger, **RUN) == [0]
    seen = samples(ledger)
    assert set(range(STEPS * 8)) <= set(seen)
    return everything(out), {position: seen[position] for position in range(STEPS * 8)}


@pytest.fixture
def dies(processes, shards, tmp_path, whole):
    """Starts a run that dies at each of the given points, one after another, then lets it end: it must be the uninterrupted one."""

    def start(*points: tuple[str, int], surely: bool = True, **changes) -> int:
        settings = {"root": shards, "out": tmp_path / "run", "ledger": tmp_path / "ledger", **RUN, **changes}
        died = 0
        for number, point in enumerate(points):
            exits = go(processes, "trains", die=point, resume=number > 0, **settings)
            assert exits == KILLED or not surely
            died += exits == KILLED
        assert go(processes, "trains", resume=True, **settings) == [0]
        assert everything(tmp_path / "run") == whole[0]
        seen = samples(tmp_path / "ledger")
        assert {position: seen[position] for position in range(STEPS * 8)} == whole[1]
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "ledger").unlink()
        return died

    return start


def test_killed_inside_an_accumulation_and_inside_validation(dies):
    assert dies(("microbatch", 15)) == 1  # the first of the two of step 8
    assert dies(("validation", 2)) == 1


@pytest.mark.parametrize("quarter", range(4))
def test_killed_at_each_of_40_steps(dies, quarter, shards):
    for step in range(1 + 10 * quarter, 11 + 10 * quarter):
        assert dies(("step", step)) == 1
    order = assemble(toy_run(**RUN), shards, shards).train.order
    epoch = sum(source.samples for source in order.sources)
    assert 8 < epoch < 8 * (STEPS - 2), "an epoch ends within the steps at which the run is killed"


@pytest.mark.parametrize("part", range(5))
def test_killed_at_50_random_times(dies, part):
    died = sum(dies(("soon", seed), surely=False) for seed in range(10 * part, 10 * part + 10))
    assert died >= 5


def test_killed_twice_and_three_times_inside_an_epoch(dies):
    assert dies(("step", 7), ("step", 9)) == 2
    assert dies(("step", 6), ("step", 6), ("step", 22)) == 3
    assert dies(("step", 3), ("microbatch", 9), ("validation", 1)) == 3


def test_killed_inside_every_micro_batch_of_a_step_and_every_validation(dies):
    for number in (21, 22, 23, 24):
        assert dies(("microbatch", number)) == 1
    for number in (1, 2, 3, 4):
        assert dies(("validation", number)) == 1
    assert dies(("step", 17), workers=2) == 1


def test_asked_to_stop_while_a_save_is_being_written(processes, shards, tmp_path):
    settings = {"root": shards, "out": tmp_path / "run", "steps": 6, "save_every": 2, "log_every": 5}
    assert go(processes, "slow_save", **settings) == [75]
    folders = steps_saved(tmp_path / "run")
    assert [folder.name for folder in folders] == ["000002", "000003"]  # no step lost, and the save before it ended first
    assert not any(folder_problems(folder / part) for folder in folders for part in (STATE, MODEL))


def test_a_second_interrupt_leaves_at_once(processes, shards, tmp_path):
    """Neither the step nor the save in progress is waited for, a minute each; and nothing half-written is left visible."""
    assert go(processes, "interrupted", root=shards, out=tmp_path / "run", notes=tmp_path / "notes") == [130]
    assert (tmp_path / "notes").read_text() == "interrupted twice\n"
    assert steps_saved(tmp_path / "run") == []
    assert go(processes, "trains", root=shards, out=tmp_path / "run", resume=True, steps=9, save_every=2) == [0]


NAMED = {
    "hangs": "rank {} (process",
    "killed": "rank {} (process",
    "crashes": "rank {} (process",
    "raises": "rank {} could not go on: ValueError: a bug of this rank",
}


def check_failure(processes: Warm, shards: Path, folder: Path, how: str, who: int, zero: int = 0) -> None:
    timeout_s = 20.0 if how == "hangs" else 120.0  # to start takes a while on a crowded machine
    exits = go(processes, "fails", world=2, root=shards, out=folder / "run", how=how, who=who, timeout_s=timeout_s, zero=zero)
    assert all(exits)
    said = [(folder / f"said-{rank}.txt").read_text() for rank in (0, 1)]
    # Without a launcher the first rank keeps what the ranks know of each other: without it, that is all that can be said.
    gone = "rank 0 is gone" if who == 0 and how in ("killed", "crashes") else NAMED[how].format(who)
    assert f"error: {gone}" in said[1 - who]
    assert "Traceback" not in said[1 - who]
    assert ("".join(said)).count("Traceback") == (how == "raises")
    if how == "crashes":
        assert "Segmentation fault" in said[who]
    if how == "hangs":
        assert "Timeout" in said[who] and "faults.py" in said[who]  # where it hung


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", ["hangs", "killed", "crashes", "raises"])
def test_a_rank_that_fails_is_named_and_all_end(processes, shards, tmp_path, how, who):
    check_failure(processes, shards, tmp_path, how, who)


def test_a_rank_that_is_killed_under_zero_is_named(shards, tmp_path):
    with warm("tests.train.faults", *DEEPSPEED) as processes:
        check_failure(processes, shards, tmp_path, "killed", 1, zero=2)


def test_two_ranks_then_one_then_two(processes, shards, tmp_path, whole):
    settings = {"root": shards, "out": tmp_path / "run", "ledger": tmp_path / "ledger", **RUN}
    assert go(processes, "trains", world=2, die=("stop", 9), **settings) == [75, 75]
    assert go(processes, "trains", die=("stop", 23), resume=True, **settings) == [75]
    assert go(processes, "trains", world=2, resume=True, **settings) == [0, 0]
    seen = samples(tmp_path / "ledger")
    assert {position: seen[position] for position in range(STEPS * 8)} == whole[1]
    want, got = whole[0][2], fingerprint(tmp_path / "run")[2]
    for step in (5, 15, 20, 30, 35, 40):  # a row is the mean of the steps since the one before, or since the run went on
        assert got[step][0] == pytest.approx(want[step][0], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("workers", [0, 2, 8])
@pytest.mark.parametrize(("world", "microbatch"), [(1, 8), (1, 1), (2, 1), (2, 4)])
def test_ranks_micro_batches_and_workers_change_neither_order_nor_losses(processes, shards, tmp_path, whole, world, microbatch, workers):
    settings = {**RUN, "steps": 10, "microbatch": microbatch, "workers": workers, "validate_every": 0}
    assert go(processes, "trains", world, root=shards, out=tmp_path / "run", ledger=tmp_path / "ledger", **settings) == [0] * world
    seen = samples(tmp_path / "ledger")
    assert {position: seen[position] for position in range(80)} == {position: whole[1][position] for position in range(80)}
    one = tmp_path / "one"
    assert go(processes, "trains", root=shards, out=one, **{**settings, "microbatch": 8, "workers": 0}) == [0]
    want, got = fingerprint(one)[2], fingerprint(tmp_path / "run")[2]
    for step in want:
        assert got[step][0] == pytest.approx(want[step][0], rel=1e-5, abs=1e-5)


def test_clocks_a_day_apart_make_one_folder(processes, shards, tmp_path):
    assert go(processes, "with_skewed_clocks", world=2, root=shards, out=tmp_path / "run") == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert processes.run("run_and_die", root=shards, out=tmp_path / "other", steps=6, save_every=3) == [0]
    assert [folder.name for folder in steps_saved(tmp_path / "run")] == ["000003", "000006"]
    want, got = fingerprint(tmp_path / "other")[2], fingerprint(tmp_path / "run")[2]
    assert [row[0] for row in got.values()] == pytest.approx([row[0] for row in want.values()], rel=1e-5)


ZERO = [1, 2, 3]


@pytest.fixture(scope="module")
def sharded():
    with warm("tests.train.faults", *DEEPSPEED) as running:
        yield running


@pytest.mark.parametrize("zero", ZERO)
def test_zero_goes_on_at_another_world_size(sharded, shards, tmp_path, zero):
    """Every parameter, moment and average has the same bits after loading; the next ten losses are those of one process."""
    settings = {"root": shards, "steps": 14, "batch_size": 12, "save_every": 4, "keep_last": 9}
    assert go(sharded, "trains", out=tmp_path / "one", **settings) == [0]
    want = torch.tensor([row[:2] for row in fingerprint(tmp_path / "one")[2].values()])
    for world in (3, 1):
        out = tmp_path / f"to-{world}"
        assert go(sharded, "trains", world=2, zero=zero, die=("stop", 4), out=out, **settings) == [75, 75]
        assert go(sharded, "same_after_loading", world=world, root=shards, out=out, zero=zero, batch_size=12) == [0] * world
        assert go(sharded, "trains", world=world, zero=zero, resume=True, out=out, **settings) == [0] * world
        got = torch.tensor([row[:2] for row in fingerprint(out)[2].values()])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zero", ZERO)
def test_zero_follows_one_process_for_50_steps(sharded, shards, tmp_path, zero):
    """In fp32, on batches of two action widths and of video without labels."""
    settings = {"root": shards, "steps": 50}
    for name, world, stage in (("one", 1, 0), ("two", 2, zero)):
        assert go(sharded, "trains", world=world, zero=stage, out=tmp_path / name, **settings) == [0] * world
    want, got = (torch.tensor([row[0] for row in fingerprint(tmp_path / name)[2].values()]) for name in ("one", "two"))
    assert len(want) == 50
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
