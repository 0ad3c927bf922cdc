"""What every backbone owes: the one rule of attention, cached equal to uncached, and groups that cannot see each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.backbones.families import FAMILIES
from tests.parts import BACKBONES, ROBOTS, observation
from vla.backbones.base import Tokens, by_length, one_of_few, suffix_tokens, visible
from vla.backbones.images import Shown

ALL = {**BACKBONES, **FAMILIES}


@pytest.fixture(params=ALL, ids=str, scope="module")
def made(request):
    torch.manual_seed(0)
    backbone = ALL[request.param].build().eval()
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
    """Changing token j moves the state of token i only if i may see j, through any number of layers; and does where it may."""
    backbone, prefix = made
    x = torch.randn(3, 4, backbone.width)
    both = prefix.cat(suffix_tokens(prefix, x, causal=causal, samples=2))
    base = backbone(both).x_BSD
    sees = visible(both, both)[:, 0]
    reach = sees.float()
    for _ in range(8):
        reach = ((reach @ reach) > 0).float()  # sight travels over layers
    every = range(len(both)) if len(both) < 20 else [*range(0, len(prefix), 5), *range(len(prefix) - 1, len(both))]
    for j in every:
        moved_x = both.x_BSD.clone()
        moved_x[:, j] += 1.0
        moved = (backbone(both.with_x(moved_x)).x_BSD - base).abs().amax(-1)
        blind = reach[:, :, j] == 0
        blind[:, j] = False
        assert not (moved[blind] > 1e-6).any(), (j, (moved * blind).argmax(1))
        assert (moved[sees[:, :, j] & both.valid_BS] > 0).all(), j


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


@torch.no_grad()
@pytest.mark.parametrize("few_sizes", [False, True])
def test_a_view_that_a_row_lacks_is_not_run_and_changes_nothing(made, monkeypatch, few_sizes):
    backbone, _ = made
    rng, ran, of = np.random.default_rng(0), [], Shown.of

    def recorded(*args):
        ran.append(of(*args))
        return ran[-1]

    monkeypatch.setattr(Shown, "of", recorded)
    monkeypatch.setattr("vla.backbones.images.one_of_few", lambda count: count + 1)
    one, two = (replace(ROBOTS[0], cameras=cameras) for cameras in (("third_person",), ("third_person", "wrist")))
    rows = [observation(robot, rng) for robot in (one, two, one, replace(ROBOTS[0], cameras=("wrist",)))]
    backbone.few_sizes = few_sizes
    together = backbone.embed(backbone.collate(rows))
    assert 5 <= len(ran[0].inputs["image_BVFHW3"]) <= 5 + few_sizes and len(ran[0].at_N) == 5
    for number, row in enumerate(rows):
        alone = backbone.embed(backbone.collate([row]))
        assert ran[-1].at_N is None  # nothing is missing
        torch.testing.assert_close(
            together.x_BSD[number][together.valid_BS[number]], alone.x_BSD[0][alone.valid_BS[0]], atol=1e-5, rtol=1e-5
        )
    backbone.few_sizes = False


def test_rows_of_much_different_lengths_are_told_apart_where_it_spares_enough():
    def groups(lengths, **least):
        valid_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return [(rows.tolist(), length) for rows, length in by_length(valid_BS, **least)]

    assert groups([260, 770, 258, 600, 770]) == [([1, 3, 4], 770), ([0, 2], 260)]
    assert groups([770, 700, 650]) == [([0, 1, 2], 770)]  # nothing shorter than three quarters
    assert groups([6, 4, 4, 6]) == [([0, 1, 2, 3], 6)]  # a few tokens
    assert groups([6, 4, 4, 6], least_saved=4) == [([0, 3], 6), ([1, 2], 4)]
    assert groups([6], least_saved=1) == [([0], 6)]


def test_of_few_sizes_none_is_an_eighth_too_large():
    sizes = [one_of_few(length) for length in range(1, 2049)]
    assert all(length <= size < 1.125 * length + 1e-9 for length, size in enumerate(sizes, start=1))
    assert len(set(sizes[512:1024])) == 8 and sizes == sorted(sizes)


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


@torch.no_grad()
def test_the_prefix_never_sees_the_suffix(made):
    backbone, prefix = made
    alone = backbone(prefix)
    joint = backbone(prefix.cat(suffix_tokens(prefix, torch.randn(3, 4, backbone.width), causal=False)))
    torch.testing.assert_close(joint.x_BSD[:, : len(prefix)][prefix.valid_BS], alone.x_BSD[prefix.valid_BS], atol=1e-5, rtol=1e-5)
    for got, want in zip(joint.keys, alone.keys, strict=True):
        keep = prefix.valid_BS[:, None, :, None].expand_as(want)
        torch.testing.assert_close(got[:, :, : len(prefix)][keep], want[keep], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_repeated_cache_serves_rows_of_their_own(made):
    """K samples as rows instead of groups: the same states."""
    backbone, prefix = made
    x = torch.randn(3, 4, backbone.width)
    grouped = backbone(suffix_tokens(prefix, x, causal=False, samples=2), cache=backbone(prefix)).x_BSD
    twice = prefix.repeat(2)
    rows = backbone(suffix_tokens(twice, x.view(6, 2, -1), causal=False), cache=backbone(prefix).repeat(2)).x_BSD
    torch.testing.assert_close(rows.reshape(3, 4, -1), grouped, atol=1e-5, rtol=1e-5)


def test_a_detached_cache_stops_gradients(made):
    """Knowledge insulation: the suffix learns, what made the prefix does not; with the cache attached, it does."""
    backbone, _ = made
    inputs = backbone.collate([observation(ROBOTS[0], np.random.default_rng(0))])
    for insulated in (True, False):
        prefix = backbone.embed(inputs)
        prefix.x_BSD.retain_grad()
        hidden = backbone(prefix).detach() if insulated else backbone(prefix)
        x = torch.randn(1, 2, backbone.width, requires_grad=True)
        backbone(suffix_tokens(prefix, x, causal=False), cache=hidden).x_BSD.square().sum().backward()
        assert x.grad.any()
        assert (prefix.x_BSD.grad is None) == insulated
        backbone.zero_grad()


def test_collate_is_uint8_and_one_row_an_observation(made):
    backbone, _ = made
    rng = np.random.default_rng(1)
    inputs = backbone.collate([observation(ROBOTS[0], rng, side=24), observation(ROBOTS[0], rng, side=24)])
    assert inputs["image_BVFHW3"].dtype == torch.uint8
    assert {len(tensor) for tensor in inputs.values()} == {2}


def test_the_tiny_one_resizes_when_it_collates():
    inputs = BACKBONES["tiny"].build().collate([observation(ROBOTS[0], np.random.default_rng(1), side=24)])
    assert inputs["image_BVFHW3"].shape[3:5] == (16, 16)


def test_extras_follow_their_tokens(made):
    """Cut and joined with the tokens, zero where the other side has none."""
    _, prefix = made
    suffix = suffix_tokens(prefix, torch.zeros(3, 4, prefix.x_BSD.shape[-1]), causal=False)
    both = prefix.cat(suffix)
    back = both.slice(0, len(prefix))
    assert set(both.extras) == set(prefix.extras)
    for name, tensor in prefix.extras.items():
        assert torch.equal(back.extras[name], tensor) and not both.slice(len(prefix), len(both)).extras[name].any()
    assert torch.equal(back.x_BSD, prefix.x_BSD)
