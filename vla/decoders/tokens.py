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
    """`codec`: how a chunk becomes codes. `temperature`: 0 takes the likeliest code. `hide`: share of the shown codes that training
    replaces by the start id. Later codes follow from earlier ones so easily that little is learned from the image otherwise."""

    kind: ClassVar[str] = "decoder.tokens"
    codec: Any = field(default_factory=Bins)
    temperature: float = 0.0
    hide: float = 0.0

    def build(self, width: int, roster: Roster) -> TokensDecoder:
        return TokensDecoder(self, width, roster)


class CodeTokens(nn.Module):
    """Codes as suffix embeddings, and suffix states as logits; `extra` ids after the vocabulary are for start or mask."""

    def __init__(self, codec: Codec, width: int, roster: Roster, extra: int) -> None:
        super().__init__()
        self.codec = codec
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
        return self.codec.decode(code_BN, like.mask_BTA)


class TokensDecoder(ActionDecoder):
    """A causal suffix: start, c_0, ..., c_{N-2} predict c_0, ..., c_{N-1}.

    A place exists iff the code it predicts does, and shows the last code before it that exists: so a narrow robot's sequence is the
    same in a roster with wider ones.
    """

    def __init__(self, config: AutoregressiveTokens, width: int, roster: Roster) -> None:
        super().__init__()
        self.temperature, self.hide = config.temperature, config.hide
        self.codes = CodeTokens(config.codec.build(), width, roster, extra=1)
        self.start_id = self.codes.codec.vocabulary

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"cross_entropy": self.codes.codec.mask(target.label_BTA).sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Cross-entropy of every code given those before it (teacher forcing), some of them hidden."""
        code_BN, exists_BN, label_BN = self.codes.encode(target)
        shown_BN = self._shown(code_BN, exists_BN)
        if self.hide > 0:
            shown_BN = shown_BN.masked_fill(noise.uniform("hide", shown_BN.shape[1]) < self.hide, self.start_id)
        x_BND = self.codes.embed(shown_BN).to(prefix.x_BSD.dtype)
        suffix = suffix_tokens(prefix, x_BND, causal=True, valid_BS=exists_BN)
        logits_BNC = self.codes.head(backbone(prefix.cat(suffix)).last(len(suffix)))
        error_BN = F.cross_entropy(logits_BNC.float().transpose(1, 2), code_BN, reduction="none")
        return make_loss({"cross_entropy": (error_BN, label_BN)}, {"cross_entropy": 1.0})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        """One code at a time after the cached prefix."""
        exists_BN = self.codes.codec.mask(like.mask_BTA)
        B, N = exists_BN.shape
        empty_BND = prefix.x_BSD.new_zeros(B, N, prefix.x_BSD.shape[-1])
        places = suffix_tokens(prefix, empty_BND, causal=True, valid_BS=exists_BN)
        draws_BNC = noise.uniform("tokens", N, self.codes.codec.vocabulary) if self.temperature > 0 else None
        hidden, shown_B1, found = backbone(prefix), torch.full((B, 1), self.start_id, device=exists_BN.device), []
        for n in range(N):
            x_B1D = (self.codes.code_in(shown_B1) + self.codes.slot_ND[n]).to(prefix.x_BSD.dtype)
            hidden = backbone(places.slice(n, n + 1).with_x(x_B1D), cache=hidden)
            logits_BC = self.codes.head(hidden.last(1))[:, 0].float()
            if draws_BNC is not None:  # Gumbel-max: a draw from softmax(logits / temperature)
                logits_BC = logits_BC - self.temperature * torch.log(-torch.log(draws_BNC[:, n]))
            found.append(logits_BC.argmax(-1, keepdim=True))
            shown_B1 = torch.where(exists_BN[:, n : n + 1], found[-1], shown_B1)
        return self.codes.decode(torch.cat(found, dim=1), like)

    def _shown(self, code_BN: Tensor, exists_BN: Tensor) -> Tensor:
        """What each place shows, int64 (B, N): the last existing code before it, or the start id."""
        place_N = torch.arange(code_BN.shape[1], device=code_BN.device)
        last_BN = torch.where(exists_BN, place_N, -1).cummax(dim=1).values
        known_BN = code_BN.gather(1, last_BN.clamp(min=0)).masked_fill(last_BN < 0, self.start_id)
        return torch.cat([torch.full_like(code_BN[:, :1], self.start_id), known_BN[:, :-1]], dim=1)
