"""DeepSpeed on two processes: the same losses and gradients as one, no hang, exact resume. One warm process serves all."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.processes import DEEPSPEED, warm
from tests.train.test_processes import fingerprint

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def processes():
    with warm(*DEEPSPEED) as running:
        yield running


@pytest.fixture(scope="module")
def steps(processes, shards, tmp_path_factory):
    """Three steps by one process."""
    out = tmp_path_factory.mktemp("steps")
    assert processes.run("gradients", root=shards, out=out, stages=[0]) == [0]
    return out


@pytest.fixture(scope="module")
def two_ranks(processes, shards, steps, request):
    """Three steps of an engine by two processes, in the same folder."""
    assert processes.run("gradients", world=2, root=shards, out=steps, stages=[request.param]) == [0, 0]
    return request.param


@pytest.mark.thorough
@pytest.mark.parametrize("two_ranks", STAGES, indirect=True)
@pytest.mark.parametrize("case", ["mixed", "unlabelled"])
def test_two_ranks_follow_one_process(steps, two_ranks, case):
    """A batch of two action widths and of video without actions; then one where a rank has nothing but video."""
    stage = two_ranks
    want, got = (load_file(steps / f"{case}-{name}.safetensors") for name in ("0-1", f"{stage}-2"))
    assert set(want) == set(got)
    assert {name.split("/")[0] for name in want} == {"exp_avg", "weight", "averaged"}  # the first: the gradient of step 1
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    losses = [json.loads((steps / f"{case}-{name}.json").read_text()) for name in ("0-1", f"{stage}-2")]
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_what_is_offloaded_follows_as_well(processes, shards, steps, tmp_path):
    offloaded = ["zero2_offload", "zero3_offload"]
    assert processes.run("gradients", world=2, root=shards, out=tmp_path, stages=offloaded) == [0, 0]
    for case in ("mixed", "unlabelled"):
        want = load_file(steps / f"{case}-0-1.safetensors")
        for name in offloaded:
            got = load_file(tmp_path / f"{case}-{name}-2.safetensors")
            for key, tensor in want.items():
                torch.testing.assert_close(got[key], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


SLOWLY = [pytest.param(zero, precision, marks=pytest.mark.slow) for zero, precision in ((1, "fp32"), (3, "fp32"), (2, "bf16"), (3, "bf16"))]


@pytest.mark.thorough
@pytest.mark.parametrize(("zero", "precision"), [(2, "fp32"), *SLOWLY])
def test_killed_and_resumed_is_bit_identical(processes, shards, tmp_path, zero, precision):
    settings = {"world": 2, "root": shards, "zero": zero, "steps": 8, "save_every": 3, "microbatch": 2, "precision": precision}
    assert processes.run("run_and_die", out=tmp_path / "whole", **settings) == [0, 0]
    assert processes.run("run_and_die", out=tmp_path / "run", kill_at=5, **settings)[1] == -signal.SIGKILL
    assert processes.run("run_and_die", out=tmp_path / "run", resume=True, **settings) == [0, 0]
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


@pytest.mark.thorough
def test_what_is_not_finite_moves_nothing_on_any_rank(processes, shards, tmp_path):
    assert processes.run("not_finite", world=2, root=shards, out=tmp_path) == [0, 0]
    for stage in STAGES:
        seen = json.loads(Path(tmp_path / f"{stage}.json").read_text())
        assert seen == {"applied": [True, False, True], "frozen": True, "moved": True}, stage


@pytest.mark.slow
def test_a_run_goes_on_with_another_engine_and_world(processes, shards, tmp_path):
    """ZeRO-3 on two ranks, then plain on one, then ZeRO-2 on two: the losses of a single process, to rounding."""
    settings = {"root": shards, "out": tmp_path / "run", "save_every": 3}
    assert processes.run("run_and_die", root=shards, out=tmp_path / "whole", steps=9) == [0]
    assert processes.run("run_until_step", world=2, zero=3, until=3, steps=9, **settings) == [75, 75]
    assert processes.run("run_until_step", until=6, steps=9, resume=True, **settings) == [75]
    assert processes.run("run_and_die", world=2, zero=2, steps=9, resume=True, **settings) == [0, 0]
    want, got = fingerprint(tmp_path / "whole")[2], fingerprint(tmp_path / "run")[2]
    assert list(want) == list(got) == list(range(1, 10))
    for step in want:
        torch.testing.assert_close(torch.tensor(got[step][:2]), torch.tensor(want[step][:2]), rtol=1e-5, atol=1e-5)
