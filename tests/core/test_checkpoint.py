"""A checkpoint is complete or invisible; damage is named; a full disk leaves the old one alone."""

from __future__ import annotations

import json
import resource
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parts import DECODERS, OFFSETS_S, ROBOTS, contents, observation
from vla.checkpoint import FORMAT_VERSION, MIGRATIONS, Contents, acting, folder_problems, load_checkpoint, load_model, save_checkpoint
from vla.decoders.base import with_evaluations
from vla.errors import Damaged, SchemaError, StatsMissing, UnknownName, UserError
from vla.policy import Policy
from vla.weights import read_weights, weight_files, weight_table


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    holds = contents(DECODERS["parallel"])
    return save_checkpoint(tmp_path / "ckpt", holds, holds.build().state_dict())


SEVERAL = ("masked", "flow", "ddpm_pooled", "latent_flow", "joint", "reasoning")
"""Decoders of each kind that asks its network several times."""


@pytest.mark.parametrize("name", SEVERAL)
def test_a_checkpoint_acts_with_other_evaluations_like_one_that_says_so(name, tmp_path):
    torch.manual_seed(0)
    holds = contents(DECODERS[name])
    # Larger than fresh ones, so that what was decided moves what is decided next.
    weights = {key: 4 * value if value.is_floating_point() else value for key, value in holds.build().state_dict().items()}
    folder = save_checkpoint(tmp_path / "ckpt", holds, weights)
    two = with_evaluations(DECODERS[name], 2)
    says = save_checkpoint(tmp_path / "two", contents(two), weights)
    seen = [observation(ROBOTS[1], np.random.default_rng(0))]
    changed, meant, plain = Policy.load(folder, evaluations=2), Policy.load(says), Policy.load(folder)
    acted = [policy.act_batch(seen, [7])[0].action_TA for policy in (changed, meant, plain)]
    assert np.array_equal(acted[0], acted[1]) and not np.array_equal(acted[0], acted[2])
    assert changed.contents.model.decoder == two
    kept = Policy.load(changed.save_pretrained(tmp_path / "kept"), verify=True)
    assert kept.contents.model.decoder == two


def test_evaluations_that_cannot_be_are_refused(tmp_path):
    for name, asked, reason in (
        ("parallel", 2, "decoder.parallel has no number of evaluations"),
        ("joint_in_context", 2, "decoder.parallel has no number of evaluations"),
        ("masked", 0, "masked diffusion needs evaluations >= 1"),
        ("flow", 0, "0 evaluations of a flow; choose at least 1"),
        ("ddpm", 21, "21 evaluations of a path with 20 levels left; choose 1..20"),
        ("latent_flow", -1, "-1 evaluations of a flow"),
    ):
        holds = contents(DECODERS[name])
        folder = save_checkpoint(tmp_path / name, holds, holds.build().state_dict())
        with pytest.raises(UserError, match=reason):
            Policy.load(folder, evaluations=asked)
    with pytest.raises(UserError, match="verify it without them"):
        Policy.load(folder, evaluations=2, verify=True)


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


def test_what_is_no_observation_is_refused_before_the_model_runs(saved):
    holds, model = load_model(saved)
    model.sample = lambda *args: pytest.fail("the model ran")
    policy, seen = Policy(holds, model), observation(ROBOTS[0], np.random.default_rng(0))
    wrist = seen.images["wrist"]
    wrong = {
        "state holds NaN or infinity": [{"state": np.where(np.arange(3) == 1, bad, seen.state)} for bad in (np.nan, np.inf)],
        r"'wrist': images must be uint8 \(2, height, width, 3\)": [
            {"images": {**seen.images, "wrist": bad}}
            for bad in (wrist / 255, np.full(wrist.shape, np.nan), wrist.astype(np.int64), wrist[:1], wrist[0], wrist[..., :1])
        ],
        "finite seconds": [{"offsets_s": (np.nan, 0.0)}],
    }
    for message, changes in wrong.items():
        for change in changes:
            with pytest.raises(SchemaError, match=message):
                policy.act(replace(seen, **change))


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
    with pytest.raises(SchemaError, match="NaN"):
        Policy(holds, model).act(observation(ROBOTS[0], np.random.default_rng(0)))


