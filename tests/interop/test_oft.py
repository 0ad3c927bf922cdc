"""OpenVLA-OFT in its published layout (merged folder and parts in `.pt`) -> the same chunk as its code written out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.interop import layouts
from tests.interop.test_openvla import features_of, llama_of
from vla.errors import SchemaError, UnknownName, UserError
from vla.interop.formats import import_checkpoint, plan_import
from vla.interop.source import Source
from vla.policy import Policy

CAMERAS, STEPS, A, P, HIDDEN = ("third_person", "wrist"), 8, 7, 8, 24
pytestmark = pytest.mark.timeout(600)  # processes of their own import torch
ROBOT, D = layouts.robot(CAMERAS), layouts.WIDTH
HEAD_SHAPES = {"layer_norm1": (A * D,), "fc1": (HIDDEN, A * D), "layer_norm2": (HIDDEN,), "fc2": (A, HIDDEN)}
HEAD_SHAPES |= {f"mlp_resnet_blocks.{i}.ffn.{j}": (HIDDEN,) if j == 0 else (HIDDEN, HIDDEN) for i in range(2) for j in (0, 1)}
PROPRIO = {"min": [-1.0] * P, "max": [1.0] * P, "q01": [-0.6] * P, "q99": [0.4] * P}


def weights(shapes, seed: int, prefix: str = "") -> dict[str, torch.Tensor]:
    made = {
        f"{prefix}{name}.{kind}": torch.empty(shape if kind == "weight" else shape[:1])
        for name, shape in shapes.items()
        for kind in ("weight", "bias")
    }
    return layouts.randomise(made, seed, std=0.2)


def published(folder, film: bool) -> dict[str, torch.Tensor]:
    tensors = layouts.openvla(folder)
    (folder / "dataset_statistics.json").write_text(json.dumps({"libero_spatial": {**layouts.STATISTICS, "proprio": PROPRIO}}))
    head, state = weights(HEAD_SHAPES, 1, "model."), weights({"fc1": (D, P), "fc2": (D, D)}, 2)
    torch.save({f"module.{name}": t for name, t in head.items()}, folder / "action_head--150000_checkpoint.pt")
    torch.save(state, folder / "proprio_projector--150000_checkpoint.pt")
    if film:
        towers = {}
        for name, tensor in tensors.items():
            if name.startswith("vision_backbone."):
                stem, block, rest = name.partition(".blocks.")
                index, _, inner = rest.partition(".")
                towers[f"{stem}.blocks.{index}.block.{inner}" if block else name] = tensor
        for tower, (_, _, size) in zip(("featurizer", "fused_featurizer"), layouts.TOWERS, strict=True):
            maps = {
                f"vision_backbone.{tower}.blocks.{i}.{n}": (size["embed_dim"], D) for i in range(size["depth"]) for n in ("scale", "shift")
            }
            towers |= weights(maps, 3)
        torch.save(towers, folder / "vision_backbone--150000_checkpoint.pt")
        tensors = {**{k: t for k, t in tensors.items() if not k.startswith("vision_backbone.")}, **towers}
    return {**tensors, **{f"head.{k}": t for k, t in head.items()}, **{f"state.{k}": t for k, t in state.items()}}


def theirs(tensors, seen, text: str, film: bool) -> np.ndarray:
    """`predict_action`: BOS, patches of both images, the state, the prompt, zeros, the end; all see all; read one token ahead."""
    ids = layouts.ids_of("<s>") + layouts.ids_of(f"In: What action should the robot take to {text.lower()}?\nOut:") + [layouts.EMPTY_PIECE]
    words = F.embedding(torch.tensor([*ids, 2]), tensors["language_model.model.embed_tokens.weight"])
    patches = [features_of(tensors, seen.images[c][0], words.mean(0) if film else None)[0] for c in CAMERAS]
    low, high = np.array(PROPRIO["q01"]), np.array(PROPRIO["q99"])
    normal = np.clip(2 * (seen.state[-1] - low) / (high - low + 1e-8) - 1, -1, 1)
    lin = lambda x, name: F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])  # noqa: E731
    state = lin(F.gelu(lin(torch.tensor(normal, dtype=torch.float32)[None], "state.fc1")), "state.fc2")
    sequence = torch.cat([words[:1], *patches, state, words[1:-1], torch.zeros(STEPS * A, D), words[-1:]])[None]
    S = sequence.shape[1]
    hidden = llama_of(tensors).model(inputs_embeds=sequence, attention_mask=torch.zeros(1, 1, S, S)).last_hidden_state[0]
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])  # noqa: E731
    x = hidden[S - STEPS * A - 2 : S - 2].reshape(STEPS, -1)
    x = F.relu(lin(norm(x, "head.model.layer_norm1"), "head.model.fc1"))
    for i in range(2):
        x = x + F.relu(lin(norm(x, f"head.model.mlp_resnet_blocks.{i}.ffn.0"), f"head.model.mlp_resnet_blocks.{i}.ffn.1"))
    action = lin(norm(x, "head.model.layer_norm2"), "head.model.fc2").double().numpy()
    low, high, mask = (np.array(layouts.STATISTICS["action"][name]) for name in ("q01", "q99", "mask"))
    return np.where(mask, 0.5 * (action + 1) * (high - low + 1e-8) + low, action)


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("film", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_acts_as_theirs_does(film, tmp_path):
    folder = tmp_path / "oft"
    tensors = published(folder, film)
    report = import_checkpoint("openvla_oft", Source(folder, ROBOT, CAMERAS, platform="libero"), tmp_path / "ours")
    policy = Policy.load(tmp_path / "ours")
    for seed, text in enumerate(("open the door", "Push IT")):
        seen = layouts.observation(ROBOT, seed, text=text)
        found = policy.act(seen).action_TA
        want = theirs(tensors, seen, text, film)
        np.testing.assert_allclose(found, want.clip(-9, 9), atol=2e-5)
        assert found.shape == (STEPS, A) and np.abs(want[0] - want[-1]).max() > 1e-3
    plain = sum(name.startswith("vision_backbone.") for name in Source(folder, ROBOT).stored) if film else 0
    assert report.taken + sum(report.left.values()) == len(tensors) + plain


@pytest.mark.slow
def test_what_no_file_says_is_asked_for(tmp_path):
    folder = tmp_path / "oft"
    layouts.openvla(folder)
    with pytest.raises(UnknownName, match="unknown platform ''. Choices: aloha, bridge, libero. .*--platform NAME"):
        plan_import("openvla_oft", Source(folder, ROBOT, CAMERAS))
    with pytest.raises(UserError, match="no action_head--.*_checkpoint.pt of an L1 head"):
        plan_import("openvla_oft", Source(folder, ROBOT, CAMERAS, key="fractal", platform="libero"))
    for step in (1, 2):
        torch.save({"a": torch.zeros(1)}, folder / f"action_head--{step}_checkpoint.pt")
    with pytest.raises(UserError, match="action_head--1_checkpoint.pt and action_head--2_checkpoint.pt; leave the one"):
        plan_import("openvla_oft", Source(folder, ROBOT, CAMERAS, key="fractal", platform="libero", scratch=tmp_path))
    (folder / "action_head--2_checkpoint.pt").unlink()
    torch.save(weights(HEAD_SHAPES, 1, "model."), folder / "action_head--1_checkpoint.pt")
    torch.save(weights({"fc1": (D, 5), "fc2": (D, D)}, 2), folder / "proprio_projector--1_checkpoint.pt")
    (folder / "dataset_statistics.json").write_text(
        json.dumps({"x": {**layouts.STATISTICS, "proprio": {k: v[:5] for k, v in PROPRIO.items()}}})
    )
    with pytest.raises(SchemaError, match="reads a state of 5 numbers; 'arm' has 8"):
        plan_import("openvla_oft", Source(folder, ROBOT, CAMERAS, platform="libero", scratch=tmp_path))
