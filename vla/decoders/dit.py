"""A transformer that denoises action chunks: *path* (flow or DDPM) x *conditioning* (pooled, cross-attention, per layer, in-context).

Pooled + DDPM is CogACT (Li et al. 2024), cross + flow is GR00T N1 (2025), per layer + flow is pi0 (Black et al. 2024), in-context + DDPM is
Dita (Hou et al. 2025). K noise samples per context share one pass over the prefix (CogACT's `repeated_diffusion_steps`, Mini-Diffuser):
each is a group of its own, so none sees another.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.backbones.base import Backbone, Tokens
from vla.bank import Bank
from vla.decoders.base import ActionDecoder, join, make_loss
from vla.decoders.conditioning import Build, Context, InContext
from vla.decoders.dit_pass import Film, Pass
from vla.decoders.dit_time import LevelMLP, PeriodMLP
from vla.decoders.fold import StepFold
from vla.decoders.heads import Linear
from vla.diffusion.base import Denoiser, Warm
from vla.diffusion.flow import Flow
from vla.diffusion.guide import guided
from vla.errors import UnknownName, UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Prior, Target

TIMES = ("mix", "token", "adaptive")
TIME_FEATURES = ("levels", "periods")
BALANCE_LEVELS = 64
"""Noise levels, drawn as training draws them, over which mixtures are kept in balance."""


@dataclass(frozen=True)
class DiT:
    """`samples_per_context`: K. `evaluations`: denoising steps when acting. `steps_per_token`: action steps that share a token.

    `time`: `mix` merges it with each action by an MLP (pi0); `token` puts it before the actions, added to the summary of the context if
    there is one (CogACT: c = t + z); `adaptive` lets the expert's norms depend on it (DiT, pi0.5, GR00T N1).
    `condition_dropout`: share of training samples whose context is replaced by a learned null token. `guidance`: weight w of
    classifier-free guidance, null + w (seen - null); 1 costs nothing (Ho, Salimans 2022; CogACT: dropout 0.1, w = 1.5).
    `state_in_suffix`: proprioception enters as tokens before the actions, which it does not see, instead of with the prefix (pi0).
    `time_features`: how a time that is not mixed in is shown: by `levels` (DiT's 256 sines of the noise level) or by `periods` (pi0's).
    `padded_width`: the network denoises at least so many numbers a step, those that a robot lacks being noise like the others, and 0 in the
    data (pi0: 32). Otherwise they are 0 all along.
    `experts`, `top_k`: MLPs chosen by the noise level; `balance_scale` weighs their load-balancing loss (MoDE). `head`:
    vla/decoders/heads.py.
    """

    kind: ClassVar[str] = "decoder.dit"
    path: Any = field(default_factory=Flow)
    conditioning: Any = field(default_factory=InContext)
    samples_per_context: int = 4
    evaluations: int = 5
    steps_per_token: int = 1
    time: str = "mix"
    condition_dropout: float = 0.0
    guidance: float = 1.0
    state_in_suffix: bool = False
    time_features: str = "levels"
    padded_width: int = 0
    experts: int = 1
    top_k: int = 1
    balance_scale: float = 0.01
    head: Any = field(default_factory=Linear)

    def build(self, width: int, roster: Roster) -> DiTDecoder:
        if self.time not in TIMES:
            raise UnknownName("way for time to enter", self.time, TIMES)
        if self.time_features not in TIME_FEATURES:
            raise UnknownName("way to show the time", self.time_features, TIME_FEATURES)
        if not 0 <= self.condition_dropout < 1:
            raise UserError(f"condition_dropout must be in [0, 1), not {self.condition_dropout}")
        if self.guidance != 1 and not self.condition_dropout:
            raise UserError("guidance needs a model that was trained without its context now and then; set condition_dropout (CogACT: 0.1)")
        return DiTDecoder(self, width, roster)


class DiTDecoder(ActionDecoder):
    """A token per noise sample and action step (or several steps); per-robot maps in and out."""

    def __init__(self, config: DiT, width: int, roster: Roster) -> None:
        super().__init__()
        self.config, self.horizon, self.action_width = config, roster.horizon, max(roster.action_width, config.padded_width)
        self.takes_state = config.state_in_suffix
        self.path = config.path.build()
        self.path.grid(config.evaluations)  # refuses here what it would refuse at the first call
        self.conditioning = config.conditioning.build(width, Build(config.time == "adaptive", config.experts, config.top_k))
        self.reads = self.conditioning.reads
        inner = self.conditioning.width
        self.fold = StepFold(roster.horizon, config.steps_per_token, inner, reads=True)
        self.action_in = Bank(len(roster), self.action_width, inner, axes=("A", None))
        mixes = config.time == "mix"
        self.time_mix = nn.Sequential(nn.Linear(2 * inner, inner), nn.SiLU(), nn.Linear(inner, inner)) if mixes else None
        self.roster_axes = {"step_TD": ("T", None)}
        self.step_TD = nn.Parameter(torch.randn(roster.horizon, inner) * 0.5)
        self.out = config.head.build(inner, replace(roster, action_width=self.action_width))
        time = PeriodMLP if config.time_features == "periods" else LevelMLP
        self.time_in = None if mixes and config.experts == 1 else time(inner)
        self.state_in = Bank(len(roster), roster.state_width, inner, axes=("P", None)) if config.state_in_suffix else None
        self.null_D = nn.Parameter(torch.randn(inner) * 0.02) if config.condition_dropout else None

    def bind(self, backbone: Backbone) -> None:
        self.conditioning.bind(backbone)

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        found = {"denoise": target.label_BTA.sum().float() * self.config.samples_per_context}
        if self.config.experts > 1:
            found["balance"] = target.label_BTA.any(-1).any(-1).sum().float()
        return found

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise, film: Film | None = None) -> Loss:
        B, K = len(prefix.x_BSD), self.config.samples_per_context
        T, A = self.horizon, self.action_width
        t_BK = self.path.times(noise, K)
        eps_BKTA = noise.normal("eps", K, T, A)
        data_BKTA = self._pad(target.action_BTA)[:, None].expand(B, K, T, A)
        noisy, want = self.path.corrupt(data_BKTA.reshape(B * K, T, A), eps_BKTA.view(B * K, T, A), t_BK.flatten())
        context = self.conditioning.prepare(backbone, prefix)
        # Unlabelled steps (past the end of an episode) do not exist here: what stands there must move nothing.
        labelled = ActionSpec(target.spec.embodiment_B, target.label_BTA)
        pred_BKTA = Pass(self, context, labelled, self._dropped(context, noise), film)(noisy.view(B, K, T, A), t_BK)
        error_BKTA = (pred_BKTA.float() - want.view(B, K, T, A)).square()[..., : target.label_BTA.shape[2]]
        parts = {"denoise": (error_BKTA, target.label_BTA[:, None].expand_as(error_BKTA))}
        if self.config.experts > 1:
            # Over all noise levels rather than those of this batch: the same for every sample, whatever its neighbours.
            time_N = self.path.times(Noise(torch.zeros(1, dtype=torch.int64, device=t_BK.device)), BALANCE_LEVELS)[0]
            balance = self.conditioning.expert.balance(self.shown_time(time_N))
            parts["balance"] = (balance.expand(B), target.label_BTA.any(-1).any(-1))
        scale = {"denoise": 1.0, "balance": self.config.balance_scale}
        return make_loss(parts, {name: scale[name] for name in parts})

    def sample(
        self,
        backbone: Backbone,
        prefix: Tokens,
        like: ActionSpec,
        noise: Noise,
        warm: Warm | None = None,
        film: Film | None = None,
        prior: Prior | None = None,
    ) -> Tensor:
        """`warm`: a guess to start from instead of noise, such as the rest of the previous chunk. `prior`: actions to be pulled to."""
        grid = self.path.grid(self.config.evaluations, 0.0 if warm is None else warm.t)
        predict = self._denoiser(backbone, prefix, like, film, grid).predict
        if prior is not None:
            predict = guided(self.path, predict, self._pad(prior.action_BTA), self._pad(prior.weight_BT[..., None] * like.mask_BTA))
        eps_BTA = noise.normal("eps", self.horizon, self.action_width)
        if warm is not None:
            warm = replace(warm, guess_BTA=self._pad(warm.guess_BTA))
        found_BTA = self.path.solve(predict, eps_BTA, self.config.evaluations, warm=warm, noise=noise)
        return found_BTA[..., : like.mask_BTA.shape[2]] * like.mask_BTA

    def denoiser(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, film: Film | None = None) -> Denoiser:
        """With guidance from the null context, if the configuration asks for it."""
        if self.action_width > like.mask_BTA.shape[2]:
            raise UserError(f"it denoises {self.action_width} numbers a step, more than its robots have: it cannot be composed with others")
        return self._denoiser(backbone, prefix, like, film)

    def _denoiser(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, film: Film | None, grid: Sequence[float] = ()) -> Denoiser:
        """`grid`: the times that it will be asked at, one after the other, where that is certain."""
        context = self.conditioning.prepare(backbone, prefix)
        seen_B1 = torch.zeros_like(like.embodiment_B[:, None], dtype=torch.bool)
        guides = self.config.guidance != 1
        # Without a cache to hide, what sees the context and what does not are two groups of one pass, which reads the weights once.
        asks = [torch.cat([seen_B1, ~seen_B1], dim=1)] if guides and context.cache is None else [seen_B1, ~seen_B1][: 1 + guides]
        passes, turns = [Pass(self, context, like, dropped_BK, film, grid) for dropped_BK in asks], itertools.count()

        def predict(x_BTA: Tensor, t_B: Tensor) -> Tensor:
            step = next(turns) if len(grid) else None
            found = []
            for one in passes:
                B, K = one.dropped_BK.shape
                found.append(one(x_BTA[:, None].expand(B, K, -1, -1), t_B[:, None].expand(B, K), step).float())
            out_BKTA = torch.cat(found, dim=1)
            if not guides:
                return out_BKTA[:, 0]
            seen_BTA, unseen_BTA = out_BKTA.unbind(1)
            return unseen_BTA + self.config.guidance * (seen_BTA - unseen_BTA)

        return Denoiser(predict, self.path, self.config.evaluations)

    def resume(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior, film: Film | None = None) -> Tensor:
        """Guided towards the prior (vla/diffusion/guide.py)."""
        found_BTA = self.sample(backbone, prefix, like, noise, warm=Warm.of(prior), film=film, prior=prior)
        return join(found_BTA, like, prior, soft=False)

    def _pad(self, action_BTA: Tensor) -> Tensor:
        """Numbers that no robot of the roster has, as zeros."""
        return nn.functional.pad(action_BTA, (0, self.action_width - action_BTA.shape[2]))

    def _dropped(self, context: Context, noise: Noise) -> Tensor:
        """bool (B, K): which noise samples learn without their context. A cache is one for all K samples, so they lose it together."""
        K = self.config.samples_per_context
        dropped_BK = noise.uniform("drop", K) < self.config.condition_dropout
        return dropped_BK if context.cache is None else dropped_BK[:, :1].expand(-1, K)

    def shown_time(self, t: Tensor) -> Tensor:
        """Times (...,) -> (..., width), where they are not mixed into the actions."""
        assert self.time_in is not None
        return self.time_in(self.path.clock(t) if self.config.time_features == "periods" else self.path.level(t))
