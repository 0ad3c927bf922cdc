"""The folder of a run: complete or invisible, checked before use, one writer at a time."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
import torch

from tests.train.toy import MODEL, toy_run
from vla.checkpoint import load_checkpoint
from vla.errors import Damaged, UnsafeChange, UserError
from vla.model import Model
from vla.train import checkpoint
from vla.train.job import assemble
from vla.train.log import Log, Watch
from vla.train.loop import train
from vla.train.ranks import Ranks


class Told(Watch):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def go(shards, tmp_path):
    def start(watch=None, resume=False, allow_changed=False, **changes):
        where = {"data_root": shards, "near": shards}
        return train(toy_run(**changes), tmp_path / "run", resume=resume, allow_changed=allow_changed, watch=watch, **where)

    return start


def test_the_newest_are_kept_and_last_points_to_the_last(go, tmp_path):
    result = go(steps=9, save_every=2, keep_last=3)
    folders = checkpoint.steps_saved(tmp_path / "run")
    assert [folder.name for folder in folders] == ["000006", "000008", "000009"]
    last = tmp_path / "run" / "checkpoints" / "last"
    assert last.resolve() == folders[-1].resolve() and result.checkpoint == folders[-1] / "pretrained_model"
    contents, weights = load_checkpoint(last / "pretrained_model")
    assert contents.run["step"] == 9 and contents.run["optim"]["lr"] == 3e-3
    state, _ = checkpoint.load_state(folders[-1])
    assert all(torch.equal(weights[name.removeprefix("ema/")], tensor) for name, tensor in state.items() if name.startswith("ema/"))
    assert any(not torch.equal(state[f"weight/{name}"], tensor) for name, tensor in weights.items())


def test_a_damaged_newest_is_named_and_the_one_before_used(go, tmp_path):
    go(save_every=3)
    newest = tmp_path / "run" / "checkpoints" / "000006"
    data = bytearray((newest / "training_state" / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "training_state" / "state.safetensors").write_bytes(data)
    told = Told()
    go(told, resume=True, save_every=3)
    assert any("damaged" in line and "000006" in line and "state.safetensors" in line for line in told.lines)
    assert any("goes on at step 3" in line for line in told.lines)


def test_nothing_sound_is_an_error_and_nothing_is_removed(go, tmp_path):
    go()
    (tmp_path / "run" / "checkpoints" / "000006" / "pretrained_model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(Damaged, match="no sound checkpoint is left"):
        go(resume=True)
    assert [folder.name for folder in checkpoint.steps_saved(tmp_path / "run")] == ["000006"]


def test_resuming_looks_at_the_folders_not_at_the_link(go, tmp_path):
    go(save_every=3)
    last = tmp_path / "run" / "checkpoints" / "last"
    last.unlink()
    last.symlink_to("000099")
    told = Told()
    go(told, resume=True, save_every=3, steps=6)
    assert any("goes on at step 6" in line for line in told.lines)
    assert last.resolve().name == "000006"


def test_a_run_is_never_overwritten_by_accident(go):
    go()
    with pytest.raises(UserError, match=r"holds a run at step 6.*--resume"):
        go()


def test_a_changed_run_is_told_and_refused_where_it_matters(go):
    go(save_every=3)
    told = Told()
    with pytest.raises(UnsafeChange, match=r"seed: 0 -> 1.*--allow-changed"):
        go(told, resume=True, save_every=3, seed=1, log_every=2)
    assert any(line.endswith("log_every: 1 -> 2") for line in told.lines)
    go(resume=True, save_every=3, steps=8, allow_changed=True)


@pytest.mark.parametrize(("size", "says"), [(16, "positions 24 to 47 are never seen"), (4, "positions 12 to 23 are seen again")])
def test_another_batch_size_says_which_samples_that_costs(go, size, says):
    go(save_every=3, steps=3)
    told = Told()
    result = go(told, resume=True, allow_changed=True, steps=4, batch_size=size)
    assert any(says in line for line in told.lines)
    assert checkpoint.load_state(result.checkpoint.parent)[1].batch_size == size


def test_a_run_may_begin_to_average_or_to_train_a_part_as_it_resumes(go):
    go(save_every=3, ema_decay=None, freeze=("backbone",))
    before, _ = checkpoint.load_state(go(resume=True, ema_decay=None, freeze=("backbone",)).checkpoint.parent)
    after, _ = checkpoint.load_state(go(resume=True, allow_changed=True, steps=8).checkpoint.parent)
    began = [name for name in before if name.startswith("weight/backbone.")]
    assert any(not torch.equal(before[name], after[name]) for name in began)
    averaged = {name: tensor for name, tensor in after.items() if name.startswith("ema/")}
    assert len(averaged) > len(began) and any(not torch.equal(after[f"weight/{name[4:]}"], mean) for name, mean in averaged.items())


@pytest.mark.thorough
def test_another_model_is_refused_even_where_changes_are_allowed(go):
    go(save_every=3)
    wider = Model(replace(MODEL.backbone, width=64), MODEL.decoder)
    with pytest.raises(UserError, match=r"holds another model: weight/backbone.*--init"):
        go(resume=True, save_every=3, model=wider, allow_changed=True)


def test_what_a_run_started_from_may_be_gone_when_it_resumes(go, tmp_path):
    go(steps=3)
    (tmp_path / "run").rename(tmp_path / "first")
    init = str(tmp_path / "first")
    go(init=init, model=None, save_every=3)
    shutil.rmtree(init)
    assert go(init=init, model=None, save_every=3, steps=8, resume=True, allow_changed=True).step == 8


def test_changed_data_are_a_changed_run(go, shards, tmp_path):
    go(save_every=3)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["data"]["sources"]["a"][0] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UnsafeChange, match=r"data\.sources\.a"):
        go(resume=True, save_every=3)


@pytest.mark.thorough
def test_a_second_job_on_the_folder_is_refused(go, tmp_path):
    hold = "import sys, pathlib\nfrom vla.train.checkpoint import lock\n"
    hold += "with lock(pathlib.Path(sys.argv[1])):\n  print('held', flush=True)\n  input()"
    holder = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
        go()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    go()


def test_what_to_go_on_from_is_looked_for_when_nobody_else_can_remove_it(go, monkeypatch):
    go(save_every=3)
    order, newest, lock = [], checkpoint.newest, checkpoint.lock

    @contextmanager
    def locked(out):
        with lock(out):
            order.append("locked")
            yield

    monkeypatch.setattr(checkpoint, "lock", locked)
    monkeypatch.setattr(checkpoint, "newest", lambda *args: order.append("looked") or newest(*args))
    go(resume=True, save_every=3)
    assert order[:2] == ["locked", "looked"]


def test_no_space_leaves_the_checkpoint_before_intact(go, shards, tmp_path):
    """A real limit of the system's on file sizes: the write that crosses it fails as one on a full disk does."""
    go(save_every=3, steps=3)
    size = (tmp_path / "run" / "checkpoints" / "000003" / "training_state" / "state.safetensors").stat().st_size
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(UserError, match="older saves are intact"):
            go(resume=True, save_every=3, steps=6, allow_changed=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if not path.is_symlink()] == ["000003"]
    told = Told()
    go(told, resume=True, save_every=3, steps=6)
    assert any("goes on at step 3" in line for line in told.lines)


def test_no_space_for_a_line_of_the_log_is_one_line_and_costs_none_before(go, tmp_path):
    go(save_every=3, steps=3)
    log = tmp_path / "run" / "log.jsonl"
    lines, size = log.read_text(), log.stat().st_size
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run, facts = toy_run(), json.loads((tmp_path / "run" / "run.json").read_text())
    try:
        for limit in (size - 1, size + 1):  # as the log is taken up again; as a line is added
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with (
                pytest.raises(UserError, match=r"could not save .*log\.jsonl: .* MB are free there"),
                closing(Log(tmp_path / "run", Ranks(0, 1, torch.device("cpu")), 3, run, Watch())) as made,
            ):
                made.write("train", 4, loss=1.0)
            assert log.read_text().startswith(lines)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        with pytest.raises(UserError, match=r"could not save .*run\.json"):
            checkpoint.record_run(tmp_path / "run", facts, True, False, print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == facts


def test_the_acting_checkpoint_acts(go, shards):
    from vla.policy import Policy

    policy = Policy.load(go().checkpoint)
    job = assemble(toy_run(), shards, shards)
    chunk = policy.act(job.train.sample(0).observation)
    assert chunk.action_TA.shape == (3, 2) or chunk.action_TA.shape == (4, 5)
