"""Squared-cosine diffusion against diffusers' schedulers with given noise: betas, corruption, targets, DDIM steps, eta, ancestral steps."""

from __future__ import annotations

import pytest
import torch

from vla.diffusion.ddpm import DDPM, squared_cosine
from vla.noise import Noise

NAMES = {"noise": "epsilon", "data": "sample", "velocity": "v_prediction"}
STEPS = 100


def theirs(kind: str = "DDIMScheduler", predict: str = "noise", spacing: str = "trailing", clip: float | None = None, **more):
    """Their scheduler in float64: they keep float32 products, whose rounding the last levels would magnify a thousandfold."""
    import diffusers  # here, so that who runs other tests does not wait for it

    made = getattr(diffusers, kind)(
        num_train_timesteps=STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=NAMES[predict],
        timestep_spacing=spacing,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        **more,
    )
    kept = squared_cosine(STEPS)
    torch.testing.assert_close(made.alphas_cumprod, kept.float(), atol=1e-6, rtol=2e-6)
    made.alphas_cumprod, made.alphas = kept, kept / torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    made.betas, made.one = 1 - made.alphas, torch.tensor(1.0, dtype=kept.dtype)
    if kind == "DDIMScheduler":
        made.final_alpha_cumprod = torch.tensor(1.0, dtype=kept.dtype)
    return made


def draws(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x, t):
    return torch.tanh(x * 0.7 + t.view(-1, 1, 1).to(x.dtype))


def test_betas():
    from diffusers import DDPMScheduler

    want = DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2").betas
    kept = squared_cosine(STEPS)
    betas = 1 - kept / torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    assert (betas - want.double()).abs().max() < 1e-6
    assert betas[-1] == pytest.approx(0.999)


@pytest.mark.parametrize("predict", NAMES)
def test_corruption_and_targets(predict):
    data, eps = draws(STEPS, 4, 3), draws(STEPS, 4, 3, seed=1)
    level = torch.arange(STEPS)
    path, scheduler = DDPM(steps=STEPS, predict=predict).build(), theirs(predict=predict)
    noisy, want = path.corrupt(data, eps, 1 - (level.double() + 1) / STEPS)
    assert (noisy - scheduler.add_noise(data, eps, level)).abs().max() < 1e-6
    target = {"noise": eps, "data": data, "velocity": scheduler.get_velocity(data, eps, level)}[predict]
    assert (want - target).abs().max() < 1e-6


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("predict", NAMES)
@pytest.mark.parametrize("evaluations", [1, 4, 10, 100])
@pytest.mark.parametrize("clip", [None, 1.5])
def test_ddim(spacing, predict, evaluations, clip):
    path = DDPM(steps=STEPS, predict=predict, spacing=spacing, clip=clip).build()
    scheduler = theirs(predict=predict, spacing=spacing, clip=clip)
    scheduler.set_timesteps(evaluations)
    levels = scheduler.timesteps.tolist()
    assert path.levels(evaluations) == levels
    x = start = draws(2, 4, 3)
    for level in levels:
        t = torch.full((2,), 1 - (level + 1) / STEPS)
        x = scheduler.step(network(x, t), level, x, use_clipped_model_output=clip is not None).prev_sample
    found = path.solve(network, start, evaluations)
    if clip is None and predict == "noise":  # dividing by sqrt(2e-9) at the last level: relative
        assert (found - x).abs().max() < 1e-6 * x.abs().max().clamp(min=1)
    else:
        assert (found - x).abs().max() < 1e-6


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_and_given_noise(eta):
    path, scheduler = DDPM(steps=STEPS, predict="data", clip=1.5, eta=eta).build(), theirs(predict="data", clip=1.5)
    scheduler.set_timesteps(5)
    levels, noise = scheduler.timesteps.tolist(), Noise(torch.arange(2), seed=4)
    x = start = draws(2, 4, 3)
    for index, level in enumerate(levels):
        out = network(x, torch.full((2,), 1 - (level + 1) / STEPS))
        fresh = noise.fold(index).normal("ddim", 4, 3).double() if index < 4 else torch.zeros_like(x)
        x = scheduler.step(out, level, x, eta=eta, use_clipped_model_output=True, variance_noise=fresh).prev_sample
    assert (path.solve(network, start, 5, noise=noise) - x).abs().max() < 1e-6
    assert (path.solve(network, start, 5, noise=noise.fold(9)) - x).abs().max() > 0.01


def test_the_ancestral_sampler_is_eta_one_over_all_levels(monkeypatch):
    """Ho et al. 2020, eq. 7, with the posterior's variance ("fixed_small")."""
    path, scheduler = DDPM(steps=STEPS, clip=1.5, eta=1.0).build(), theirs("DDPMScheduler", clip=1.5, variance_type="fixed_small")
    monkeypatch.setattr(scheduler, "_get_variance", lambda t, *_, **__: _posterior(scheduler, int(t)))
    x = draws(2, 4, 3)
    for level in range(STEPS - 1, 0, -1):
        fresh = draws(2, 4, 3, seed=level)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, fresh=fresh, **__: fresh)
        out = network(x, torch.full((2,), 1 - (level + 1) / STEPS))
        want = scheduler.step(out, level, x).prev_sample
        found = path.step(x, out, level, level - 1, fresh)
        assert (found - want).abs().max() < 1e-6
        x = want


def _posterior(scheduler, t: int):
    """Their variance without its clamp to 1e-20 and float32."""
    kept, before = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 1]
    return (1 - before) / (1 - kept) * (1 - kept / before)
