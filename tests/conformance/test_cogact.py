"""CogACT's action module, written out after its paper and `action_model/models.py`, against our DiT with the same weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.parts import TINY
from vla.decoders.conditioning import DIT_SIZES, Pooled
from vla.decoders.dit import DiT
from vla.decoders.dit_time import level_embedding
from vla.diffusion.ddpm import DDPM
from vla.roster import Roster
from vla.types import ActionSpec

B, K, T, A, D = 3, 2, 5, 4, 24


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    conditioning = Pooled(width=D, depth=2, heads=2, style="dit", read="last")
    config = DiT(path=DDPM(steps=100), conditioning=conditioning, time="token", condition_dropout=0.1, guidance=1.5, samples_per_context=8)
    made = config.build(TINY.width, Roster(("robot",), T, A, 1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def reference(decoder, x_TA, level: int, z_D):
    """One noise sample: c = t + z before the embedded actions, blocks of LayerNorm without weights, GELU (tanh), no adaptive norms."""
    time = decoder.time_in.mlp(timestep_embedding(level)[None])[0]
    actions = x_TA @ decoder.action_in.weight_EIO[0] + decoder.action_in.bias_EO[0] + decoder.step_TD
    x = torch.cat([(time + z_D)[None], actions])
    for block in decoder.conditioning.expert.blocks:
        h = F.layer_norm(x, (D,), eps=1e-6)
        q = block.q(h).view(-1, 2, D // 2).transpose(0, 1)
        k, v = (part.view(-1, 2, D // 2).transpose(0, 1) for part in block.kv(h).chunk(2, dim=-1))
        scores = (q @ k.transpose(1, 2) / math.sqrt(D // 2)).softmax(-1)
        x = x + block.out((scores @ v).transpose(0, 1).reshape(-1, D))
        x = x + block.mlp.down(F.gelu(block.mlp.up(F.layer_norm(x, (D,), eps=1e-6)), approximate="tanh"))
    return F.layer_norm(x, (D,), eps=1e-6)[1:] @ decoder.out.weight_EIO[0] + decoder.out.bias_EO[0]


def timestep_embedding(level: int, width: int = 256):
    """GLIDE's: cosines, then sines, of level * 10000^(-i / 128)."""
    angle = level * 10_000.0 ** (-torch.arange(width // 2) / (width // 2))
    return torch.cat([angle.cos(), angle.sin()])


def test_the_denoiser_is_the_published_one(decoder):
    from vla.backbones.base import prefix_tokens
    from vla.decoders.conditioning import Context
    from vla.decoders.dit_pass import Pass

    draw = torch.Generator().manual_seed(1)
    x_BKTA, z_BD = torch.randn(B, K, T, A, generator=draw), torch.randn(B, D, generator=draw)
    level_BK = torch.tensor([[0, 99], [50, 7], [31, 64]])
    context = Context(decoder.conditioning.expert, prefix_tokens(z_BD[:, None], torch.ones(B, 1, dtype=torch.bool)), None, z_BD)
    like = ActionSpec(torch.zeros(B, dtype=torch.int64), torch.ones(B, T, A, dtype=torch.bool))
    dropped_BK = torch.tensor([[False, True], [False, False], [True, False]])
    with torch.no_grad():
        found = Pass(decoder, context, like, dropped_BK, None)(x_BKTA, 1 - (level_BK + 1) / 100)
        for b in range(B):
            for k in range(K):
                z_D = decoder.null_D if dropped_BK[b, k] else z_BD[b]
                want = reference(decoder, x_BKTA[b, k], int(level_BK[b, k]), z_D)
                torch.testing.assert_close(found[b, k], want, atol=1e-5, rtol=1e-5)


def test_published_numbers():
    """`action_model/action_model.py`: sizes; 100 squared-cosine steps, eps-prediction. DDIM of 10 takes levels 90, 80, ..., 0."""
    assert DIT_SIZES == {"S": (384, 6, 4), "B": (768, 12, 12), "L": (1024, 24, 16)}
    assert DDPM() == DDPM(steps=100, predict="noise", eta=0.0)
    assert DDPM(spacing="leading").build().levels(10) == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    torch.testing.assert_close(level_embedding(torch.tensor([37]))[0], timestep_embedding(37), atol=1e-5, rtol=1e-5)
