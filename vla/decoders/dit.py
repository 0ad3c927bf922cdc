"""A transformer that denoises action chunks: *path* (flow or DDPM) x *conditioning* (pooled, cross-attention, per layer, in-context).

Pooled + DDPM is CogACT (Li et al. 2024), cross + flow is GR00T N1 (2025), per layer + flow is pi0 (Black et al. 2024), in-context + DDPM is
Dita (Hou et al. 2025). K noise samples per context share one pass over the prefix (CogACT's `repeated_diffusion_steps`, Mini-Diffuser):
each is a group of its own, so none sees another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.backbones.base import Backbone, Tokens, suffix_tokens
from vla.bank import Bank
from vla.decoders.base import ActionDecoder, join, make_loss
from vla.decoders.conditioning import Build, Context, InContext
from vla.decoders.dit_time import LevelMLP, PeriodMLP, time_embedding
from vla.decoders.expert import hide
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
Film = Callable[[Tensor], Tensor]
"""Noisy tokens (B, K, S, D) -> the same, modulated by something else than the context."""

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
        pred_BKTA = self._predict(context, noisy.view(B, K, T, A), t_BK, labelled, self._dropped(context, noise), film)
        error_BKTA = (pred_BKTA.float() - want.view(B, K, T, A)).square()[..., : target.label_BTA.shape[2]]
        parts = {"denoise": (error_BKTA, target.label_BTA[:, None].expand_as(error_BKTA))}
        if self.config.experts > 1:
            # Over all noise levels rather than those of this batch: the same for every sample, whatever its neighbours.
            time_N = self.path.times(Noise(torch.zeros(1, dtype=torch.int64, device=t_BK.device)), BALANCE_LEVELS)[0]
            balance = self.conditioning.expert.balance(self._time(time_N))
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
        predict = self._denoiser(backbone, prefix, like, film).predict
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

    def _denoiser(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, film: Film | None) -> Denoiser:
        context = self.conditioning.prepare(backbone, prefix)
        rows_B1 = like.embodiment_B[:, None]
        seen, unseen = torch.zeros_like(rows_B1, dtype=torch.bool), torch.ones_like(rows_B1, dtype=torch.bool)

        def run(x_BTA: Tensor, t_B: Tensor, dropped_BK: Tensor) -> Tensor:
            return self._predict(context, x_BTA[:, None], t_B[:, None], like, dropped_BK, film)[:, 0].float()

        def predict(x_BTA: Tensor, t_B: Tensor) -> Tensor:
            found_BTA = run(x_BTA, t_B, seen)
            if self.config.guidance == 1:
                return found_BTA
            null_BTA = run(x_BTA, t_B, unseen)
            return null_BTA + self.config.guidance * (found_BTA - null_BTA)

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

    def _predict(self, context: Context, x_BKTA: Tensor, t_BK: Tensor, like: ActionSpec, dropped_BK: Tensor, film: Film | None) -> Tensor:
        B, K, T, A = x_BKTA.shape
        dtype = context.follows.x_BSD.dtype
        # What does not exist is 0 going in: a wider robot in the roster changes nothing for a narrow one.
        there_BTA = like.mask_BTA.any(-1, keepdim=True) if self.config.padded_width else like.mask_BTA
        x_BKTA = (x_BKTA * there_BTA[:, None]).to(dtype)
        # Steps that do not exist here are empty, so that sharing a token with a real one tells nothing.
        step_BKTD = (self.action_in(x_BKTA, like.embodiment_B) + self.step_TD) * like.mask_BTA.any(-1)[:, None, :, None]
        x_BKSD = self.fold.fold(step_BKTD)
        if self.time_mix is not None:
            time_BKD = time_embedding(self.path.clock(t_BK), x_BKSD.shape[-1]).to(dtype)
            x_BKSD = self.time_mix(torch.cat([x_BKSD, time_BKD[:, :, None].expand_as(x_BKSD)], dim=-1))
        if film is not None:
            x_BKSD = film(x_BKSD)
        if context.unread is not None:
            x_BKSD = x_BKSD + context.unread.sum() * 0
        lead_BKLD, lead_valid_BKL, condition_BKD = self._lead(context, t_BK, like, dropped_BK, dtype)
        valid_BKS = torch.cat([lead_valid_BKL, self.fold.valid(like.mask_BTA)[:, None].expand(B, K, -1)], dim=2)
        suffix = self._suffix(context, torch.cat([lead_BKLD, x_BKSD], dim=2), valid_BKS)
        cache = context.cache if self.null_D is None or context.cache is None else hide(context.cache, dropped_BK[:, 0])
        hidden = context.body(suffix, cache, condition_BKD)
        out_BKSD = hidden.last(len(suffix)).unflatten(1, (K, -1))[:, :, lead_BKLD.shape[2] :]
        return self.out(self.fold.unfold(out_BKSD), like).view(B, K, T, A)

    def _lead(
        self, context: Context, t_BK: Tensor, like: ActionSpec, dropped_BK: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tokens before the actions of each noise sample (state, then time, summary or null), which are valid, and the condition."""
        B, K = t_BK.shape
        tokens, valid = [], []

        def lead(x: Tensor, valid_BKL: Tensor) -> None:
            tokens.append(x.expand(B, K, *x.shape[2:]).to(dtype))
            valid.append(valid_BKL.expand(B, K, x.shape[2]))

        if self.state_in is not None:
            state_BFP, state_valid_BF = context.follows.given["state_BFP"], context.follows.given["state_valid_BF"]
            lead(self.state_in(state_BFP.to(dtype), like.embodiment_B)[:, None], state_valid_BF[:, None])
        summary_BKD = None
        if context.summary_BD is not None:
            summary_BKD = context.summary_BD[:, None].expand(B, K, -1)
            if self.null_D is not None:
                summary_BKD = torch.where(dropped_BK[..., None], self.null_D.to(dtype), summary_BKD)
        time_BKD = None if self.time_in is None else self._time(t_BK).to(dtype)
        condition_BKD, always = time_BKD, torch.ones_like(dropped_BK)[:, :, None]
        if self.config.time == "token":
            assert time_BKD is not None
            lead((time_BKD if summary_BKD is None else time_BKD + summary_BKD)[:, :, None], always)
        elif summary_BKD is not None and self.config.time == "adaptive":
            assert time_BKD is not None
            condition_BKD = time_BKD + summary_BKD
        elif summary_BKD is not None:
            lead(summary_BKD[:, :, None], always)
        if self.null_D is not None and summary_BKD is None:
            lead(self.null_D.expand(B, K, 1, -1), dropped_BK[:, :, None])
        if not tokens:
            return t_BK.new_zeros(B, K, 0, self.step_TD.shape[-1], dtype=dtype), always[:, :, :0], condition_BKD
        return torch.cat(tokens, dim=2), torch.cat(valid, dim=2), condition_BKD

    def _time(self, t: Tensor) -> Tensor:
        """Times (...,) -> (..., width), where they are not mixed into the actions."""
        assert self.time_in is not None
        return self.time_in(self.path.clock(t) if self.config.time_features == "periods" else self.path.level(t))

    def _suffix(self, context: Context, x_BKSD: Tensor, valid_BKS: Tensor) -> Tokens:
        """A group per noise sample; the state is a block of its own before the rest, as in pi0."""
        K, S = valid_BKS.shape[1:]
        suffix = suffix_tokens(context.follows, x_BKSD.flatten(1, 2), causal=False, samples=K, valid_BS=valid_BKS.flatten(1))
        if self.state_in is None:
            return suffix
        after_S = (torch.arange(S, device=x_BKSD.device) >= context.follows.given["state_BFP"].shape[1]).long().repeat(K)
        return replace(suffix, block_BS=suffix.block_BS + after_S)
