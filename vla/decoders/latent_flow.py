"""Latent actions and a robot's actions denoised together, the robot's looking at the latent ones (villa-X, Chen et al. 2025).

A token per code, one-hot over the vocabulary in -1 and 1, then one per action step, at one noise level. Actions see codes and codes see no
actions: what video without actions teaches, robots act on. A sample without codes has pure noise in their place, whatever the actions'
noise level: acting always has such tokens, and a robot whose data has no codes would else meet them for the first time then. One without
actions trains codes alone. villa-X denoises continuous latents by an expert of their own beside the actions'; here one network does both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Backbone, Tokens, suffix_tokens
from vla.bank import Bank
from vla.decoders.base import ActionDecoder, join, make_loss
from vla.decoders.conditioning import Build, Context, InContext
from vla.decoders.dit_time import time_embedding
from vla.diffusion.base import Predict, Warm
from vla.diffusion.flow import Flow
from vla.diffusion.guide import guided
from vla.errors import UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Prior, Target


@dataclass(frozen=True)
class LatentFlow:
    """`codes`, `vocabulary`: as in the model that labelled the data. `samples_per_context`: K noise samples a training sample.
    `evaluations`: denoising steps when acting. `conditioning`: how the observation is seen (not by a pooled token). `latent_scale`: of
    the codes' error beside the actions'."""

    kind: ClassVar[str] = "decoder.latent_flow"
    codes: int = 4
    vocabulary: int = 16
    path: Any = field(default_factory=lambda: Flow(predict="data", times="uniform"))
    conditioning: Any = field(default_factory=InContext)
    samples_per_context: int = 2
    evaluations: int = 5
    latent_scale: float = 0.1

    def build(self, width: int, roster: Roster) -> LatentFlowDecoder:
        return LatentFlowDecoder(self, width, roster)


class LatentFlowDecoder(ActionDecoder):
    """One sequence of codes and actions per noise sample; per-robot maps for the actions."""

    def __init__(self, config: LatentFlow, width: int, roster: Roster) -> None:
        super().__init__()
        self.config, self.latent_codes = config, config.codes
        self.horizon, self.action_width = roster.horizon, roster.action_width
        self.path = config.path.build()
        self.path.grid(config.evaluations)  # refuses here what it would refuse at the first call
        self.conditioning = config.conditioning.build(width, Build())
        if self.conditioning.summarizes:
            raise UserError("LatentFlow looks at the backbone's states: choose InContext, CrossAttention or LayerKeysValues, not Pooled")
        self.reads = self.conditioning.reads
        inner = self.conditioning.width
        self.code_ND = nn.Parameter(torch.randn(config.codes, inner) * 0.5)
        self.code_in, self.code_out = nn.Linear(config.vocabulary, inner), nn.Linear(inner, config.vocabulary)
        self.roster_axes = {"step_TD": ("T", None)}
        self.step_TD = nn.Parameter(torch.randn(roster.horizon, inner) * 0.5)
        self.action_in = Bank(len(roster), roster.action_width, inner, axes=("A", None))
        self.out = Bank(len(roster), inner, roster.action_width, axes=(None, "A"))
        self.time_mix = nn.Sequential(nn.Linear(2 * inner, inner), nn.SiLU(), nn.Linear(inner, inner))

    def bind(self, backbone: Backbone) -> None:
        self.conditioning.bind(backbone)

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        K, numbers = self.config.samples_per_context, self.config.codes * self.config.vocabulary
        return {"denoise": target.label_BTA.sum().float() * K, "latent": target.has_latent_B.sum().float() * K * numbers}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Squared error of what the path predicts: `denoise` over labelled actions, `latent` over codes that a sample has."""
        B, K = len(prefix.x_BSD), self.config.samples_per_context
        t_BK = self.path.times(noise, K)
        onehot_BNV = 2.0 * F.one_hot(target.latent_BN, self.config.vocabulary) - 1
        data_BKX = self._join(onehot_BNV, target.action_BTA)[:, None].expand(B, K, -1)
        eps_BKX = self._eps(noise, K)
        noisy_BX, want_BX = self.path.corrupt(data_BKX.flatten(0, 1), eps_BKX.flatten(0, 1), t_BK.flatten())
        noisy_BKX = noisy_BX.unflatten(0, (B, K))
        (code_BKNV, action_BKTA), (unknown_BKNV, _) = self._part(noisy_BKX), self._part(eps_BKX)
        noisy_BKX = self._join(torch.where(target.has_latent_B[:, None, None, None], code_BKNV, unknown_BKNV), action_BKTA)
        context = self.conditioning.prepare(backbone, prefix)
        labelled = ActionSpec(target.spec.embodiment_B, target.label_BTA)
        pred_BKX = self._predict(context, noisy_BKX, t_BK, labelled, self._places(context, labelled, K))
        code_error, action_error = self._part((pred_BKX.float() - want_BX.unflatten(0, (B, K))).square())
        parts = {
            "denoise": (action_error, target.label_BTA[:, None].expand_as(action_error)),
            "latent": (code_error, target.has_latent_B[:, None, None, None].expand_as(code_error)),
        }
        return make_loss(parts, {"denoise": 1.0, "latent": self.config.latent_scale})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        return self.sample_both(backbone, prefix, like, noise)[1]

    def resume(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior) -> Tensor:
        """Guided towards the prior (vla/diffusion/guide.py); the codes are free, and follow."""
        return join(self.sample_both(backbone, prefix, like, noise, prior)[1], like, prior, soft=False)

    def sample_both(
        self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes, int64 (B, N), and the actions that go with them, float32 (B, T, A). `prior`: actions to be pulled to."""
        context = self.conditioning.prepare(backbone, prefix)
        places = self._places(context, like, 1)

        def predict(x_BX: Tensor, t_B: Tensor) -> Tensor:
            return self._predict(context, x_BX[:, None], t_B[:, None], like, places)[:, 0].float()

        asked: Predict = predict
        warm = None
        if prior is not None:
            free_BNV = prior.action_BTA.new_zeros(len(prior.action_BTA), self.config.codes, self.config.vocabulary)
            warm = Warm.of(prior)
            if warm is not None:  # of the codes nobody has a guess: they start from the mean of all of them, with as much noise
                even_BNV = torch.full_like(free_BNV, 2 / self.config.vocabulary - 1)
                warm = replace(warm, guess_BTA=self._join(even_BNV, warm.guess_BTA))
            weight_BTA = prior.weight_BT[..., None] * like.mask_BTA
            asked = guided(self.path, predict, self._join(free_BNV, prior.action_BTA), self._join(free_BNV, weight_BTA))
        x_BX = self.path.solve(asked, self._eps(noise, 1)[:, 0], self.config.evaluations, warm=warm, noise=noise)
        code_BKNV, action_BKTA = self._part(x_BX[:, None])
        return code_BKNV[:, 0].argmax(-1), action_BKTA[:, 0] * like.mask_BTA

    def _eps(self, noise: Noise, samples: int) -> Tensor:
        code = noise.normal("eps_code", samples, self.config.codes, self.config.vocabulary)
        return self._join(code, noise.normal("eps", samples, self.horizon, self.action_width))

    def _join(self, code: Tensor, action: Tensor) -> Tensor:
        return torch.cat([code.flatten(-2), action.flatten(-2)], dim=-1)

    def _part(self, x_BKX: Tensor) -> tuple[Tensor, Tensor]:
        """(..., X) -> codes (..., N, V) and actions (..., T, A)."""
        count = self.config.codes * self.config.vocabulary
        code, action = x_BKX[..., :count], x_BKX[..., count:]
        return code.unflatten(-1, (self.config.codes, -1)), action.unflatten(-1, (self.horizon, self.action_width))

    def _places(self, context: Context, like: ActionSpec, samples: int) -> tuple[Tokens, Any]:
        """Where the tokens of a pass stand, without embeddings, and what `context.body` arranges for them: the same at every evaluation."""
        there_BT, N = like.mask_BTA.any(-1), self.config.codes
        valid_BS = torch.cat([there_BT.new_ones(len(there_BT), N), there_BT], dim=1)
        none_BS0 = context.follows.x_BSD.new_empty(len(there_BT), samples * valid_BS.shape[1], 0)
        suffix = suffix_tokens(context.follows, none_BS0, causal=False, samples=samples, valid_BS=valid_BS.repeat(1, samples))
        later_S = (torch.arange(valid_BS.shape[1], device=valid_BS.device) >= N).long().repeat(samples)
        suffix = replace(suffix, block_BS=suffix.block_BS + later_S)
        return suffix, context.body.arrange(suffix, context.cache)

    def _predict(self, context: Context, x_BKX: Tensor, t_BK: Tensor, like: ActionSpec, places: tuple[Tokens, Any]) -> Tensor:
        K, N, dtype = t_BK.shape[1], self.config.codes, context.follows.x_BSD.dtype
        code_BKNV, action_BKTA = self._part(x_BKX)
        # What does not exist is 0 going in: a wider robot in the roster changes nothing for a narrow one.
        step_BKTD = self.action_in((action_BKTA * like.mask_BTA[:, None]).to(dtype), like.embodiment_B) + self.step_TD
        step_BKTD = step_BKTD * like.mask_BTA.any(-1)[:, None, :, None]
        code_BKND = self.code_in(code_BKNV.to(dtype)) + self.code_ND
        x_BKSD = torch.cat([code_BKND, step_BKTD], dim=2)
        time_BKD = time_embedding(self.path.clock(t_BK), x_BKSD.shape[-1]).to(dtype)
        x_BKSD = self.time_mix(torch.cat([x_BKSD, time_BKD[:, :, None].expand_as(x_BKSD)], dim=-1))
        if context.unread is not None:
            x_BKSD = x_BKSD + context.unread.sum() * 0
        suffix = places[0].with_x(x_BKSD.flatten(1, 2))
        hidden = context.body(suffix, context.cache, arranged=places[1])
        out_BKSD = hidden.last(len(suffix)).unflatten(1, (K, -1))
        return self._join(self.code_out(out_BKSD[:, :, :N]), self.out(out_BKSD[:, :, N:], like.embodiment_B))
