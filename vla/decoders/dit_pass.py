"""One observation, denoised: what the evaluations of a call have in common is found once, before the first of them.

That is the places of all tokens and so the masks and rotary angles, the tokens that know no time, and, where the times are known ahead,
all that the network makes of time: an expert with adaptive norms reads their weights once a call instead of once an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla.backbones.base import Tokens, suffix_tokens
from vla.decoders.conditioning import Context
from vla.decoders.dit_time import time_embedding
from vla.decoders.expert import hide
from vla.types import ActionSpec

if TYPE_CHECKING:
    from vla.decoders.dit import DiTDecoder

Film = Callable[[Tensor], Tensor]
"""Noisy tokens (B, K, S, D) -> the same, modulated by something else than the context."""


@dataclass(frozen=True)
class _Shown:
    """Noise levels as the network sees them, None where it does not: (B or 1, times, K or 1, ...) each, or (B or 1, K or 1, ...) of one of
    the times. `mixed` into the actions, as a `token` before them, as the `condition` that norms and mixtures depend on, and the
    `modulations` that the norms make of it."""

    mixed: Tensor | None
    token: Tensor | None
    condition: Tensor | None
    modulations: tuple[Tensor, ...]

    def at(self, time: int) -> _Shown:
        one = lambda x: None if x is None else x[:, time]  # noqa: E731
        return _Shown(one(self.mixed), one(self.token), one(self.condition), tuple(x[:, time] for x in self.modulations))


class Pass:
    """The network of a decoder on one context: (B, K, T, A) noisy chunks at times (B, K) -> its output, of the same shape.

    `like`: which robots, and which numbers of a chunk exist. `dropped_BK`: samples that do not see the context. `grid`: times that it will
    be asked at, if they are known; then a call may name one by its place (`step`).
    """

    def __init__(
        self, net: DiTDecoder, context: Context, like: ActionSpec, dropped_BK: Tensor, film: Film | None, grid: Sequence[float] = ()
    ) -> None:
        self.net, self.context, self.like, self.film, self.dropped_BK = net, context, like, film, dropped_BK
        self.dtype = context.follows.x_BSD.dtype
        (B, K), config = dropped_BK.shape, net.config
        # What does not exist is 0 going in: a wider robot in the roster changes nothing for a narrow one.
        there_BTA = like.mask_BTA.any(-1, keepdim=True) if config.padded_width else like.mask_BTA
        self.there_B1TA, self.exists_B1T1 = there_BTA[:, None], like.mask_BTA.any(-1)[:, None, :, None]
        self.before, self.summary_BKD, self.after = self._still()
        led = [valid_BKL for _, valid_BKL in (*self.before, *self._timed_valid(), *self.after)]
        self.led = sum(valid_BKL.shape[2] for valid_BKL in led)
        valid_BKS = torch.cat([*led, net.fold.valid(like.mask_BTA)[:, None].expand(B, K, -1)], dim=2)
        self.suffix = self._places(valid_BKS)
        hides = net.null_D is not None and context.cache is not None
        self.cache = hide(context.cache, dropped_BK[:, 0]) if hides and context.cache is not None else context.cache
        self.arranged = context.body.arrange(self.suffix, self.cache)
        # Written on the device, number by number: what is copied there makes a captured call impossible (vla/capture.py).
        times = [torch.full((1, 1, 1), now, dtype=torch.float32, device=dropped_BK.device) for now in grid]
        self.planned = self._show(torch.cat(times, dim=1)) if times else None

    def __call__(self, x_BKTA: Tensor, t_BK: Tensor, step: int | None = None) -> Tensor:
        net, (B, K, T, A) = self.net, x_BKTA.shape
        shown = self._show(t_BK[:, None]).at(0) if step is None or self.planned is None else self.planned.at(step)
        x_BKTA = (x_BKTA * self.there_B1TA).to(self.dtype)
        # Steps that do not exist here are empty, so that sharing a token with a real one tells nothing.
        step_BKTD = (net.action_in(x_BKTA, self.like.embodiment_B) + net.step_TD) * self.exists_B1T1
        x_BKSD = net.fold.fold(step_BKTD)
        if net.time_mix is not None:
            assert shown.mixed is not None
            x_BKSD = net.time_mix(torch.cat([x_BKSD, shown.mixed[:, :, None].expand_as(x_BKSD)], dim=-1))
        if self.film is not None:
            x_BKSD = self.film(x_BKSD)
        if self.context.unread is not None:
            x_BKSD = x_BKSD + self.context.unread.sum() * 0
        timed = [] if shown.token is None else [shown.token[:, :, None]]
        parts = [*(x for x, _ in self.before), *timed, *(x for x, _ in self.after), x_BKSD]
        suffix = self.suffix.with_x(torch.cat([part.expand(B, K, *part.shape[2:]).to(self.dtype) for part in parts], dim=2).flatten(1, 2))
        condition_BKD = None if shown.condition is None else shown.condition.expand(B, K, -1)
        hidden = self.context.body(suffix, self.cache, condition_BKD, self.arranged, shown.modulations)
        out_BKSD = hidden.last(len(suffix)).unflatten(1, (K, -1))[:, :, self.led :]
        return net.out(net.fold.unfold(out_BKSD), self.like).view(B, K, T, A)

    def _still(self) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None, list[tuple[Tensor, Tensor]]]:
        """Tokens before the actions that know no time, and which are valid: those before the token that may, the summary of the context
        (B, K, D), and those after it."""
        net, (B, K) = self.net, self.dropped_BK.shape
        before, after, summary_BKD = [], [], None
        if net.state_in is not None:
            given = self.context.follows.given
            state_BFD = net.state_in(given["state_BFP"].to(self.dtype), self.like.embodiment_B)
            before.append((state_BFD[:, None], given["state_valid_BF"][:, None].expand(B, K, -1)))
        if self.context.summary_BD is not None:
            summary_BKD = self.context.summary_BD[:, None].expand(B, K, -1)
            if net.null_D is not None:
                summary_BKD = torch.where(self.dropped_BK[..., None], net.null_D.to(self.dtype), summary_BKD)
            if net.config.time == "mix":
                before.append((summary_BKD[:, :, None], self._always()))
        elif net.null_D is not None:
            after.append((net.null_D.expand(B, K, 1, -1), self.dropped_BK[:, :, None]))
        return before, summary_BKD, after

    def _timed_valid(self) -> list[tuple[None, Tensor]]:
        return [(None, self._always())] if self.net.config.time == "token" else []

    def _always(self) -> Tensor:
        return torch.ones_like(self.dropped_BK)[:, :, None]

    def _show(self, t: Tensor) -> _Shown:
        """Times (B or 1, times, K or 1)."""
        net, mixed, token = self.net, None, None
        if net.time_mix is not None:
            mixed = time_embedding(net.path.clock(t), net.conditioning.width).to(self.dtype)
        condition = None if net.time_in is None else net.shown_time(t).to(self.dtype)
        if net.config.time != "mix":
            assert condition is not None
            both = condition if self.summary_BKD is None else condition + self.summary_BKD[:, None]
            if net.config.time == "token":
                token = both
            else:
                condition = both
        return _Shown(mixed, token, condition, self.context.body.modulations(condition))

    def _places(self, valid_BKS: Tensor) -> Tokens:
        """A group per noise sample; the state is a block of its own before the rest, as in pi0. Without embeddings."""
        (B, K, S), context = valid_BKS.shape, self.context
        none_BS0 = context.follows.x_BSD.new_empty(B, K * S, 0)
        suffix = suffix_tokens(context.follows, none_BS0, causal=False, samples=K, valid_BS=valid_BKS.flatten(1))
        if self.net.state_in is None:
            return suffix
        after_S = (torch.arange(S, device=valid_BKS.device) >= context.follows.given["state_BFP"].shape[1]).long().repeat(K)
        return replace(suffix, block_BS=suffix.block_BS + after_S)
