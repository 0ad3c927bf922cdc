"""Disks that are full, fail or lie, and saves that are cut off anywhere: what was there before stays, what is not sound is not used."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

import vla.checkpoint
import vla.tensor_file
from tests.train.processes import warm
from tests.train.test_checkpoint import Told
from tests.train.test_faults_processes import KILLED, everything
from tests.train.test_faults_processes import go as go_process
from tests.train.toy import toy_run
from vla.checkpoint import MODEL, folder_problems
from vla.errors import UnsafeChange, UserError
from vla.train import checkpoint
from vla.train.checkpoint import STATE, newest, steps_saved
from vla.train.loop import train
from vla.train.optim import AdamW


@pytest.fixture(scope="module")
def saved(shards, tmp_path_factory):
    """A run with checkpoints of steps 3 and 6."""
    out = tmp_path_factory.mktemp("saved") / "run"
    train(toy_run(save_every=3), out, data_root=shards, near=shards)
    return out


@pytest.fixture
def run_folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run", symlinks=True))


def goes_on(shards: Path, out: Path, allow_changed: bool = True, **changes) -> list[str]:
    """What a resumed run says."""
    told, run = Told(), toy_run(**{"save_every": 3, **changes})
    train(run, out, resume=True, allow_changed=allow_changed, data_root=shards, near=shards, watch=told)
    return told.lines


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def stale(path: Path) -> None:
    shutil.copy(path.parents[2] / "000003" / path.parent.name / path.name, path)


def stale_folder(path: Path) -> None:
    """With its own manifest: sound in itself, and of another step."""
    shutil.rmtree(path.parent)
    shutil.copytree(path.parents[2] / "000003" / path.parent.name, path.parent)


@pytest.mark.parametrize("file", [f"{STATE}/state.safetensors", f"{MODEL}/model.safetensors"])
@pytest.mark.parametrize("spoil", [cut, empty, os.remove, stale, stale_folder])
def test_a_spoilt_part_is_named_and_the_checkpoint_before_used(run_folder, spoil, file):
    spoil(run_folder / "checkpoints" / "000006" / file)
    told = Told()
    assert newest(run_folder, told.say) == run_folder / "checkpoints" / "000003"
    assert len(told.lines) == 1 and "000006" in told.lines[0]
    assert file.split("/")[-1] in told.lines[0] or "stale" in told.lines[0]


def test_the_damaged_newest_never_costs_the_sound_one_before(run_folder, shards):
    """One checkpoint is kept: what is damaged does not count."""
    cut(run_folder / "checkpoints" / "000006" / STATE / "state.safetensors")
    lines = goes_on(shards, run_folder, steps=6, keep_last=1, save_every=1)
    assert any("goes on at step 3" in line for line in lines)
    assert [folder.name for folder in steps_saved(run_folder)] == ["000006"]
    assert newest(run_folder, print)


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.faults)])
def test_every_flipped_bit_is_seen_before_a_weight_is_used(run_folder, count):
    rng = random.Random(count)
    folder = run_folder / "checkpoints" / "000006"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(count):
        path = rng.choice(files)
        at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << bit)]))
            file.flush()
            assert any(folder_problems(folder / part) for part in (STATE, MODEL)), f"bit {bit} of byte {at} of {path}"
            file.seek(at)
            file.write(bytes([byte]))
    assert not any(folder_problems(folder / part) for part in (STATE, MODEL))


@pytest.mark.faults
@pytest.mark.parametrize("at", [1, 2, 9])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_what_the_disk_refuses_stops_the_run_and_harms_no_older_save(run_folder, shards, monkeypatch, code, at):
    write, calls = vla.tensor_file._write, 0

    def refused(handle: int, data: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise OSError(code, os.strerror(code))
        write(handle, data)

    monkeypatch.setattr(vla.tensor_file, "_write", refused)
    with pytest.raises(UserError, match=rf"{os.strerror(code)}: .*needs .* MB. .* MB are free there; older saves are intact"):
        goes_on(shards, run_folder, steps=12)
    monkeypatch.setattr(vla.tensor_file, "_write", write)
    names = {path.name for path in (run_folder / "checkpoints").iterdir()}
    assert names == {"000003", "000006", "last"}
    assert any("goes on at step 6" in line for line in goes_on(shards, run_folder, steps=12))


@pytest.mark.faults
@pytest.mark.parametrize("name", ["mkdir", "rename"])
def test_a_folder_that_cannot_be_made_or_named_is_one_line(run_folder, shards, monkeypatch, name):
    real = getattr(os, name)

    def refused(path: object, *args: object, **kwargs: object) -> None:
        if "partial" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, name, refused)
    with pytest.raises(UserError, match="Read-only file system.*older saves are intact"):
        goes_on(shards, run_folder, steps=8)
    monkeypatch.setattr(os, name, real)
    assert newest(run_folder, print) == run_folder / "checkpoints" / "000006"


def test_a_failing_save_ends_the_run_at_its_next_step(shards, tmp_path, monkeypatch):
    """Not at the end of the run, hours later."""
    monkeypatch.setattr(vla.checkpoint, "_flush", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    steps = []
    watch = Told()
    watch.step = lambda done, of: (steps.append(done), time.sleep(0.05))
    with pytest.raises(UserError, match="Input/output error"):
        train(toy_run(steps=200, save_every=2), tmp_path / "run", data_root=shards, near=shards, watch=watch)
    assert len(steps) < 100
    assert steps_saved(tmp_path / "run") == []


def test_a_save_that_fails_beside_an_error_is_told_and_the_error_is_the_one_raised(shards, tmp_path, monkeypatch):
    going, told = threading.Event(), Told()

    def refused(path: object) -> None:
        going.wait(60)
        raise OSError(errno.EIO, "Input/output error")

    def broken(done: int, of: int) -> None:
        if done == 3:  # while the save of step 2 is being written
            going.set()
            raise ZeroDivisionError("a watch of its own")

    monkeypatch.setattr(vla.checkpoint, "_flush", refused)
    told.step = broken
    with pytest.raises(ZeroDivisionError):
        train(toy_run(steps=9, save_every=2), tmp_path / "run", data_root=shards, near=shards, watch=told)
    assert any("the save in progress failed as well" in line and "Input/output error" in line for line in told.lines)
    assert steps_saved(tmp_path / "run") == []


def test_too_little_space_is_said_before_the_first_step(shards, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    told = Told()
    train(toy_run(steps=1), tmp_path / "run", data_root=shards, near=shards, watch=told)
    assert any("warning: checkpoints here will take about" in line and "0.00 GB are free" in line for line in told.lines)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optim": AdamW(lr=1e-2)}, "optim.lr: 0.003 -> 0.01"),
        ({"batch_size": 16}, "batch_size: 8 -> 16"),
        ({"mixture": "other.yaml"}, "mixture: toy.yaml -> other.yaml"),
    ],
)
def test_a_changed_run_is_refused_with_the_difference(run_folder, shards, changes, says):
    (shards / "other.yaml").write_text((shards / "toy.yaml").read_text().replace("weight: 1, why: wide", "weight: 2, why: wide"))
    with pytest.raises(UnsafeChange, match=says):
        goes_on(shards, run_folder, allow_changed=False, **changes)


def test_the_best_stay_beside_the_newest(shards, tmp_path, monkeypatch):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 5.0, 6: 6.0}
    monkeypatch.setattr("vla.train.loop.validate", lambda run, job, engine, step: {"loss": losses[step + 1]})
    out = tmp_path / "run"
    train(toy_run(steps=6, save_every=1, validate_every=1, keep_last=2, keep_best=2), out, data_root=shards, near=shards)
    assert [folder.name for folder in steps_saved(out)] == ["000002", "000003", "000005", "000006"]
    assert (out / "checkpoints" / "best").resolve().name == "000002"
    with pytest.raises(UserError, match="keep_best needs the held-out loss"):
        toy_run(keep_best=1)


def test_a_save_beside_the_training_is_the_one_that_waits(shards, tmp_path):
    """The same bits, although the steps after it change the weights that it was copied from."""
    for name, beside in (("waits", False), ("beside", True)):
        train(toy_run(steps=9, save_every=2, keep_last=9, async_save=beside), tmp_path / name, data_root=shards, near=shards)
    for waits, beside in zip(steps_saved(tmp_path / "waits"), steps_saved(tmp_path / "beside"), strict=True):
        for file in (f"{STATE}/state.safetensors", f"{MODEL}/model.safetensors"):
            assert (waits / file).read_bytes() == (beside / file).read_bytes()


@pytest.fixture(scope="module")
def processes():
    with warm("tests.train.faults") as running:
        yield running


@pytest.mark.faults
@pytest.mark.parametrize("beside", [True, False])
def test_killed_at_every_operation_of_a_save(processes, shards, tmp_path, beside):
    """Before each file that is opened, each piece written, each flush, rename and removal: the newest complete checkpoint is found,
    nothing half-written is, and the run ends as it would have."""
    settings = {"steps": 9, "save_every": 3, "log_every": 3, "keep_last": 1, "async_save": beside}
    whole, begun, out = tmp_path / "whole", tmp_path / "begun", tmp_path / "run"
    assert go_process(processes, "trains", root=shards, out=whole, **settings) == [0]
    in_turn = {**settings, "async_save": False}  # the save of step 3 is there before step 5
    assert go_process(processes, "trains", root=shards, out=begun, die=("step", 5), **in_turn) == KILLED
    for at in range(1, 10_000, 2 if beside else 1):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(begun, out, symlinks=True)
        died = go_process(processes, "dies_at_an_operation", root=shards, out=out, at=at, **settings) == KILLED
        folders = steps_saved(out)
        assert folders and not any(folder_problems(folders[0] / part) for part in (STATE, MODEL))
        assert go_process(processes, "trains", root=shards, out=out, resume=True, **settings) == [0]
        assert everything(out) == everything(whole)
        assert not list((out / "checkpoints").glob(".*"))
        if not died:
            break
    assert at > 60


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written in .*Choose another --out"), checkpoint.lock(tmp_path / "file" / "run"):
        pass
