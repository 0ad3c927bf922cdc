"""A checkpoint is complete or invisible; damage is named; a full disk leaves the old one alone."""

from __future__ import annotations

import json
import resource
import stat
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parts import DECODERS, ROBOTS, contents, observation
from vla.checkpoint import folder_problems, load_checkpoint, load_model, save_checkpoint
from vla.errors import Damaged, UnknownName, UserError
from vla.policy import Policy


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    holds = contents(DECODERS["parallel"])
    return save_checkpoint(tmp_path / "ckpt", holds, holds.build().state_dict())


def test_every_kind_of_damage_is_named_before_weights_are_used(saved):
    rng = np.random.default_rng(0)
    weights = saved / "model.safetensors"
    clean = weights.read_bytes()
    for offset in rng.integers(0, len(clean), 25):  # a flipped bit anywhere, which safetensors does not notice
        flipped = bytearray(clean)
        flipped[offset] ^= 1 << int(rng.integers(8))
        weights.write_bytes(flipped)
        with pytest.raises(Damaged, match="model.safetensors: contents altered"):
            load_checkpoint(saved)
    weights.write_bytes(clean[:-1])
    assert folder_problems(saved) == [f"model.safetensors: {len(clean) - 1} bytes, not {len(clean)}"]
    weights.unlink()
    assert folder_problems(saved) == ["model.safetensors: missing"]
    (saved / "manifest.json").write_text('{"files": {"../../etc/passwd": {"sha256": "0", "bytes": 1}}}')
    assert folder_problems(saved) == ["../../etc/passwd: a name outside the folder"]
    (saved / "manifest.json").unlink()
    assert "incomplete" in folder_problems(saved)[0]
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(saved.with_name("nothing"))


def test_no_space_leaves_the_old_checkpoint_intact(saved):
    before = (saved / "manifest.json").read_bytes()
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from tests.parts import DECODERS, contents; from vla.checkpoint import save_checkpoint; from vla.errors import UserError\n"
        "holds = contents(DECODERS['parallel']); weights = holds.build().state_dict()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: save_checkpoint(Path(sys.argv[1]), holds, weights)\n"
        "except UserError as error: print(error); sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(saved)], capture_output=True, text=True)
    assert done.returncode == 3 and "older saves are intact" in done.stdout, done.stderr
    assert (saved / "manifest.json").read_bytes() == before and not folder_problems(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["ckpt"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_files_follow_the_umask_and_hold_no_code(saved):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()}
    assert len(modes) == 1
    assert {path.name for path in saved.iterdir()} == {"model.safetensors", "config.json", "manifest.json"}


def test_an_unknown_kind_names_the_plug_in_flag(saved):
    config = json.loads((saved / "config.json").read_text())
    config["model"]["decoder"]["kind"] = "decoder.theirs"
    from vla.checkpoint import Contents

    with pytest.raises(UnknownName, match="--plugin"):
        Contents.from_json(config)


def test_a_policy_acts_alone_and_within_limits(saved):
    policy = Policy.load(saved)
    rng = np.random.default_rng(1)
    rows = [observation(of, rng) for of in (*ROBOTS, ROBOTS[0])]
    together = policy.act_batch(rows, keys=[1, 2, 3])
    for of, chunk in zip((*ROBOTS, ROBOTS[0]), together, strict=True):
        assert chunk.action_TA.shape == (of.horizon, of.action.size) and chunk.embodiment == of.name
        assert np.abs(chunk.action_TA).max() <= 1.0
    alone = policy.act_batch(rows[2:], keys=[3])[0]
    np.testing.assert_allclose(alone.action_TA, together[2].action_TA, atol=1e-5)
    assert policy.act(rows[0]).action_TA.shape == (4, 2)


def test_a_robot_without_limits_is_refused_before_the_model_runs(saved):
    holds, model = load_model(saved)
    free = replace(holds, embodiments=tuple(replace(robot, limits=None) for robot in holds.embodiments))
    policy = Policy(free, model)
    model.sample = lambda *args: pytest.fail("the model ran")
    with pytest.raises(UserError, match="has no limits"):
        policy.act(observation(ROBOTS[0], np.random.default_rng(0)))


def test_a_model_that_emits_nan_never_reaches_a_motor(saved):
    holds, model = load_model(saved)
    with torch.no_grad():
        model.decoder.out.bias_EO.fill_(float("nan"))
    from vla.errors import SchemaError

    with pytest.raises(SchemaError, match="NaN"):
        Policy(holds, model).act(observation(ROBOTS[0], np.random.default_rng(0)))
