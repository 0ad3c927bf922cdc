"""Language models in 4 bits, by bitsandbytes' own CPU code."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.backbones.families import FAMILIES
from tests.parts import ROBOTS, contents, observation
from vla.backbones.adapters import LoRA, merge
from vla.backbones.four_bit import FourBitLinear
from vla.checkpoint import load_model, save_checkpoint
from vla.decoders.parallel import Parallel
from vla.errors import UserError

NAMES = ("paligemma", "qwen2_5_vl")  # without and with biases


def states(backbone) -> torch.Tensor:
    tokens = backbone.embed(backbone.collate([observation(ROBOTS[0], np.random.default_rng(0))]))
    return backbone(tokens).x_BSD


def small(name: str):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    backbone = replace(FAMILIES[name], four_bit=True, lora=LoRA(rank=2, parts=("language",)), freeze=("vision", "projector")).build()
    for key, p in backbone.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(p, std=0.05)
    return backbone.eval()


@pytest.mark.parametrize("name", NAMES)
def test_adapters_learn_beside_four_bits(name):
    backbone = small(name)
    maps = [module for module in backbone.language.modules() if isinstance(module, FourBitLinear)]
    assert len(maps) == 7 * backbone.depth
    first = maps[0]
    assert first.packed.numel() * 2 == first.in_features * first.out_features and first.packed.dtype == torch.uint8
    states(backbone).square().sum().backward()
    learned = {key for key, p in backbone.named_parameters() if p.grad is not None}
    assert learned == {key for key, p in backbone.named_parameters() if p.requires_grad}
    assert learned and all(".lora_" in key and backbone.get_parameter(key).grad.isfinite().all() for key in learned)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_the_same_either_way(name, tmp_path):
    """Held in 4 bits, or in floats: the same weights, the same states; and it loads without the adapters' being merged."""
    made = contents(Parallel(), backbone=small(name).config)
    model = made.build().eval()
    model.backbone.load_state_dict(small(name).state_dict())
    want = states(model.backbone)
    save_checkpoint(tmp_path / "ours", made, model.state_dict())
    _, again = load_model(tmp_path / "ours")
    torch.testing.assert_close(states(again.backbone), want, atol=1e-5, rtol=1e-5)
    plain = replace(made.model.backbone, four_bit=False).build().eval()
    plain.load_state_dict(model.backbone.state_dict())
    torch.testing.assert_close(states(plain), want, atol=1e-5, rtol=1e-5)
    merged = merge(model.backbone, states)
    assert not merged.config.four_bit
    torch.testing.assert_close(states(merged), want, atol=1e-5, rtol=1e-5)


def test_a_resumed_run_has_the_same_bits():
    """What an engine saves and restores: the same states from another random start, and after an update."""
    from tests.train.toy import toy_run
    from vla.train.engine import make_engine
    from vla.train.ranks import Ranks

    made = contents(Parallel(), backbone=small("paligemma").config)
    run = toy_run(model=made.model, ema_decay=None)
    torch.manual_seed(1)
    first = make_engine(run, made.build(), Ranks.join())
    torch.manual_seed(2)
    second = make_engine(run, made.build(), Ranks.join())
    with torch.no_grad():
        want = states(first.module.backbone)
        assert not torch.allclose(states(second.module.backbone), want)
        second.load_state({name: tensor.clone() for name, tensor in first.state().items()}, updates=0)
        torch.testing.assert_close(states(second.module.backbone), want, atol=0, rtol=0)


@torch.no_grad()
def test_four_bits_lose_little_and_move_with_the_precision():
    backbone = small("paligemma")
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 128)
    held = FourBitLinear(linear)
    error = (held.weight_in(torch.float32) - linear.weight).square().mean().sqrt() / linear.weight.std()
    assert 0.02 < error < 0.15  # NF4 on a uniform weight; QLoRA's on a normal one is 0.1
    x = torch.randn(3, 256)
    torch.testing.assert_close(held(x), x @ held.weight_in(torch.float32).T + linear.bias, atol=1e-4, rtol=1e-4)
    before = [buffer.clone() for buffer in backbone.language.layers.buffers()]
    low = backbone.bfloat16()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(before, low.language.layers.buffers(), strict=True))
    assert states(low).dtype == torch.bfloat16


def test_without_the_package_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"need bitsandbytes: pip install 'vla\[quantize\]', or set four_bit=False"):
        replace(FAMILIES["paligemma"], four_bit=True).build()
