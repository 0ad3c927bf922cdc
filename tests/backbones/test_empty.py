"""Without weights: published sizes, buffers that are in no checkpoint, and loading over several devices."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.backbones.families import FAMILIES, quick
from tests.parts import ROBOTS, observation
from vla.backbones.empty import build_empty, count_parameters, spread
from vla.backbones.prismatic import TOWERS
from vla.backbones.published import published
from vla.backbones.qwen_vl import Qwen25VL
from vla.errors import UserError
from vla.torchvision_cpu import prepare_torchvision

QWEN_7B = {"model_type": "qwen2_5_vl_text", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
QWEN_7B |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
QWEN_TOWER = {"model_type": "qwen2_5_vl_vision", "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
QWEN_TOWER |= {"out_hidden_size": 3584}
PUBLISHED = {
    # google/paligemma-3b-pt-224: 2,923,466,480 parameters.
    "paligemma": (published("google/paligemma-3b-pt-224"), 2.923),
    # Qwen/Qwen2.5-VL-7B-Instruct: config.json; 8.292B with its vocabulary head.
    "qwen": (Qwen25VL({"model_type": "qwen2_5_vl", "text_config": QWEN_7B, "vision_config": QWEN_TOWER}, head=True), 8.292),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    config, billions = PUBLISHED[name]
    backbone = build_empty(config)
    assert all(p.is_meta for p in backbone.parameters())
    assert count_parameters(backbone) / 1e9 == pytest.approx(billions, abs=5e-4)


@pytest.mark.slow
def test_openvlas_size():
    """Llama-2-7B with 32,064 words 6.739B; both towers, whole, and the projector 0.802B, of which the last blocks are cut away here."""
    prepare_torchvision()
    import timm

    towers = TOWERS["dinosiglip-vit-so-224px"]
    backbone = build_empty(published("openvla/openvla-7b", head=True))
    assert (count_parameters(backbone.language) + count_parameters(backbone.head)) / 1e9 == pytest.approx(6.739, abs=5e-4)
    with torch.device("meta"):
        whole = [timm.create_model(name, num_classes=0, img_size=224) for name in towers]
    projector = count_parameters(backbone.projector)
    assert (sum(map(count_parameters, whole)) + projector) / 1e9 == pytest.approx(0.802, abs=5e-4)
    cut = sum(count_parameters(each.blocks[-1]) + count_parameters(each.norm) for each in whole) + count_parameters(whole[1].attn_pool)
    assert count_parameters(backbone.vision) == sum(map(count_parameters, whole)) - cut
    assert backbone.width == 4096 and backbone.patches(480, 640) == 256


def states(backbone) -> torch.Tensor:
    tokens = backbone.embed(backbone.collate([observation(ROBOTS[0], np.random.default_rng(0))]))
    return backbone(tokens).x_BSD


@torch.no_grad()
@pytest.mark.parametrize("name", quick("paligemma", "qwen2_5_vl"))
def test_buffers_survive_being_built_without_weights(name):
    """Empty, with real buffers: no weights bring them."""
    config = FAMILIES[name]
    torch.manual_seed(0)
    want = config.build().eval()
    weights = want.state_dict()
    empty = build_empty(config).eval()
    empty.load_state_dict(weights, assign=True)
    torch.testing.assert_close(states(empty), states(want), atol=0, rtol=0)


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("name", quick("qwen3_vl"))
def test_spread_over_memory_and_disk(name, tmp_path):
    """What accelerate does over GPUs, with memory and disk: layers come from disk when they run; same states, also after a cache."""
    config = FAMILIES[name]
    torch.manual_seed(0)
    want = config.build().eval()
    save_file({key: tensor.contiguous() for key, tensor in want.state_dict().items()}, tmp_path / "model.safetensors")
    devices = {part: "cpu" for part in ("vision", "projector", "language") if getattr(want, part) is not None}
    del devices["language"]
    layers = {f"language.layers.{i}": "cpu" if i == 0 else "disk" for i in range(len(want.language.layers))}
    devices |= {"language.embed_tokens": "cpu", "language.norm": "cpu", "language.rotary_emb": "cpu", **layers}
    got = spread(build_empty(config).eval(), tmp_path / "model.safetensors", devices, offload_folder=str(tmp_path / "rest"))
    assert got.language.layers[2].self_attn.q_proj.weight.is_meta
    torch.testing.assert_close(states(got), states(want), atol=1e-6, rtol=1e-6)
    with pytest.raises(UserError, match="offload_folder"):
        spread(build_empty(config), tmp_path / "model.safetensors", devices)
    moved = spread(copy.deepcopy(want), None, devices, offload_folder=str(tmp_path / "moved"))
    assert moved.language.layers[2].self_attn.q_proj.weight.is_meta
    torch.testing.assert_close(states(moved), states(want), atol=1e-6, rtol=1e-6)
    limits = {"max_memory": {"cpu": 4 * count_parameters(want) // 2}, "offload_folder": str(tmp_path / "half")}
    half = spread(build_empty(config).eval(), tmp_path / "model.safetensors", **limits)
    assert any(p.is_meta for p in half.parameters()) and not all(p.is_meta for p in half.parameters())
    torch.testing.assert_close(states(half), states(want), atol=1e-6, rtol=1e-6)
