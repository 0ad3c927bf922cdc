"""A transformer that denoises action chunks: *path* (flow or DDPM) x *conditioning* (pooled, cross-attention, in-context).

Pooled + DDPM is CogACT (Li et al. 2024), cross + flow is GR00T N1 (2025), in-context + DDPM is Dita (Hou et al. 2025). Noisy actions
and time enter together through one MLP (pi0). K noise samples per context share one pass over the prefix (CogACT's
`repeated_diffusion_steps`, Mini-Diffuser): each is a group of its own, so none sees another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.backbones.base import Backbone, Hidden, Tokens, suffix_tokens
from vla.bank import Bank
from vla.decoders.base import ActionDecoder, make_loss
from vla.decoders.conditioning import Body, InContext
from vla.decoders.fold import StepFold
from vla.diffusion.flow import Flow
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target


@dataclass(frozen=True)
class DiT:
    """`samples_per_context`: K. `evaluations`: denoising steps when acting. `steps_per_token`: action steps that share a token."""

    kind: ClassVar[str] = "decoder.dit"
    path: Any = field(default_factory=Flow)
    conditioning: Any = field(default_factory=InContext)
    samples_per_context: int = 4
    evaluations: int = 5
    steps_per_token: int = 1

    def build(self, width: int, roster: Roster) -> DiTDecoder:
        return DiTDecoder(self, width, roster)


class DiTDecoder(ActionDecoder):
    """A token per noise sample and action step (or several steps); per-robot maps in and out."""

    def __init__(self, config: DiT, width: int, roster: Roster) -> None:
        super().__init__()
        self.config, self.horizon, self.action_width = config, roster.horizon, roster.action_width
        self.path = config.path.build()
        self.conditioning = config.conditioning.build(width)
        inner = self.conditioning.width
        self.fold = StepFold(roster.horizon, config.steps_per_token, inner, reads=True)
        self.action_in = Bank(len(roster), roster.action_width, inner, axes=("A", None))
        self.time_mix = nn.Sequential(nn.Linear(2 * inner, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.roster_axes = {"step_TD": ("T", None)}
        self.step_TD = nn.Parameter(torch.randn(roster.horizon, inner) * 0.5)
        self.out = Bank(len(roster), inner, roster.action_width, axes=(None, "A"))

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"denoise": target.label_BTA.sum().float() * self.config.samples_per_context}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        B, K = len(prefix.x_BSD), self.config.samples_per_context
        T, A = self.horizon, self.action_width
        t_BK = self.path.times(noise, K)
        eps_BKTA = noise.normal("eps", K, T, A)
        data_BKTA = target.action_BTA[:, None].expand(B, K, T, A)
        noisy, want = self.path.corrupt(data_BKTA.reshape(B * K, T, A), eps_BKTA.view(B * K, T, A), t_BK.flatten())
        body, follows, cache = self.conditioning.prepare(backbone, prefix)
        # Unlabelled steps (past the end of an episode) do not exist here: what stands there must move nothing.
        labelled = ActionSpec(target.spec.embodiment_B, target.label_BTA)
        pred_BKTA = self._predict(body, follows, cache, noisy.view(B, K, T, A), t_BK, labelled)
        error_BKTA = (pred_BKTA.float() - want.view(B, K, T, A)).square()
        return make_loss({"denoise": (error_BKTA, target.label_BTA[:, None].expand(B, K, T, A))}, {"denoise": 1.0})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        body, follows, cache = self.conditioning.prepare(backbone, prefix)

        def predict(x_BTA: Tensor, t_B: Tensor) -> Tensor:
            return self._predict(body, follows, cache, x_BTA[:, None], t_B[:, None], like)[:, 0].float()

        eps_BTA = noise.normal("eps", self.horizon, self.action_width)
        return self.path.solve(predict, eps_BTA, self.config.evaluations) * like.mask_BTA

    def _predict(self, body: Body, follows: Tokens, cache: Hidden, x_BKTA: Tensor, t_BK: Tensor, like: ActionSpec) -> Tensor:
        B, K, T, A = x_BKTA.shape
        dtype = follows.x_BSD.dtype
        # What does not exist is 0 going in: a wider robot in the roster changes nothing for a narrow one.
        x_BKTA = (x_BKTA * like.mask_BTA[:, None]).to(dtype)
        # Steps that do not exist here are empty, so that sharing a token with a real one tells nothing.
        step_BKTD = (self.action_in(x_BKTA, like.embodiment_B) + self.step_TD) * like.mask_BTA.any(-1)[:, None, :, None]
        action_BKSD = self.fold.fold(step_BKTD)
        time_BKSD = time_embedding(t_BK, action_BKSD.shape[-1]).to(dtype)[:, :, None].expand_as(action_BKSD)
        x_BSD = self.time_mix(torch.cat([action_BKSD, time_BKSD], dim=-1)).flatten(1, 2)
        suffix = suffix_tokens(follows, x_BSD, causal=False, samples=K, valid_BS=self.fold.valid(like.mask_BTA).repeat(1, K))
        hidden = body(suffix, cache=cache)
        out_BKSD = hidden.last(x_BSD.shape[1]).unflatten(1, (K, -1))
        return self.out(self.fold.unfold(out_BKSD), like.embodiment_B).view(B, K, T, A)


def time_embedding(t: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """(...,) in [0, 1] -> (..., width): sines and cosines of geometric periods, 4e-3 .. 4.0 as in pi0."""
    period = shortest * (longest / shortest) ** (torch.arange(width // 2, device=t.device) / (width // 2 - 1))
    angle = t[..., None].double() * (2 * math.pi / period.double())
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()
