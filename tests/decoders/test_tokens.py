"""Decoding ahead: the codes that greedy decoding one by one gives, in fewer passes where later codes hardly hang on earlier ones."""

from __future__ import annotations

import pytest
import torch

from tests.parts import SOURCES, TINY, contents, samples
from vla.backbones.base import suffix_tokens
from vla.codecs.bins import Bins
from vla.decoders.tokens import AutoregressiveTokens
from vla.noise import Noise
from vla.types import Prior


class Seen:
    """A backbone that counts its passes and how many tokens each had."""

    def __init__(self, backbone):
        self.backbone, self.lengths = backbone, []

    def __call__(self, tokens, cache=None):
        self.lengths.append(len(tokens))
        return self.backbone(tokens, cache=cache)


def make(config):
    holds = contents(config, TINY)
    torch.manual_seed(0)
    model = holds.build().eval()
    batch = holds.collate(model).samples(samples(3, unlabelled=False), SOURCES)
    return model, batch, model.prefix(batch)


def codes_of(decoder, monkeypatch, sample):
    """What `sample` decodes."""
    kept = []
    monkeypatch.setattr(decoder.codes, "decode", lambda code_BN, like: kept.append(code_BN) or like.mask_BTA.float())
    sample()
    return kept[0]


@torch.inference_mode()
@pytest.mark.parametrize("config", [AutoregressiveTokens(), AutoregressiveTokens(Bins(every=2), temperature=1.0, offset=True)])
@pytest.mark.parametrize("continued", [False, True])
def test_each_code_is_the_one_that_those_before_it_ask_for(config, continued, monkeypatch):
    model, batch, prefix = make(config)
    decoder, noise, like = model.decoder, Noise(batch.position_B), batch.spec
    code_BN, sure_BN = None, torch.zeros(3, decoder.codes.length, dtype=torch.bool)
    if continued:
        weight_BT = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(3, -1)
        prior = Prior(batch.target.action_BTA, weight_BT, torch.zeros(3))
        given_BN, sure_BN = decoder.codes.given(prior, like)
        code_BN = codes_of(decoder, monkeypatch, lambda: decoder.resume(model.backbone, prefix, like, noise, prior))
        assert sure_BN.any() and torch.equal(code_BN[sure_BN], given_BN[sure_BN])
    else:
        code_BN = codes_of(decoder, monkeypatch, lambda: decoder.sample(model.backbone, prefix, like, noise))
    exists_BN = decoder.codes.codec.exists(code_BN, like)
    suffix = decoder._places(prefix, decoder.codes.embed(decoder._shown(code_BN, exists_BN)), exists_BN)
    logits_BNC = decoder.codes.logits(model.backbone(prefix.cat(suffix)).last(len(suffix)))
    draws_BNC = noise.uniform("tokens", *logits_BNC.shape[1:]) if config.temperature else None
    free_BN = exists_BN & ~sure_BN
    assert torch.equal(decoder._drawn(logits_BNC, draws_BNC, slice(None)).argmax(-1)[free_BN], code_BN[free_BN])
    assert len(code_BN.unique()) > 3


@torch.inference_mode()
def test_codes_that_hang_on_nothing_before_them_take_three_passes(monkeypatch):
    model, batch, prefix = make(AutoregressiveTokens())
    decoder, seen, N = model.decoder, Seen(model.backbone), model.decoder.codes.length
    decoder.sample(seen, prefix, batch.spec, Noise(batch.position_B))
    assert len(seen.lengths) <= 1 + N and sum(seen.lengths) <= len(prefix) + 4 * N
    decoder.codes.code_in.weight.zero_()
    seen.lengths.clear()
    decoder.sample(seen, prefix, batch.spec, Noise(batch.position_B))
    assert seen.lengths == [len(prefix), N, N - 1]


@torch.inference_mode()
def test_a_cache_without_its_last_tokens_is_that_of_the_others():
    model, _, prefix = make(AutoregressiveTokens())
    suffix = suffix_tokens(prefix, torch.randn(3, 5, TINY.width), causal=True)
    cut, short = model.backbone(prefix.cat(suffix)).without(2), model.backbone(prefix.cat(suffix.slice(0, 3)))
    assert len(cut.tokens) == len(prefix) + 3
    for of in ("keys", "values", "layers"):
        for ours, want in zip(getattr(cut, of), getattr(short, of), strict=True):
            torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5)
    more = suffix.slice(3, 5)
    torch.testing.assert_close(model.backbone(more, cache=cut).x_BSD, model.backbone(more, cache=short).x_BSD, rtol=1e-5, atol=1e-5)
