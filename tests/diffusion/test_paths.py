"""Schedules, solvers and time distributions against independent references (diffusers, scipy, closed forms)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vla.diffusion.base import Warm
from vla.diffusion.ddpm import DDPM, squared_cosine
from vla.diffusion.flow import Flow
from vla.errors import UserError
from vla.noise import Noise


def test_ddpm_corrupts_with_the_level_it_names():
    path = DDPM(steps=50).build()
    t_BK = path.times(Noise(torch.arange(4000)), 1)
    level = ((1 - t_BK) * 50).round().long() - 1
    assert level.min() == 0 and level.max() == 49
    data, eps = torch.ones(4000, 1, 1), torch.zeros(4000, 1, 1)
    noisy, want = path.corrupt(data, eps, t_BK[:, 0])
    torch.testing.assert_close(noisy[:, 0, 0], squared_cosine(50)[level[:, 0]].sqrt().float())
    assert torch.equal(want, eps)
    with pytest.raises(UserError, match="1..50"):
        path.solve(lambda x, t: x, eps, 51)


@pytest.mark.parametrize("predict", ["velocity", "data"])
def test_flow_recovers_a_known_point_in_any_number_of_steps(predict):
    """With the exact field towards one datum, Euler's method is exact: the path is straight."""
    path = Flow(predict=predict).build()
    data = torch.tensor([[[0.3, -0.8]]])
    eps = torch.randn(1, 1, 2, generator=torch.Generator().manual_seed(1))

    def network(x, t):
        return data if predict == "data" else (data - x) / (1 - t.view(-1, 1, 1))

    for evaluations in (1, 3, 10):
        torch.testing.assert_close(path.solve(network, eps, evaluations), data, atol=1e-5, rtol=1e-5)
    noisy, want = path.corrupt(data, eps, torch.tensor([0.25]))
    torch.testing.assert_close(noisy, 0.75 * eps + 0.25 * data)
    torch.testing.assert_close(want, data if predict == "data" else data - eps)


def test_pi0_times_are_the_shifted_beta_in_our_direction():
    """openpi: tau ~ Beta(1.5, 1) * 0.999 + 0.001 with tau = 1 at noise; ours is t = 1 - tau."""
    t = Flow(times="pi0").build().times(Noise(torch.arange(5000)), 4).flatten().numpy()
    tau = (1 - t - 0.001) / 0.999
    assert stats.kstest(tau, stats.beta(1.5, 1).cdf).pvalue > 0.01
    assert t.min() >= 0 and t.max() <= 0.999 + 1e-6


def test_noise_is_normal_uniform_and_keyed():
    noise = Noise(torch.arange(3000), seed=5)
    assert stats.kstest(noise.uniform("u", 7).flatten().numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(noise.normal("n", 7).flatten().numpy(), "norm").pvalue > 0.01
    counts = np.bincount(noise.integers("i", 5, 7).flatten().numpy(), minlength=5)
    assert stats.chisquare(counts).pvalue > 0.01
    few = Noise(torch.tensor([17, 2999]), seed=5)
    assert torch.equal(few.normal("n", 7), noise.normal("n", 7)[[17, 2999]])
    assert not torch.equal(noise.normal("n", 7), noise.normal("m", 7))
    assert not torch.equal(noise.normal("n", 7), noise.fold(0).normal("n", 7))
    assert abs(np.corrcoef(noise.uniform("u", 1)[:-1, 0], noise.uniform("u", 1)[1:, 0])[0, 1]) < 0.06


@pytest.mark.parametrize("start", [0.0, 0.4])
@pytest.mark.parametrize("path", [Flow(), Flow(predict="data"), Flow(reverse=True), DDPM(), DDPM(steps=50, spacing="leading", eta=1.0)])
def test_a_network_is_asked_at_the_times_of_the_grid_one_after_the_other(path, start):
    path, eps, asked = path.build(), torch.randn(2, 3, 4), []
    warm = Warm(torch.zeros(2, 3, 4), start) if start else None
    path.solve(lambda x, t: (asked.append(t), x)[1], eps, 5, warm=warm, noise=Noise(torch.arange(2)))
    assert torch.equal(torch.stack(asked), torch.tensor(path.grid(5, start))[:, None].expand(5, 2))
