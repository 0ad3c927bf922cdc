"""pi0 and pi0.5 as openpi and lerobot publish them -> checkpoints that act as transformers' own pi0, and as pi0.5 written out by hand."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.interop import layouts, pi0_layouts
from tests.interop.pi0_layouts import EXPERT, PADDED, T
from vla.errors import SchemaError, StatsMissing, UserError
from vla.interop.formats import import_checkpoint, plan_import
from vla.interop.source import Source
from vla.noise import Noise
from vla.policy import Policy

CAMERAS = ("third_person", "wrist")
ROBOT = layouts.robot(CAMERAS)
WIDTH, STATE = 7, 8


@pytest.fixture(scope="module")
def theirs():
    return pi0_layouts.library_pi0()


@pytest.fixture(scope="module")
def published(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pi0") / "pi0_arm"
    return folder, pi0_layouts.openpi(folder, pi0_layouts.openpi_names(theirs), WIDTH, STATE)


def given(policy: Policy, observations, pixels: bool = True):
    """The library's inputs for our observations, and the noise that our policy draws for keys 0, 1, ..."""
    batch = policy.collate.observations(observations)
    inputs, B = batch.inputs, len(observations)
    images = torch.stack(
        [torch.stack([torch.from_numpy(o.images[c][0]).permute(2, 0, 1) / 255 * 2 - 1 for c in CAMERAS]) for o in observations]
    )
    noise = Noise(torch.arange(B), 0).normal("eps", T, PADDED)
    ids = torch.where(inputs["patch_BS"] >= 0, 285, inputs["token_BS"])
    return {
        "input_ids": ids,
        "attention_mask": inputs["token_valid_BS"].long(),
        "pixel_values": images,
        "pixel_attention_mask": torch.ones(B, 2, dtype=torch.bool),
    }, noise


@torch.no_grad()
@pytest.mark.parametrize("layout", ["openpi", "lerobot"])
def test_pi0_acts_as_the_librarys_own(theirs, published, layout, tmp_path):
    folder, steps = published[0], 10
    if layout == "lerobot":
        folder, steps = tmp_path / "lerobot", 5
        pi0_layouts.lerobot(folder, "pi0", pi0_layouts.openpi_names(theirs), WIDTH, STATE)
        shutil.copy(published[0] / "tokenizer.json", folder)
    report = import_checkpoint("pi0", Source(folder, ROBOT, CAMERAS), tmp_path / "ours")
    policy = Policy.load(tmp_path / "ours")
    texts = ("open the door", "push", "close it")
    observations = [layouts.observation(ROBOT, seed, pi0_layouts.SIDE, text) for seed, text in enumerate(texts)]
    found = np.stack([chunk.action_TA for chunk in policy.act_batch(observations, range(3))])
    inputs, noise = given(policy, observations)
    numbers = {"state": pi0_layouts.statistics(STATE, 1), "action": pi0_layouts.statistics(WIDTH, 2)}
    eps = (1e-6, 1e-6) if layout == "openpi" else (1e-8, 0.0)  # forward, and back
    mean, std = (np.array(numbers["state"][name]) for name in ("mean", "std"))
    normal = torch.tensor(np.stack([(o.state[-1] - mean) / (std + eps[0]) for o in observations]), dtype=torch.float32)
    state = F.pad(normal, (0, PADDED - STATE))
    want = theirs.sample_actions(state, noise=noise, num_steps=steps, **inputs)[..., :WIDTH].double().numpy()
    mean, std = (np.array(numbers["action"][name]) for name in ("mean", "std"))
    want = want * (std + eps[1]) + mean
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert np.abs(want).max() > 0.3 and np.abs(want[0] - want[1]).max() > 0.05
    assert report.taken + sum(report.left.values()) == len(published[1]) - (layout == "lerobot")


@torch.no_grad()
def test_what_no_robot_has_takes_part_as_noise(published, tmp_path):
    """Zeros in its place, as our own padding has them, would give another chunk: so the last test is about it too."""
    import_checkpoint("pi0", Source(published[0], ROBOT, CAMERAS), tmp_path / "ours")
    policy = Policy.load(tmp_path / "ours")
    decoder, robot = policy.model.decoder, policy.contents.embodiments[0]
    assert (decoder.action_width, policy.contents.roster.action_width) == (PADDED, WIDTH)
    seen = [layouts.observation(robot)]
    before = policy.act_batch(seen, [0])[0].action_TA
    decoder.action_in.weight_EIO[:, WIDTH:] = 0
    assert np.abs(policy.act_batch(seen, [0])[0].action_TA - before).max() > 1e-2


