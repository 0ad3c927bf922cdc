"""Every token decoder on every codec: learns a few chunks, and says what it learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.parts import SOURCES, TINY, contents, robot, samples
from vla.codecs.bins import Bins
from vla.codecs.fast import FAST
from vla.codecs.grid import Grid
from vla.codecs.vq import VQCodes
from vla.decoders.base import total_loss
from vla.decoders.classes import ParallelClasses
from vla.decoders.masked import MaskedDiffusion
from vla.decoders.tokens import AutoregressiveTokens
from vla.errors import UserError
from vla.noise import Noise
from vla.policy import Policy

VQ = VQCodes(scales=(1, 2), vocabulary=8, latent=8, width=32, fit_steps=60, fit_batch=16)
ARM = (robot("arm", 4, 3, 4),)
CASES = {
    "tokens-quantile": (AutoregressiveTokens(codec=Bins(spacing="quantile")), None),
    "tokens-fast": (AutoregressiveTokens(codec=FAST(vocabulary=300)), None),
    "tokens-grid": (AutoregressiveTokens(codec=Grid(rotation=(), gripper=3, translation_bins=(8, 8, 4))), ARM),
    "tokens-vq-offset": (AutoregressiveTokens(codec=VQ, offset=True), None),
    "classes": (ParallelClasses(), None),
    "classes-vq": (ParallelClasses(codec=VQ), None),
    "masked-grid": (MaskedDiffusion(codec=Grid(rotation=(), gripper=3, translation_bins=(8, 8, 4)), evaluations=3), ARM),
    "masked-remask": (MaskedDiffusion(evaluations=4, remask=1.0), None),
}


QUICK = ("tokens-fast",)
THOROUGH = ("tokens-quantile", "tokens-vq-offset", "masked-grid")


def _marks(name):
    return [] if name in QUICK else [pytest.mark.thorough if name in THOROUGH else pytest.mark.slow]


@pytest.fixture(params=[pytest.param(name, marks=_marks(name)) for name in CASES])
def made(request):
    torch.manual_seed(0)
    decoder, robots = CASES[request.param]
    holds = contents(decoder, TINY, robots) if robots else contents(decoder, TINY)
    model = holds.build()
    rows = samples(8, robots=holds.embodiments)
    batch = holds.collate(model).samples(rows, {**SOURCES, "arm": 3})
    if model.decoder.fits:
        model.decoder.fit(batch.target)
    return model, batch


def test_learns_what_its_codec_can_say(made):
    model, batch = made
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=4e-3, weight_decay=0)
    for step in range(120):
        optimizer.zero_grad()
        total_loss(model(batch, Noise(batch.position_B, step))).backward()
        optimizer.step()
    target, codes = batch.target, model.decoder.codes
    code_BN = codes.encode(target)[0]
    like = batch.spec if codes.codec.whole else replace(batch.spec, mask_BTA=target.label_BTA)
    want_BTA = (
        target.action_BTA
        if getattr(model.decoder, "offset", None)
        else codes.decode(torch.nn.functional.pad(code_BN, (0, codes.length - code_BN.shape[1])), like)
    )
    with torch.inference_mode():
        found_BTA = model.eval().sample(batch, Noise(batch.position_B))
    error = ((found_BTA - want_BTA).abs() * target.label_BTA).sum() / target.label_BTA.sum()
    assert error < 0.15, f"mean error {error:.3f}; guessing the mean gives 0.45"


def test_weights_are_those_of_the_loss_and_every_trained_parameter_takes_part(made):
    model, batch = made
    noise = Noise(batch.position_B, 4)
    loss, weights = model(batch, noise), model.weights(batch, noise)
    assert all(torch.equal(loss.parts[name].weight, weights[name]) for name in weights) and set(weights) == set(loss.parts)
    total_loss(loss).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_what_nobody_labelled_moves_nothing(made):
    model, batch = made
    dirty = torch.where(batch.target.label_BTA, batch.target.action_BTA, 5.0)
    losses = [
        total_loss(model(replace(batch, target=replace(batch.target, action_BTA=a)), Noise(batch.position_B, 1)))
        for a in (batch.target.action_BTA, dirty)
    ]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)


def test_a_row_ignores_its_neighbours(made):
    model, batch = made
    model.eval()
    with torch.inference_mode():
        whole, alone = (model.sample(part, Noise(part.position_B, 7)) for part in (batch, batch[2:3]))
    torch.testing.assert_close(whole[2:3], alone, atol=1e-5, rtol=1e-5)
    assert (whole[~batch.spec.mask_BTA] == 0).all()


def test_chunks_of_any_length_are_decoded_one_by_one_or_not_at_all():
    for config in (MaskedDiffusion(codec=FAST()), ParallelClasses(codec=FAST())):
        with pytest.raises(UserError, match="codec.fast"):
            contents(config, TINY).build()


def test_how_often_fast_was_guided_is_counted():
    holds = contents(AutoregressiveTokens(codec=FAST(vocabulary=300)), TINY)
    model = holds.build().eval()
    batch = holds.collate(model).samples(samples(8), SOURCES)
    model.decoder.fit(batch.target)
    assert model.decoder.facts() == {}
    with torch.inference_mode():
        model.sample(batch, Noise(batch.position_B))
    assert model.decoder.chunks == 8
    assert 0 < model.decoder.facts()["repaired"] <= 8  # an untrained head knows nothing of lengths
    assert Policy(holds, model).facts() == model.decoder.facts()  # which evaluations put into their results


@pytest.mark.parametrize("offset", [False, True])
def test_a_robot_that_its_codec_is_not_fitted_on_neither_learns_nor_acts(offset):
    torch.manual_seed(0)
    holds = contents(AutoregressiveTokens(codec=Bins(spacing="quantile"), offset=offset))
    model, rows = holds.build(), samples(8, unlabelled=False)
    batch = holds.collate(model).samples(rows, SOURCES)
    seen = batch.spec.embodiment_B == 0
    model.decoder.fit(batch.target[seen])
    with pytest.raises(UserError, match="not fitted on wide"):
        model(batch, Noise(batch.position_B))
    with pytest.raises(UserError, match="not fitted on wide"):
        model.sample(batch, Noise(batch.position_B))
    video = [row if row.observation.embodiment == "narrow" else replace(row, action_TA=None) for row in rows]
    batch = holds.collate(model).samples(video, SOURCES)
    assert total_loss(model(batch, Noise(batch.position_B))).isfinite()  # without labels there is nothing to encode
    assert model.sample(batch[seen], Noise(batch.position_B[seen])).isfinite().all()
