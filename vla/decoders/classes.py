"""Parallel decoding into classes (OpenVLA-OFT, Kim et al. 2025, section IV): every code of a chunk in one bidirectional pass.

All places show the same id, so the codes are independent of each other given the observation: the cheapest token decoder, and blind to
modes. Masked diffusion with one evaluation decodes alike; what differs is that here training never shows a code either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from vla.backbones.base import Backbone, Hidden, Tokens, suffix_tokens
from vla.backbones.remembered import Reads
from vla.codecs.bins import Bins
from vla.decoders.base import ActionDecoder, make_loss
from vla.decoders.tokens import CodeTokens
from vla.errors import UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target


@dataclass(frozen=True)
class ParallelClasses:
    """`codec`: how a chunk becomes codes, of a number that the robot alone decides."""

    kind: ClassVar[str] = "decoder.classes"
    codec: Any = field(default_factory=Bins)

    def build(self, width: int, roster: Roster) -> ClassesDecoder:
        return ClassesDecoder(self, width, roster)


class ClassesDecoder(ActionDecoder):
    """A bidirectional suffix of N equal ids at N places. Deterministic: the noise is unused."""

    reads = Reads(layers=())

    def __init__(self, config: ParallelClasses, width: int, roster: Roster) -> None:
        super().__init__()
        self.codes = CodeTokens(config.codec.build(roster), width, roster, extra=1)
        self.fits = self.codes.codec.fits
        if not self.codes.codec.fixed:
            raise UserError(f"{config.codec.kind} has chunks of any number of codes, which no single pass can place; decode it one by one")
        self.hidden_id = self.codes.codec.vocabulary

    @property
    def draws(self) -> bool:
        return False

    def fit(self, target: Target) -> None:
        self.codes.fit(target)

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"cross_entropy": self.codes.labels(target).sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Cross-entropy of every labelled code."""
        code_BN, exists_BN, label_BN = self.codes.encode(target)
        logits_BNC = self._logits(backbone, prefix, exists_BN, None)
        error_BN = F.cross_entropy(logits_BNC.transpose(1, 2), code_BN, reduction="none")
        return make_loss({"cross_entropy": (error_BN, label_BN)}, {"cross_entropy": 1.0})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        """The likeliest code of every place."""
        empty_BN = like.embodiment_B.new_zeros(len(like.mask_BTA), self.codes.length)
        logits_BNC = self._logits(backbone, prefix, self.codes.codec.exists(empty_BN, like), backbone(prefix))
        return self.codes.decode(logits_BNC.argmax(-1), like)

    def _logits(self, backbone: Backbone, prefix: Tokens, exists_BN: Tensor, cache: Hidden | None) -> Tensor:
        id_BN = exists_BN.long() * 0 + self.hidden_id
        suffix = suffix_tokens(prefix, self.codes.embed(id_BN).to(prefix.x_BSD.dtype), causal=False, valid_BS=exists_BN)
        hidden = backbone(prefix.cat(suffix)) if cache is None else backbone(suffix, cache=cache)
        return self.codes.logits(hidden.last(len(suffix)))
