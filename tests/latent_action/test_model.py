from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.latent_action.dots import CONFIG
from vla.codecs.quantizer import FSQ, NSVQ, VQ
from vla.config import from_json, to_json
from vla.decoders.base import total_loss
from vla.errors import SchemaError, UnknownName, UserError
from vla.latent_action.decoder import ForwardTransformer
from vla.latent_action.encoder import SpatioTemporal
from vla.latent_action.features import Pixels, fit
from vla.latent_action.model import FramePairs
from vla.latent_action.train import frame_pairs
from vla.noise import Noise

TRANSFORMER = {"width": 32, "depth": 1, "heads": 2}
CONFIGS = {
    "default": CONFIG,
    "pixels": replace(CONFIG, features=Pixels()),
    "fsq": replace(CONFIG, quantizer=FSQ(codes=2)),
    "lapa": replace(
        CONFIG,
        features=Pixels(),
        encoder=SpatioTemporal(**TRANSFORMER, patch=8, queries=2),
        quantizer=NSVQ(codes=2, width=8),
        decoder=ForwardTransformer(**TRANSFORMER, patch=8),
    ),
    "transformers": replace(
        CONFIG,
        encoder=SpatioTemporal(**TRANSFORMER, queries=2),
        quantizer=VQ(codes=2, vocabulary=8),
        decoder=ForwardTransformer(**TRANSFORMER),
    ),
}


@pytest.fixture(name="samples", scope="module")
def _samples(dots):
    return frame_pairs(CONFIG, [dots[1]]).samples(range(48))


@pytest.fixture(params=CONFIGS, name="config")
def _config(request):
    return CONFIGS[request.param]


def build(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build()


@pytest.mark.parametrize(
    "name", [name if name in ("default", "lapa") else pytest.param(name, marks=pytest.mark.thorough) for name in CONFIGS]
)
def test_first_predicts_no_change_then_learns(name, samples):
    model = build(CONFIGS[name]).train()
    pairs = model.collate(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for step in range(60):
        loss, _ = model(pairs, Noise(pairs.key_B, step))
        history.append(float((loss.parts["prediction"].sum / loss.parts["prediction"].weight).detach()))
        optimizer.zero_grad()
        total_loss(loss).backward()
        optimizer.step()
    assert 0.9 < history[0] <= 1.0
    assert history[-1] < 0.72 * history[0]  # 0.4 to 0.6 after 60 steps; what learns nothing stays at 1


def test_loss_is_a_weighted_sum(config, samples):
    model = build(config)
    model.train()(model.collate(samples), Noise(torch.arange(48)))  # gives codebooks their first entries
    model.eval()
    whole = model.collate(samples)
    parts = [model.collate(samples[:11]), model.collate(samples[11:])]
    losses = [model(pairs, Noise(pairs.key_B))[0] for pairs in (whole, *parts)]
    for name in losses[0].parts:
        for side in ("sum", "weight"):
            values = [getattr(loss.parts[name], side) for loss in losses]
            torch.testing.assert_close(values[0], values[1] + values[2])
    torch.testing.assert_close(losses[0].sample_sum_B.sum(), losses[0].parts["prediction"].sum)


def test_a_pair_is_not_moved_by_its_neighbours(config, samples):
    model = build(config)
    model.train()(model.collate(samples), Noise(torch.arange(48)))
    model.eval()

    def latent(chosen):
        pairs = model.collate(chosen)
        return model.encoder(*model._maps(pairs), model._gap(pairs))

    together, alone = latent(samples), torch.cat([latent([sample]) for sample in samples[:5]])
    torch.testing.assert_close(together[:5], alone, rtol=1e-4, atol=1e-5)
    assert (model.encode(model.collate(samples)) >= 0).all()


def test_configuration_survives_json(config):
    assert from_json(to_json(config)) == config


def test_going_back_is_the_negative(samples):
    model = build(CONFIG)
    pairs = model.collate(samples)
    back = FramePairs(pairs.later_BHW3, pairs.now_BHW3, pairs.gap_B, pairs.key_B)
    there_BZ, back_BZ = (model.encoder(*model._maps(p), model._gap(p)) for p in (pairs, back))
    torch.testing.assert_close(there_BZ, -back_BZ)


def test_hash_is_of_weights_and_configuration():
    model, again = build(CONFIG), build(CONFIG)
    assert model.hash() == again.hash() and len(model.hash()) == 64
    with torch.no_grad():
        next(iter(again.parameters())).view(-1)[0] += 1e-6
    assert again.hash() != model.hash()
    moved = replace(CONFIG, gap_s=(0.2, 0.3)).build()
    moved.load_state_dict(model.state_dict())
    assert moved.hash() != model.hash()


def test_another_camera_is_an_error(samples):
    with pytest.raises(UnknownName, match="front"):
        build(replace(CONFIG, camera="wrist")).collate(samples)
    with pytest.raises(SchemaError, match="future_gap_s"):
        build(CONFIG).collate([replace(samples[0], future=None)])


@pytest.mark.parametrize("gap_s", [(0.0, 0.1), (0.3, 0.2), (0.1, float("inf"))])
def test_gaps_make_sense(gap_s):
    with pytest.raises(UserError, match="gap_s"):
        replace(CONFIG, gap_s=gap_s)


def test_gap_to_label_with():
    model = replace(CONFIG, gap_s=(0.2, 0.4)).build()
    assert model.check_gap(None) == pytest.approx(0.3) and model.check_gap(0.25) == 0.25
    with pytest.raises(UserError, match=r"0\.2 to 0\.4"):
        model.check_gap(1.0)


def test_images_of_any_size_fit_alike():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for side in (32, 64, 32, 48)]
    together = fit(images, 32)
    assert together.shape == (4, 32, 32, 3) and together.dtype == torch.uint8
    assert torch.equal(together[0], torch.from_numpy(images[0]))
    for row, image in enumerate(images):
        assert torch.equal(fit([image], 32)[0], together[row])
    flat = np.full((64, 64, 3), 77, np.uint8)
    assert torch.equal(fit([flat], 32)[0], torch.full((32, 32, 3), 77, dtype=torch.uint8))
