"""Guided sampling against denoisers that are known in closed form: no network, nothing trained."""

from __future__ import annotations

import math

import pytest
import torch

from vla.diffusion.ddpm import DDPM
from vla.diffusion.flow import Flow
from vla.diffusion.guide import guided
from vla.noise import Noise

PATHS = {
    "flow": Flow(times="uniform"),
    "flow, data": Flow(times="uniform", predict="data"),
    "flow, reversed": Flow(reverse=True),
    "ddpm": DDPM(clip=None),
    "ddpm, data": DDPM(predict="data", clip=None),
    "ddpm, velocity": DDPM(predict="velocity", clip=None),
}
MODES = torch.tensor([[1.0] * 6, [-1.0] * 6])[..., None]  # two ways to act, of six steps of one number each
SPREAD = 0.05


@pytest.fixture(params=PATHS, name="path")
def _path(request):
    return PATHS[request.param].build()


def two_ways(path):
    """The exact denoiser of an even mixture of narrow Gaussians round the two modes."""

    def predict(x_BTA, t_B):
        signal, disturbance = (scale.to(x_BTA.dtype).view(-1, 1, 1, 1) for scale in path.scales(t_B))
        variance = (signal * SPREAD) ** 2 + disturbance**2
        apart_BMTA = x_BTA[:, None] - signal * MODES
        share_BM = torch.softmax(-(apart_BMTA.square() / variance / 2).flatten(2).sum(-1), dim=1)[..., None, None]
        mean_BMTA = MODES + signal * SPREAD**2 / variance * apart_BMTA
        return path.output(x_BTA, (share_BM * mean_BMTA).sum(1), t_B)

    return predict


def noise(rows):
    return Noise(torch.arange(rows), 3)


def test_data_and_output_are_inverses(path):
    x, data = noise(8).normal("x", 4, 2), noise(8).normal("data", 4, 2)
    t = torch.arange(8) / 10 + 0.05
    t = path._time((t * 100).long()) if hasattr(path, "_time") else t
    torch.testing.assert_close(path.data(x, path.output(x, data, t), t), data, atol=1e-4, rtol=1e-4)
    noisy, want = path.corrupt(data, x, t)
    torch.testing.assert_close(path.data(noisy, want, t), data, atol=1e-4, rtol=1e-4)


def test_what_is_committed_decides_the_way_that_the_rest_takes(path):
    eps = noise(256).normal("eps", 6, 1)
    free = path.solve(two_ways(path), eps, 10)
    share = (free.mean((1, 2)) > 0).float().mean()
    assert 0.4 < share < 0.6  # alone, both ways are taken
    weight = torch.zeros(256, 6, 1)
    weight[:, :2] = 1
    for way in (1.0, -1.0):
        found = path.solve(guided(path, two_ways(path), torch.full((256, 6, 1), way), weight), eps, 10)
        followed = (found[:, 2:] * way > 0.5).all(dim=(1, 2)).float().mean()
        assert followed > 0.9, "two committed steps of six carry the other four (0.96 at the reference's bound of 5)"


def test_without_weight_nothing_is_pulled(path):
    eps = noise(16).normal("eps", 6, 1)
    want = torch.full((16, 6, 1), 5.0)
    found = path.solve(guided(path, two_ways(path), want, torch.zeros(16, 6, 1)), eps, 10)
    torch.testing.assert_close(found, path.solve(two_ways(path), eps, 10), atol=1e-4, rtol=1e-4)


def test_one_step_by_hand():
    """A flow whose estimate of the data is x / 2, at t = 1/2: strength (1/4 + 1/4) / (1/4) = 2, slope error / 2."""
    path = Flow().build()

    def predict(x, t):
        return (x / 2 - x) / (1 - t.view(-1, 1, 1))

    x, t = torch.tensor([[[0.8]]]), torch.tensor([0.5])
    out = guided(path, predict, torch.tensor([[[1.0]]]), torch.tensor([[[0.5]]]))(x, t)
    error = (1.0 - 0.4) * 0.5
    want_data = 0.4 + 0.5 * 2.0 * (error / 2)
    assert math.isclose(path.data(x, out, t).item(), want_data, rel_tol=1e-6)


def test_near_noise_guidance_is_bounded():
    path = Flow().build()
    x, t = torch.tensor([[[0.3]]]), torch.tensor([0.0])
    out = guided(path, lambda x, t: -x, torch.tensor([[[1.0]]]), torch.ones(1, 1, 1), most=5.0)(x, t)
    assert path.data(x, out, t).item() == pytest.approx(0.0)  # its estimate, 0, does not depend on x: no slope, no pull
    out = guided(path, lambda x, t: 0 * x, torch.tensor([[[1.0]]]), torch.ones(1, 1, 1), most=5.0)(x, t)
    assert path.data(x, out, t).item() == pytest.approx(0.3 + 5 * 0.7)
