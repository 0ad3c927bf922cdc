from __future__ import annotations

import pytest
import torch

from vla.codecs.quantizer import FSQ, NSVQ, VQ, ResidualVQ
from vla.noise import Noise

QUANTIZERS = {
    "residual_vq": ResidualVQ(codes=3, vocabulary=5, latent=6),
    "vq": VQ(codes=3, vocabulary=5, width=2),
    "nsvq": NSVQ(codes=3, vocabulary=5, width=2),
    "fsq": FSQ(codes=3, levels=(2, 3)),
}


@pytest.fixture(params=QUANTIZERS, name="config")
def _config(request):
    return QUANTIZERS[request.param]


@pytest.fixture(name="quantizer")
def _quantizer(config):
    return config.build()


def latents(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def noise(rows: int, seed: int = 0) -> Noise:
    return Noise(torch.arange(rows), seed)


def train(quantizer, steps: int = 120, rows: int = 64, seed: int = 0) -> None:
    quantizer.train()
    for step in range(steps):
        quantizer(latents(rows, quantizer.latent, step), noise(rows, 1000 * seed + step))


def test_codes_stand_for_what_was_returned(quantizer):
    train(quantizer)
    quantizer.eval()
    found = quantizer(latents(32, quantizer.latent, 99))
    assert found.code_BN.shape == (32, quantizer.codes) and found.code_BN.dtype == torch.int64
    assert found.code_BN.min() >= 0 and found.code_BN.max() < quantizer.vocabulary
    torch.testing.assert_close(quantizer.embed(found.code_BN), found.action_BZ)


def test_gradient_reaches_the_latent(quantizer):
    train(quantizer)
    latent_BZ = latents(16, quantizer.latent).requires_grad_()
    found = quantizer.train()(latent_BZ, noise(16))
    (found.action_BZ * latents(16, quantizer.latent, 1)).sum().backward()
    assert (latent_BZ.grad.abs() > 0).all()


@pytest.mark.thorough
def test_every_entry_comes_into_use(quantizer):
    train(quantizer)
    code_BN = quantizer.eval()(latents(500, quantizer.latent, 7)).code_BN
    assert all(len(column.unique()) == quantizer.vocabulary for column in code_BN.T)


def test_randomness_is_passed_in(config):
    ambient = torch.get_rng_state()
    one, two, other = (config.build() for _ in range(3))
    train(one, 3), train(two, 3), train(other, 3, seed=1)
    assert torch.equal(ambient, torch.get_rng_state())
    x_BZ = latents(8, one.latent)
    results = [quantizer(x_BZ, noise(8, seed)).action_BZ for quantizer, seed in ((one, 0), (two, 0), (other, 1))]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) == isinstance(config, FSQ)  # which draws nothing


def test_order_of_rows_does_not_matter():
    a, b = (ResidualVQ(codes=2, vocabulary=4, latent=3).build().train() for _ in range(2))
    x_BZ, shuffled = latents(32, 3), torch.randperm(32, generator=torch.Generator().manual_seed(1))
    keys = torch.arange(32)
    for step in range(5):
        a(x_BZ, Noise(keys, step))
        b(x_BZ[shuffled], Noise(keys[shuffled], step))
    torch.testing.assert_close(a.entry_NKd, b.entry_NKd)


def test_dead_entries_are_revived():
    quantizer = VQ(codes=1, vocabulary=8, width=2).build().train()
    train(quantizer)
    with torch.no_grad():
        quantizer.entry_NKd[0, 1:] = 100.0  # a collapse: seven of eight entries where no latent ever is
        quantizer.sum_NKd[0] = quantizer.entry_NKd[0] * quantizer.used_NK[0][:, None]
    far = quantizer.eval()(latents(200, 2)).code_BN
    assert len(far.unique()) == 1
    train(quantizer, 120)
    assert len(quantizer.eval()(latents(200, 2)).code_BN.unique()) == 8


def test_residual_codes_refine():
    quantizer = ResidualVQ(codes=4, vocabulary=16, latent=3).build()
    train(quantizer, 100, 256)
    x_BZ = latents(500, 3, 5)
    code_BN = quantizer.eval()(x_BZ).code_BN
    errors = []
    for n in range(1, 5):
        quantized = sum(quantizer.entry_NKd[i][code_BN[:, i]] for i in range(n))
        errors.append(float((x_BZ - quantized).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1 * errors[0]


def test_fsq_has_no_dead_region():
    quantizer = FSQ(codes=1, levels=(4, 5)).build()
    levels = torch.arange(20)[:, None]
    spread = quantizer.embed(levels)
    assert len({tuple(row.tolist()) for row in spread}) == 20
