"""OpenVLA-OFT (`constants.py`, `action_heads.py`): what of it our parallel decoder and DDPM path embody."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler

from tests.parts import TINY
from vla.backbones.base import prefix_tokens, visible
from vla.decoders.base import total_loss
from vla.diffusion.ddpm import DDPM
from vla.noise import Noise
from vla.presets import preset
from vla.roster import Roster
from vla.types import ActionSpec, Target

B, T, A = 3, 8, 7


def test_one_bidirectional_suffix_for_the_whole_chunk_and_l1(monkeypatch):
    """A chunk of 8 (LIBERO) in one pass: every place sees the prefix and every other place, none of them is seen by the prefix."""
    chosen = preset("openvla_oft")
    assert chosen.horizon == T
    torch.manual_seed(0)
    backbone, decoder = TINY.build(), chosen.decoder.build(TINY.width, Roster(("arm",), T, A, 1))
    prefix = prefix_tokens(torch.randn(B, 5, TINY.width), torch.ones(B, 5, dtype=torch.bool))
    like = ActionSpec(torch.zeros(B, dtype=torch.int64), torch.ones(B, T, A, dtype=torch.bool))
    passes, forward = [], backbone.forward
    monkeypatch.setattr(backbone, "forward", lambda tokens, cache=None: passes.append(tokens) or forward(tokens, cache))
    noise = Noise(torch.arange(B))
    pred_BTA = decoder.sample(backbone, prefix, like, noise)
    (tokens,) = passes
    sees = visible(tokens, tokens)[0, 0]
    assert sees[5:].all() and not sees[:5, 5:].any() and len(tokens) == 5 + T
    target = Target(torch.randn(B, T, A), like.mask_BTA, like, torch.zeros(B, 0, dtype=torch.int64), torch.zeros(B, dtype=torch.bool))
    loss = total_loss(decoder.loss(backbone, prefix, target, noise))
    torch.testing.assert_close(loss, (pred_BTA - target.action_BTA).abs().mean(), atol=1e-6, rtol=1e-6)


def test_the_diffusion_heads_schedule():
    """`DiffusionActionHead`: DDIMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2"), all 50 steps, clipped to 1."""
    path, theirs = DDPM(steps=50, spacing="leading", clip=1.0).build(), DDIMScheduler(50, beta_schedule="squaredcos_cap_v2")
    theirs.set_timesteps(50)
    assert path.levels(50) == theirs.timesteps.tolist() == list(range(49, -1, -1))
    draw = torch.Generator().manual_seed(0)
    data, eps, level = torch.rand(50, 4, 3, generator=draw) - 0.5, torch.randn(50, 4, 3, generator=draw), torch.arange(50)
    torch.testing.assert_close(path.corrupt(data, eps, 1 - (level + 1) / 50)[0], theirs.add_noise(data, eps, level), atol=3e-6, rtol=1e-5)
    goal = torch.rand(2, 4, 3, generator=draw) * 1.6 - 0.8

    def noise_of(x, index: int):
        kept = float(path.alphas_cumprod_K[index])
        return (x - kept**0.5 * goal) / (1 - kept) ** 0.5

    x = start = torch.randn(2, 4, 3, generator=draw)
    for index in theirs.timesteps.tolist():
        x = theirs.step(noise_of(x, index), index, x).prev_sample
    found = path.solve(lambda x, t: noise_of(x, int(path.level(t[:1]))), start, 50)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=0)