def pi05_tensors(theirs) -> dict[str, torch.Tensor]:
    """The names of pi0.5: norms of the expert are maps of the time, and there is no state."""
    width, found = EXPERT["hidden_size"], {}
    for name, tensor in pi0_layouts.openpi_names(theirs).items():
        if "gemma_expert" in name and "norm" in name:
            stem = name.removesuffix("weight") + "dense."
            found |= {f"{stem}weight": torch.empty(3 * width, width), f"{stem}bias": torch.empty(3 * width)}
        elif name.startswith("action_time_mlp"):
            found[name.removeprefix("action_")] = torch.empty(width, width) if name.endswith("weight") else torch.empty(width)
        elif not name.startswith("state_proj"):
            found[name] = tensor
    made = layouts.randomise({name: t for name, t in found.items() if "dense" in name or name.startswith("time_mlp")}, 3)
    return {**found, **made}


def pi05_velocity(tensors, cache, x_BTA, tau: float, prefix_valid):
    """`pi0_pytorch.py` and `gemma.py` of openpi, written out: adaptive RMSNorms, an expert on the prefix's keys and values."""
    width, heads, head, prefix = (
        EXPERT["hidden_size"],
        EXPERT["num_attention_heads"],
        EXPERT["head_dim"],
        "paligemma_with_expert.gemma_expert.model.",
    )
    period = 4e-3 * (4.0 / 4e-3) ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angle = tau * 2 * torch.pi / period
    time = torch.cat([angle.sin(), angle.cos()]).float()
    for end in ("in", "out"):
        time = F.silu(F.linear(time, tensors[f"time_mlp_{end}.weight"], tensors[f"time_mlp_{end}.bias"]))

    def norm(x, name):
        scale, shift, gate = F.linear(time, tensors[f"{name}.dense.weight"], tensors[f"{name}.dense.bias"]).chunk(3)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + scale) + shift, gate

    def rotate(x, position):
        frequency = 10000.0 ** (-torch.arange(0, head, 2) / head)
        cos, sin = ((position[:, None, :, None] * frequency).cos(), (position[:, None, :, None] * frequency).sin())
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    x = F.linear(x_BTA, tensors["action_in_proj.weight"], tensors["action_in_proj.bias"])
    position = prefix_valid.sum(1, keepdim=True) + 1 + torch.arange(T)
    keep = torch.cat([prefix_valid, torch.ones(len(x), T, dtype=torch.bool)], dim=1)[:, None, None]
    for index, (key, value) in enumerate(zip(cache.keys, cache.values, strict=True)):
        layer = f"{prefix}layers.{index}."
        h, gate = norm(x, f"{layer}input_layernorm")
        q, k, v = (F.linear(h, tensors[f"{layer}self_attn.{n}_proj.weight"]).unflatten(-1, (-1, head)).transpose(1, 2) for n in "qkv")
        k, v = torch.cat([key, rotate(k, position)], dim=2), torch.cat([value, v], dim=2)
        scores = (rotate(q, position) @ k.expand(-1, heads, -1, -1).transpose(2, 3) / head**0.5).masked_fill(~keep, -torch.inf).softmax(-1)
        seen = (scores @ v.expand(-1, heads, -1, -1)).transpose(1, 2).flatten(2)
        x = x + gate * F.linear(seen, tensors[f"{layer}self_attn.o_proj.weight"])
        h, gate = norm(x, f"{layer}post_attention_layernorm")
        up = F.gelu(F.linear(h, tensors[f"{layer}mlp.gate_proj.weight"]), approximate="tanh") * F.linear(
            h, tensors[f"{layer}mlp.up_proj.weight"]
        )
        x = x + gate * F.linear(up, tensors[f"{layer}mlp.down_proj.weight"])
    return F.linear(norm(x, f"{prefix}norm")[0], tensors["action_out_proj.weight"], tensors["action_out_proj.bias"])


