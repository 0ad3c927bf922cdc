"""What every backbone owes: the one rule of attention, cached equal to uncached, and groups that cannot see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.parts import BACKBONES, ROBOTS, observation
from vla.backbones.base import Tokens, suffix_tokens, visible


@pytest.fixture(params=BACKBONES, ids=str)
def made(request):
    torch.manual_seed(0)
    backbone = BACKBONES[request.param].build().eval()
    rng = np.random.default_rng(0)
    rows = [observation(ROBOTS[0], rng, text=text) for text in ("open", "close the big door now", "push")]
    with torch.no_grad():
        return backbone, backbone.embed(backbone.collate(rows))


@torch.no_grad()
def test_cached_equals_uncached(made):
    backbone, prefix = made
    suffix = suffix_tokens(prefix, torch.randn(3, 6, backbone.width), causal=True)
    joint = backbone(prefix.cat(suffix))
    cached = backbone(suffix, cache=backbone(prefix))
    torch.testing.assert_close(joint.last(6), cached.x_BSD, atol=1e-5, rtol=1e-5)
    hidden = backbone(prefix)
    for i in range(6):  # one token at a time, as autoregression does
        hidden = backbone(suffix.slice(i, i + 1), cache=hidden)
        torch.testing.assert_close(joint.x_BSD[:, len(prefix) + i], hidden.x_BSD[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_the_rule_of_attention_token_by_token(made, causal):
    """Changing token j moves the state of token i only if i may see j, through any number of layers."""
    backbone, prefix = made
    x = torch.randn(3, 4, backbone.width)
    both = prefix.cat(suffix_tokens(prefix, x, causal=causal, samples=2))
    base = backbone(both).x_BSD
    reach = visible(both, both)[:, 0].float()
    for _ in range(8):
        reach = ((reach @ reach) > 0).float()  # sight travels over layers
    for j in range(len(both)):
        moved_x = both.x_BSD.clone()
        moved_x[:, j] += 1.0
        moved = (backbone(both.with_x(moved_x)).x_BSD - base).abs().amax(-1) > 1e-6
        for row in range(3):
            for i in range(len(both)):
                if i != j:
                    assert not (moved[row, i] and not reach[row, i, j]), (row, i, j)


@torch.no_grad()
def test_samples_are_mutually_invisible_and_equal(made):
    backbone, prefix = made
    x = torch.randn(3, 4, backbone.width)
    one = backbone(prefix.cat(suffix_tokens(prefix, x, causal=False))).last(4)
    two = backbone(prefix.cat(suffix_tokens(prefix, torch.cat([torch.randn_like(x), x], 1), causal=False, samples=2))).last(4)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing(made):
    backbone, prefix = made
    alone = backbone.embed(backbone.collate([observation(ROBOTS[0], np.random.default_rng(0), text="open")]))
    states = backbone(alone).x_BSD[alone.valid_BS]
    padded = backbone(prefix).x_BSD[:1][prefix.valid_BS[:1]]
    torch.testing.assert_close(states, padded, atol=1e-5, rtol=1e-5)


def test_hand_worked_mask():
    row = lambda *values: torch.tensor([values])  # noqa: E731
    tokens = Tokens(
        torch.zeros(1, 5, 1),
        valid_BS=torch.tensor([[True, False, True, True, True]]),
        block_BS=row(0, 0, 1, 2, 1),
        group_BS=row(0, 0, 1, 1, 2),
        position_BS=row(0, 1, 2, 3, 2),
    )
    want = torch.tensor([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 0, 1]]).bool()
    assert torch.equal(visible(tokens, tokens)[0, 0], want)


def test_collate_is_uint8_and_keeps_the_words(made):
    backbone, _ = made
    inputs = backbone.collate([observation(ROBOTS[0], np.random.default_rng(1), side=24)])
    assert inputs["image_BVFHW3"].dtype == torch.uint8 and inputs["image_BVFHW3"].shape[3:5] == (16, 16)
