"""Which calls go to flash-attn. Its kernels need a GPU, so a stand-in with its arguments takes their place here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.backbones.families import FAMILIES
from tests.backbones.test_families import rows
from vla.backbones.base import suffix_tokens
from vla.backbones.flash import dispatch
from vla.torchvision_cpu import prepare_torchvision

STAND_IN = "flash_stand_in"


@pytest.fixture
def calls(monkeypatch):
    """Registers the stand-in as the library does flash; returns the list of (padding, causal) it was called with."""
    prepare_torchvision()
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found = []

    def flash(module, query, key, value, attention_mask, scaling=None, is_causal=None, **kwargs):
        found.append((attention_mask is not None, is_causal))
        seen = torch.ones(query.shape[0], 1, query.shape[2], key.shape[2], dtype=torch.bool)
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, None].bool()
        if is_causal:
            seen = seen & seen.new_ones(seen.shape[-2:]).tril(key.shape[2] - query.shape[2])
        groups = module.num_key_value_groups
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register(STAND_IN, flash)
    ALL_MASK_ATTENTION_FUNCTIONS.register(STAND_IN, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    dispatch(STAND_IN)
    yield found
    del type(ALL_ATTENTION_FUNCTIONS)._global_mapping[STAND_IN], type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping[STAND_IN]


@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl", "smolvlm"])
def test_plain_masks_go_to_flash_and_blocks_do_not(calls, monkeypatch, name):
    """A prefix and a suffix that sees all of it by flash; groups of samples by sdpa. States and gradients as without, also when layers are
    computed again in the backward pass."""
    torch.manual_seed(0)
    backbone = FAMILIES[name].build()
    backbone.set_gradient_checkpointing(True)
    inputs = backbone.collate(rows())
    depth, found = backbone.depth, []
    for flash in (False, True):
        if flash:
            backbone.language.config._attn_implementation_internal = backbone._flash = STAND_IN
            monkeypatch.setattr(backbone, "_flash_runs", lambda x: True)
        backbone.zero_grad()
        prefix = backbone.embed(inputs)
        x = torch.randn(3, 4, backbone.width, generator=torch.Generator().manual_seed(1))
        cache = backbone(prefix)
        asked = len(calls)
        single = backbone(suffix_tokens(prefix, x, causal=False), cache=cache).x_BSD
        assert len(calls) - asked == (depth if flash else 0)
        asked = len(calls)
        grouped = backbone(suffix_tokens(prefix, x, causal=False, samples=2), cache=cache).x_BSD
        assert len(calls) == asked
        (single.square().sum() + grouped.square().sum() + cache.x_BSD[prefix.valid_BS].square().sum()).backward()
        grads = {key: p.grad.clone() for key, p in backbone.named_parameters()}
        found.append((cache.x_BSD[prefix.valid_BS], single, grouped, grads))
    assert calls[0] == (True, backbone.causal) and calls[depth] == (True, False)
    for want, got in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for key, grad in found[0][3].items():
        torch.testing.assert_close(found[1][3][key], grad, atol=1e-4, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
