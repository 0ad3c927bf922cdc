"""LoRA: names, what learns, and merging that either changes nothing or is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.backbones.families import FAMILIES, quick
from tests.parts import ROBOTS, observation
from vla.backbones.adapters import LoRA, merge
from vla.errors import UserError


def adapted(name: str, **changes):
    from dataclasses import replace

    torch.manual_seed(0)
    backbone = replace(FAMILIES[name], lora=LoRA(rank=2, **changes)).build().eval()
    for key, p in backbone.named_parameters():
        if "lora_B" in key:  # it starts at zero: no change yet
            torch.nn.init.normal_(p, std=0.05)
    return backbone


def states(backbone) -> torch.Tensor:
    tokens = backbone.embed(backbone.collate([observation(ROBOTS[0], np.random.default_rng(0))]))
    return backbone(tokens).x_BSD


@pytest.mark.parametrize("name", quick("prismatic"))
def test_adapters_learn_and_what_they_stand_on_does_not(name):
    backbone = adapted(name)
    states(backbone).square().sum().backward()
    learned = {key for key, p in backbone.named_parameters() if p.grad is not None}
    assert learned == {key for key, p in backbone.named_parameters() if p.requires_grad}
    assert learned == {key for key, _ in backbone.named_parameters() if ".lora_" in key}
    assert {key.split(".")[0] for key in learned} >= {"vision", "language"}
    plain = FAMILIES[name].build()
    assert {key.replace(".base_layer.", ".") for key in backbone.state_dict() if ".lora_" not in key} == set(plain.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("name", quick("prismatic", "qwen3_vl"))
def test_merging_keeps_the_outputs(name):
    backbone = adapted(name)
    before = states(backbone)
    merged = merge(backbone, states)
    assert merged.config.lora is None and set(merged.state_dict()) == set(FAMILIES[name].build().state_dict())
    torch.testing.assert_close(states(merged), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states(backbone), before)  # the given one is as it was
    torch.manual_seed(0)
    assert not torch.allclose(states(FAMILIES[name].build().eval()), before, atol=1e-3)  # the adapters did something


@torch.no_grad()
def test_merging_is_done_in_fp32_whatever_the_precision():
    backbone = adapted("paligemma")
    low = copy.deepcopy(backbone).bfloat16()
    merged = merge(low, states)
    assert merged.dtype == low.dtype == torch.bfloat16
    exact = merge(copy.deepcopy(backbone.bfloat16().float()), states)
    for key, tensor in merged.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[key].bfloat16()), key


@torch.no_grad()
def test_a_merge_that_moves_the_outputs_is_refused():
    backbone = adapted("smolvlm")
    with pytest.raises(UserError, match="merging moved the outputs by .* of their size"):
        merge(backbone, lambda each: states(each) if each is backbone else states(each) + 1)
    with pytest.raises(UserError, match="no LoRA adapters"):
        merge(FAMILIES["smolvlm"].build(), states)


def test_parts_without_adapters_stay_as_they_are():
    backbone = adapted("smolvlm", parts=("language",))
    assert not any("lora_" in key for key, _ in backbone.vision.named_parameters())
    assert all(p.requires_grad for p in backbone.vision.parameters())
    assert not backbone.language.embed_tokens.weight.requires_grad
    with pytest.raises(UserError, match="rank of at least 1"):
        LoRA(rank=0)