@torch.no_grad()
def test_pi05_acts_as_written_out(theirs, tmp_path):
    tensors = pi05_tensors(theirs)
    pi0_layouts.openpi(tmp_path / "pi05", tensors, WIDTH, STATE)
    import_checkpoint("pi05", Source(tmp_path / "pi05", ROBOT, CAMERAS), tmp_path / "ours")
    policy = Policy.load(tmp_path / "ours")
    observations = [layouts.observation(ROBOT, seed, pi0_layouts.SIDE, text) for seed, text in enumerate(("open_the door", " push\nit"))]
    found = np.stack([chunk.action_TA for chunk in policy.act_batch(observations, range(2))])
    numbers = pi0_layouts.statistics(STATE, 1)
    low, high = np.array(numbers["q01"]), np.array(numbers["q99"])
    ids = []
    for o, text in zip(observations, ("open the door", "push it"), strict=True):
        normal = (o.state[-1] - low) / (high - low + 1e-6) * 2 - 1
        state = " ".join(map(str, np.digitize(normal, np.linspace(-1, 1, 257)[:-1]) - 1))
        ids.append(layouts.ids_of("<bos>") + layouts.ids_of(f"Task: {text}, State: {state};\nAction: "))
    inputs, x = given(policy, observations)
    for row, want in enumerate(ids):
        patches = 2 * (pi0_layouts.SIDE // 8) ** 2
        assert inputs["input_ids"][row, patches:][inputs["attention_mask"][row, patches:].bool()].tolist() == want
    # The prefix of the library's own model (tests/conformance/test_pi0.py compares it), the rest by hand.
    prefix = policy.model.backbone.embed(policy.collate.observations(observations).inputs)
    cache = policy.model.backbone(prefix)
    for step in range(10):
        x = x - 0.1 * pi05_velocity(tensors, cache, x, 1 - step / 10, prefix.valid_BS)
    numbers = pi0_layouts.statistics(WIDTH, 2)
    low, high = np.array(numbers["q01"]), np.array(numbers["q99"])
    want = (x[..., :WIDTH].double().numpy() + 1) / 2 * (high - low + 1e-6) + low
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert np.abs(want[0] - want[1]).max() > 0.02


def test_the_other_model_missing_statistics_and_other_frames_are_refused(theirs, published, tmp_path):
    folder = published[0]
    with pytest.raises(SchemaError, match="is a pi0 .*: vla import pi0"):
        plan_import("pi05", Source(folder, ROBOT, CAMERAS))
    with pytest.raises(UserError, match="images in an order of its own; say it: --cameras third_person,wrist"):
        plan_import("pi0", Source(folder, ROBOT))
    names = pi0_layouts.openpi_names(theirs)
    pi0_layouts.lerobot(tmp_path / "relative", "pi0", names, WIDTH, STATE, relative=True)
    shutil.copy(folder / "tokenizer.json", tmp_path / "relative")
    with pytest.raises(SchemaError, match="'move' is relative to the state; 'arm' has it step"):
        plan_import("pi0", Source(tmp_path / "relative", ROBOT, CAMERAS))
    config = json.loads((tmp_path / "relative" / "policy_preprocessor.json").read_text())
    config["steps"][1]["config"]["action_names"] = [*(f"joint{i}" for i in range(6)), "gripper"]
    (tmp_path / "relative" / "policy_preprocessor.json").write_text(json.dumps(config))
    plan_import("pi0", Source(tmp_path / "relative", layouts.robot(CAMERAS, frame="from_state"), CAMERAS))
    (tmp_path / "relative" / "policy_preprocessor_step_5_normalizer_processor.safetensors").unlink()
    with pytest.raises(StatsMissing, match="it is a base model, made to be fine-tuned"):
        plan_import("pi0", Source(tmp_path / "relative", ROBOT, CAMERAS))
    shutil.copytree(folder, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "assets")
    with pytest.raises(StatsMissing, match="no assets/\\*/norm_stats.json"):
        plan_import("pi0", Source(tmp_path / "bare", ROBOT, CAMERAS))
    (tmp_path / "bare" / "tokenizer.json").unlink()
    shutil.copytree(folder / "assets", tmp_path / "bare" / "assets")
    with pytest.raises(UserError, match="--tokenizer FOLDER_OR_FILE"):
        plan_import("pi0", Source(tmp_path / "bare", ROBOT, CAMERAS))
