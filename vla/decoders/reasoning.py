"""Reason in words, then act (DiffusionVLA, Wen et al. 2024): next-token text, whose hidden states modulate a diffusion head.

The backbone says the reasoning after the prefix, token by token. The mean of its final states over what was said scales and shifts the
noisy action tokens (FiLM, Perez et al. 2018); nothing said changes nothing. In training the text is that of the data, in acting its own.
Actions without a text are learned as what is done after saying nothing: their first token is the end, and so it is in acting.
Deviation: text is bytes with an embedding and a head of their own, not the language model's vocabulary, so that any backbone can reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Backbone, Tokens, suffix_tokens
from vla.backbones.remembered import Reads
from vla.decoders.base import ActionDecoder, with_evaluations
from vla.decoders.dit import DiT, DiTDecoder, Film
from vla.decoders.joint import OncePerPrefix
from vla.noise import Noise
from vla.reasoning import END, NONE, VOCABULARY, text_of
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Prior, Target, WeightedSum


@dataclass(frozen=True)
class ReasonThenAct:
    """`action`: the denoiser. `length`: bytes of reasoning at most. `text_scale`: of the next-token loss beside the denoiser's."""

    kind: ClassVar[str] = "decoder.reason_then_act"
    action: DiT = field(default_factory=DiT)
    length: int = 64
    text_scale: float = 1.0

    def build(self, width: int, roster: Roster) -> ReasoningDecoder:
        return ReasoningDecoder(self, width, roster)

    def with_evaluations(self, count: int) -> ReasonThenAct:
        """Of the denoiser."""
        return replace(self, action=with_evaluations(self.action, count))


class ReasoningDecoder(ActionDecoder):
    """A causal suffix of text, then the denoiser's own tokens, which see the text by FiLM alone."""

    def __init__(self, config: ReasonThenAct, width: int, roster: Roster) -> None:
        super().__init__()
        self.config, self.text_tokens = config, config.length
        self.action: DiTDecoder = config.action.build(width, roster)
        self.takes_state, self.reads = self.action.takes_state, self.action.reads | Reads(layers=())
        self.text_in = nn.Embedding(VOCABULARY, width)
        self.head = nn.Linear(width, VOCABULARY)
        self.film = nn.Linear(width, 2 * self.action.conditioning.width, bias=False)
        nn.init.normal_(self.text_in.weight, std=0.5)
        nn.init.zeros_(self.film.weight)  # words change nothing before it is learned what they change

    def bind(self, backbone: Backbone) -> None:
        self.action.bind(backbone)

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {**self.action.weights(target, noise), "text": (_text(target) != NONE).sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        shared: Any = OncePerPrefix(backbone, prefix)
        id_BL = _text(target)
        said_BL = id_BL != NONE
        shown_BL = F.pad(id_BL, (1, 0), value=END)[:, :-1]  # END also starts
        suffix = suffix_tokens(shared.prefix, self.text_in(shown_BL).to(prefix.x_BSD.dtype), causal=True, valid_BS=said_BL)
        state_BLD = shared(shared.prefix.cat(suffix)).last(id_BL.shape[1])
        error_BL = F.cross_entropy(self.head(state_BLD).float().transpose(1, 2), id_BL, reduction="none")
        loss = self.action.loss(shared, shared.prefix, target, noise, film=self._film(state_BLD, id_BL))
        text = WeightedSum((error_BL * said_BL).sum(), said_BL.sum().to(error_BL.dtype))
        return replace(loss, parts={**loss.parts, "text": text}, scale={**loss.scale, "text": self.config.text_scale})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        id_BL, state_BLD, _ = self._say(backbone, prefix)
        return self.action.sample(backbone, prefix, like, noise, film=self._film(state_BLD, id_BL))

    def resume(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior) -> Tensor:
        id_BL, state_BLD, _ = self._say(backbone, prefix)
        return self.action.resume(backbone, prefix, like, noise, prior, film=self._film(state_BLD, id_BL))

    def say(self, backbone: Backbone, prefix: Tokens) -> list[str]:
        """The reasoning of each row, for people."""
        return [text_of(row) for row in self._say(backbone, prefix)[0].tolist()]

    def _say(self, backbone: Backbone, prefix: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest ids (B, L), the states that led to them, and which places were reached."""
        B, L = len(prefix.x_BSD), self.config.length
        hidden = backbone(prefix)
        places = suffix_tokens(prefix, prefix.x_BSD.new_zeros(B, L, prefix.x_BSD.shape[-1]), causal=True)
        shown_B1 = torch.full((B, 1), END, device=prefix.valid_BS.device)
        going_B1, ids, states, reached = torch.ones_like(shown_B1, dtype=torch.bool), [], [], []
        for n in range(L):
            x_B1D = self.text_in(shown_B1).to(prefix.x_BSD.dtype)
            hidden = backbone(places.slice(n, n + 1).with_x(x_B1D, going_B1), cache=hidden)
            logits_B1C = self.head(hidden.last(1)).float()
            logits_B1C[..., NONE].fill_(-torch.inf)
            shown_B1 = logits_B1C.argmax(-1).masked_fill(~going_B1, NONE)
            ids.append(shown_B1)
            states.append(hidden.last(1))
            reached.append(going_B1)
            going_B1 = going_B1 & (shown_B1 != END)
        return torch.cat(ids, dim=1), torch.cat(states, dim=1), torch.cat(reached, dim=1)

    def _film(self, state_BLD: Tensor, id_BL: Tensor) -> Film:
        """By the states that led to the words and to their end; by none where the end came first."""
        spoken_BL = (id_BL != NONE) & (id_BL[:, :1] != END)
        weight_BL1 = spoken_BL[..., None].to(state_BLD.dtype)
        mean_BD = (state_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)
        scale_BD, shift_BD = self.film(mean_BD).chunk(2, dim=-1)
        return lambda x_BKSD: x_BKSD * (1 + scale_BD[:, None, None]) + shift_BD[:, None, None]


def _text(target: Target) -> Tensor:
    """int64 (B, L): what each row says; END alone where it acts without a text, NONE where nothing is known."""
    assert target.text_BL is not None, "the collate function of a reasoning decoder gives text"
    first_B1 = target.text_BL[:, :1]
    acts_B1 = target.label_BTA.flatten(1).any(1, keepdim=True)
    return torch.cat([first_B1.masked_fill((first_B1 == NONE) & acts_B1, END), target.text_BL[:, 1:]], dim=1)
