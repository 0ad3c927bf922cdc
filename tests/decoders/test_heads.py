"""Heads: what a chunk's numbers are read by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vla.decoders.heads import Linear, ResNet
from vla.decoders.parallel import Parallel
from vla.errors import UserError
from vla.roster import Roster, carry_over
from vla.types import ActionSpec

B, T, A, D = 3, 4, 5, 6


def spec(*widths: int) -> ActionSpec:
    mask_BTA = torch.stack([(torch.arange(A) < width).expand(T, A) for width in widths])
    return ActionSpec(torch.zeros(len(widths), dtype=torch.int64), mask_BTA)


@pytest.mark.parametrize("tokens", [1, A])
def test_the_resnet_is_norm_linear_two_residual_blocks_norm_linear(tokens):
    """By stock modules, with the shapes of OFT's head: the states of a step's tokens side by side, one MLP for all steps."""
    torch.manual_seed(0)
    head = ResNet(blocks=2, hidden=16).build(D, Roster(("arm",), T, A, 1), tokens)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    stock = nn.ModuleList([nn.LayerNorm(tokens * D), nn.Linear(tokens * D, 16), nn.LayerNorm(16), nn.Linear(16, A)])
    with torch.no_grad():
        stock[0].weight.copy_(head.norm_weight_ND.flatten()), stock[0].bias.copy_(head.norm_bias_ND.flatten())
        stock[1].weight.copy_(head.weight_NDH.flatten(0, 1).T), stock[1].bias.copy_(head.bias_H)
        stock[2].load_state_dict(head.norm.state_dict())
        stock[3].weight.copy_(head.out.weight_EIO[0].T), stock[3].bias.copy_(head.out.bias_EO[0])
    x = torch.randn(B, T, tokens, D)
    want = stock[1](stock[0](x.flatten(2))).relu()
    for block in head.blocks:
        want = want + block.linear(block.norm(want)).relu()
    want = stock[3](stock[2](want))
    torch.testing.assert_close(head(x if tokens > 1 else x[:, :, 0], spec(A, A, A)), want, atol=1e-5, rtol=1e-5)


def test_a_narrow_robot_is_read_the_same_beside_a_wide_one():
    torch.manual_seed(0)
    narrow, wide = Roster(("arm",), T, 2, 1), Roster(("other", "arm"), T, A, 1)
    config = ResNet(hidden=16)
    alone, beside = config.build(D, narrow, 2), config.build(D, wide, A)
    for parameter in alone.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert carry_over(beside, wide, alone.state_dict(), narrow)["fresh"] == ["other"]
    x = torch.randn(1, T, A, D)
    asked = ActionSpec(torch.ones(1, dtype=torch.int64), spec(2).mask_BTA)
    found = beside(x, asked)[..., :2]
    torch.testing.assert_close(found, alone(x[:, :, :2], ActionSpec(torch.zeros(1, dtype=torch.int64), spec(2).mask_BTA[..., :2])))
    assert torch.equal(found, beside(torch.where(torch.arange(A)[:, None] < 2, x, 1e3), asked)[..., :2])


def test_what_a_linear_head_cannot_read_is_refused():
    with pytest.raises(UserError, match="choose head=ResNet"):
        Linear().build(D, Roster(("arm",), T, A, 1), A)
    with pytest.raises(UserError, match="steps_per_token=1"):
        Parallel(tokens="numbers", steps_per_token=2).build(D, Roster(("arm",), T, A, 1))
    with pytest.raises(UserError, match="steps"):
        Parallel(tokens="words").build(D, Roster(("arm",), T, A, 1))
