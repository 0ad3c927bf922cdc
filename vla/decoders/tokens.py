"""Actions as tokens, one after the other (RT-2, Brohan et al. 2023; OpenVLA, Kim et al. 2024): cross-entropy over a codec's codes.

The vocabulary head is restricted to the action codes, so a decoded chunk is always a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Backbone, Tokens, suffix_tokens
from vla.codecs.base import Codec
from vla.codecs.bins import Bins
from vla.decoders.base import ActionDecoder, make_loss
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target


@dataclass(frozen=True)
class AutoregressiveTokens:
    """`codec`: how a chunk becomes codes. `temperature`: 0 takes the likeliest code."""

    kind: ClassVar[str] = "decoder.tokens"
    codec: Any = field(default_factory=Bins)
    temperature: float = 0.0

    def build(self, width: int, roster: Roster) -> TokensDecoder:
        return TokensDecoder(self, width, roster)


class CodeTokens(nn.Module):
    """Codes as suffix embeddings, and suffix states as logits; `extra` ids after the vocabulary are for start or mask."""

    def __init__(self, codec: Codec, width: int, roster: Roster, extra: int) -> None:
        super().__init__()
        self.codec = codec
        self.horizon, self.action_width = roster.horizon, roster.action_width
        self.length = codec.length(roster.horizon, roster.action_width)
        self.code_in = nn.Embedding(codec.vocabulary + extra, width)
        self.slot_ND = nn.Parameter(torch.randn(self.length, width) * 0.5)
        self.roster_axes = {"slot_ND": codec.slot_axes}
        self.head = nn.Linear(width, codec.vocabulary)
        nn.init.normal_(self.code_in.weight, std=0.5)

    def embed(self, id_BN: Tensor) -> Tensor:
        """int64 (B, N) -> (B, N, D), each code with its place."""
        return self.code_in(id_BN) + self.slot_ND[: id_BN.shape[1]]

    def encode(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """-> codes int64, which exist, and which are labelled: each (B, N)."""
        return (
            self.codec.encode(target.action_BTA),
            self.codec.mask(target.spec.mask_BTA),
            self.codec.mask(target.label_BTA),
        )

    def decode(self, code_BN: Tensor, like: ActionSpec) -> Tensor:
        return self.codec.decode(code_BN, self.horizon, self.action_width) * like.mask_BTA


class TokensDecoder(ActionDecoder):
    """A causal suffix: start, c_0, ..., c_{N-2} predict c_0, ..., c_{N-1}."""

    def __init__(self, config: AutoregressiveTokens, width: int, roster: Roster) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.codes = CodeTokens(config.codec.build(), width, roster, extra=1)
        self.start_id = self.codes.codec.vocabulary

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"cross_entropy": self.codes.codec.mask(target.label_BTA).sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        code_BN, exists_BN, label_BN = self.codes.encode(target)
        start_B1 = torch.full_like(code_BN[:, :1], self.start_id)
        x_BND = self.codes.embed(torch.cat([start_B1, code_BN[:, :-1]], dim=1)).to(prefix.x_BSD.dtype)
        suffix = suffix_tokens(prefix, x_BND, causal=True, valid_BS=_shifted(exists_BN))
        logits_BNC = self.codes.head(backbone(prefix.cat(suffix)).last(len(suffix)))
        error_BN = F.cross_entropy(logits_BNC.float().transpose(1, 2), code_BN, reduction="none")
        return make_loss({"cross_entropy": (error_BN, label_BN)}, {"cross_entropy": 1.0})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        exists_BN = self.codes.codec.mask(like.mask_BTA)
        B, N = exists_BN.shape
        id_BN = torch.full((B, N + 1), self.start_id, device=exists_BN.device)
        places = suffix_tokens(prefix, prefix.x_BSD.new_zeros(B, N, prefix.x_BSD.shape[-1]), causal=True, valid_BS=_shifted(exists_BN))
        draws_BNC = noise.uniform("tokens", N, self.codes.codec.vocabulary) if self.temperature > 0 else None
        hidden = backbone(prefix)
        for n in range(N):
            x_B1D = (self.codes.code_in(id_BN[:, n : n + 1]) + self.codes.slot_ND[n]).to(prefix.x_BSD.dtype)
            hidden = backbone(places.slice(n, n + 1).with_x(x_B1D), cache=hidden)
            logits_BC = self.codes.head(hidden.last(1))[:, 0].float()
            if draws_BNC is not None:  # Gumbel-max: a draw from softmax(logits / temperature)
                logits_BC = logits_BC - self.temperature * torch.log(-torch.log(draws_BNC[:, n]))
            id_BN[:, n + 1] = logits_BC.argmax(-1)
        return self.codes.decode(id_BN[:, 1:], like)


def _shifted(exists_BN: Tensor) -> Tensor:
    """Which inputs exist: the start always, then each code but the last."""
    return torch.cat([torch.ones_like(exists_BN[:, :1]), exists_BN[:, :-1]], dim=1)
