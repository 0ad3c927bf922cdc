"""Flow matching by the conventions of pi0, GR00T N1 and Stable Diffusion 3: direction, targets, times, steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vla.diffusion.flow import Flow
from vla.errors import UnknownName, UserError
from vla.noise import Noise


def draws(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pi0_direction_targets_and_ten_steps():
    """openpi `pi0.py`: x = tau noise + (1 - tau) a, target noise - a, tau = 1 is noise; ten Euler steps of -0.1."""
    path = Flow(times="pi0", reverse=True).build()
    a, noise, tau = draws(5, 4, 3), draws(5, 4, 3, seed=1), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.001])
    noisy, want = path.corrupt(a, noise, 1 - tau)
    each = tau.double().view(-1, 1, 1)
    assert (noisy - (each * noise + (1 - each) * a)).abs().max() < 1e-6
    assert torch.equal(want, noise - a)
    assert torch.equal(path.clock(1 - tau), 1 - (1 - tau))
    velocity, shown = lambda x, tau: torch.sin(x) * (1 + tau.view(-1, 1, 1)), []

    def network(x, t):
        shown.append(path.clock(t)[0].item())
        return velocity(x, path.clock(t).double())

    x, time = noise, 1.0
    for _ in range(10):
        x, time = x - 0.1 * velocity(x, torch.full((5,), time, dtype=torch.float64)), time - 0.1
    assert (path.solve(network, noise, 10) - x).abs().max() < 1e-6
    assert shown == pytest.approx([1 - 0.1 * i for i in range(10)])


def test_gr00t_direction_targets_and_four_steps():
    """GR00T N1.7 `gr00t_n1d7.py`: x = (1 - t) noise + t a, v = a - noise, t = 0 is noise; four Euler steps of +0.25; 1000 buckets."""
    path = Flow(times="pi0").build()
    a, noise, t = draws(5, 4, 3), draws(5, 4, 3, seed=1), torch.tensor([0.0, 0.25, 0.5, 0.75, 0.999])
    noisy, want = path.corrupt(a, noise, t)
    each = t.double().view(-1, 1, 1)
    assert (noisy - ((1 - each) * noise + each * a)).abs().max() < 1e-6
    assert torch.equal(want, a - noise)
    assert path.level(t).tolist() == [0, 250, 500, 750, 999]
    velocity, buckets = lambda x, level: torch.cos(x) * (1 + level.view(-1, 1, 1) / 1000), []

    def network(x, t):
        buckets.append(int(path.level(t)[0]))
        return velocity(x, path.level(t).double())

    x = noise
    for step in range(4):
        x = x + 0.25 * velocity(x, torch.full((5,), float(int(step / 4 * 1000)), dtype=torch.float64))
    assert (path.solve(network, noise, 4) - x).abs().max() < 1e-6
    assert buckets == [0, 250, 500, 750]


def test_the_two_directions_are_one_flow():
    """pi0's and GR00T's samplers give the same actions from the same field, written each its way."""
    forward, backward = Flow().build(), Flow(reverse=True).build()
    field = lambda x, t: torch.sin(3 * x) - t.view(-1, 1, 1)  # noqa: E731
    eps = draws(3, 4, 2)
    ours = forward.solve(field, eps, 7)
    theirs = backward.solve(lambda x, t: -field(x, 1 - backward.clock(t)), eps, 7)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name, distribution",
    [
        ("uniform", stats.uniform()),
        ("logit_normal", None),
        ("pi0", stats.beta(1.5, 1)),
    ],
)
def test_time_distributions(name, distribution):
    """Kolmogorov-Smirnov on 20,000 draws; pi0: tau = 0.999 Beta(1.5, 1) + 0.001; GR00T: t = 0.999 (1 - Beta(1.5, 1)), the same."""
    t = Flow(times=name).build().times(Noise(torch.arange(5000), seed=3), 4).flatten().double().numpy()
    if name == "logit_normal":
        assert stats.kstest(np.log(t / (1 - t)), stats.norm.cdf).pvalue > 0.01
    elif name == "uniform":
        assert stats.kstest(t, distribution.cdf).pvalue > 0.01
    else:
        by_pi0, by_gr00t = (1 - t - 0.001) / 0.999, 1 - t / 0.999
        for draw in (by_pi0, by_gr00t):
            assert stats.kstest(draw, distribution.cdf).pvalue > 0.01
        np.testing.assert_allclose(by_pi0, by_gr00t, atol=1e-6)
        assert abs(t.mean() - 0.999 * (1 - 0.6)) < 0.01  # Beta(1.5, 1) has mean 0.6: most draws near noise
        assert t.min() >= 0 and t.max() <= 0.999


def test_a_data_prediction_is_a_velocity():
    """v = (data - x) / (1 - t): an oracle of the data lands on it in any number of evaluations."""
    path, data, eps = Flow(predict="data").build(), draws(3, 4, 2), draws(3, 4, 2, seed=1)
    assert torch.equal(path.corrupt(data, eps, torch.rand(3))[1], data)
    for evaluations in (1, 2, 5):
        torch.testing.assert_close(path.solve(lambda x, t: data, eps, evaluations), data, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="at least 1"):
        path.solve(lambda x, t: data, eps, 0)
    with pytest.raises(UnknownName, match="logit_normal, pi0, uniform"):
        Flow(times="beta").build()
    with pytest.raises(UnknownName, match="data, velocity"):
        Flow(predict="noise").build()