def test_a_policy_of_another_number_of_frames_says_which_it_sees(saved):
    policy = Policy.load(saved)
    seen = observation(ROBOTS[0], np.random.default_rng(0))
    one = replace(seen, images={role: frames[-1:] for role, frames in seen.images.items()}, state=seen.state[-1:], offsets_s=(0.0,))
    with pytest.raises(SchemaError, match=r"1 frames given; this checkpoint sees 2, at \[-0.1, 0.0\] s"):
        policy.act(one)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embodiment": "panda"}, "unknown embodiment 'panda'. Choices: narrow, wide"),
        ({"images": {}}, r"cameras \[\] given; 'narrow' has the roles \['third_person', 'wrist'\]"),
        ({"state": np.zeros((2, 4))}, r"the last axis must be 3 \(joints\[3 rad\]\)"),
    ],
)
def test_what_a_checkpoint_does_not_know_is_answered_with_what_it_knows(saved, changes, says):
    with pytest.raises(UserError, match=says):
        Policy.load(saved).act(replace(observation(ROBOTS[0], np.random.default_rng(0)), **changes))


def test_a_missing_statistic_lists_those_there_are(saved):
    holds, model = load_model(saved)
    without = replace(holds, normalizers={"wide": holds.normalizers["wide"]})
    with pytest.raises(StatsMissing, match=r"no statistics for 'narrow'; there are some for \['wide'\]"):
        Policy(without, model)


FROZEN = sorted((Path(__file__).parent / "frozen").glob("format_*"))


@pytest.mark.parametrize("folder", FROZEN, ids=lambda path: path.name)
def test_checkpoints_of_every_format_act_as_they_did(folder):
    policy = Policy.load(folder)
    assert policy.contents.offsets_s == OFFSETS_S
    rows = [observation(of, np.random.default_rng(number)) for number, of in enumerate(ROBOTS)]
    for chunk, want_TA in zip(policy.act_batch(rows, [1, 2]), json.loads((folder.parent / "actions.json").read_text()), strict=True):
        np.testing.assert_allclose(chunk.action_TA, want_TA, atol=1e-4)


def test_there_is_a_frozen_checkpoint_of_every_format():
    assert [int(path.name.removeprefix("format_")) for path in FROZEN] == [*MIGRATIONS, FORMAT_VERSION]


def test_a_newer_format_is_refused_with_what_can_be_read(saved):
    config = json.loads((saved / "config.json").read_text())
    with pytest.raises(UserError, match=f"checkpoint format 99; this version of vla reads 1 and {FORMAT_VERSION}. Update it"):
        Contents.from_json({**config, "format_version": 99})


def test_weights_in_several_files_are_those_in_one(saved, tmp_path):
    contents_of, weights = load_checkpoint(saved)
    parted = save_checkpoint(tmp_path / "parted", contents_of, weights, max_shard_bytes=20_000)
    files = weight_files(parted)
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors" and not (parted / "model.safetensors").exists()
    index = json.loads((parted / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    assert set(index["weight_map"]) == set(weights)
    again = load_model(parted)[1].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    assert next(set(part) for part in read_weights(parted)) == {n for n, file in index["weight_map"].items() if file == files[0]}

    (parted / files[1]).unlink()
    with pytest.raises(Damaged, match=f"{files[1]}: missing"):
        load_model(parted)


def test_an_index_cannot_lead_out_of_its_folder_nor_lie(saved, tmp_path):
    contents_of, weights = load_checkpoint(saved)
    parted = save_checkpoint(tmp_path / "parted", contents_of, weights, max_shard_bytes=20_000)
    path = parted / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, *_, last = index["weight_map"]
    for file, says in (("../model.safetensors", "is no file of weights"), (index["weight_map"][last], f"disagree about '{first}'")):
        path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], first: file}}))
        with pytest.raises(Damaged, match=says):
            weight_table(parted)


def test_the_library_reads_our_sharded_weights(saved, tmp_path):
    from huggingface_hub import load_torch_model

    contents_of, weights = load_checkpoint(saved)
    parted = save_checkpoint(tmp_path / "parted", contents_of, weights, max_shard_bytes=20_000)
    model = contents_of.build()
    load_torch_model(model, parted, strict=True)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())


def test_a_steps_folder_acts_as_its_run_does(saved, tmp_path):
    step = tmp_path / "run" / "checkpoints" / "000400"
    step.mkdir(parents=True)
    shutil.copytree(saved, step / "pretrained_model")
    assert acting(step) == acting(tmp_path / "run") == step / "pretrained_model"
    assert acting(saved) == saved


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cude", "'cude' is no device; there are cpu"),
        ("meta", "holds no numbers"),
        ("cuda:99", "cuda:99"),
        ("xpu", "'xpu' cannot be used here"),
    ],
)
def test_a_device_that_is_not_here_is_named(saved, name, says):
    with pytest.raises(UserError, match=says):
        Policy.load(saved, name)
