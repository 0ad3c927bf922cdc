"""Discrete diffusion over action tokens (MaskGIT, Chang et al. 2022; Discrete Diffusion VLA, Liang et al. 2025).

Training hides a share cos(pi r / 2), r uniform, of a chunk's codes and predicts them in one bidirectional pass; the mean share is 2/pi.
Decoding starts with all hidden and, over T evaluations, keeps the most confident: easy numbers first. The *lowest* confidence stays hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Backbone, Hidden, Tokens, suffix_tokens
from vla.backbones.remembered import Reads
from vla.codecs.bins import Bins
from vla.decoders.base import ActionDecoder, join, make_loss
from vla.decoders.tokens import CodeTokens
from vla.decoders.whole import one_ahead
from vla.errors import UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Prior, Target


@dataclass(frozen=True)
class MaskedDiffusion:
    """`evaluations`: forward passes per chunk (the paper: 12). `temperature`: of the Gumbel noise on confidences; 0 is greedy.

    `remask`: secondary re-masking. A code that was kept is hidden again, and chosen anew, once its log-probability given the codes
    found since has fallen by more than this many nats below what it was kept with; None never does. (Discrete Diffusion VLA, section
    3.4, has the idea; its thresholds are not published. 1.0, a fall to e^-1 of the probability, is ours.) `whole`: prefix and codes are one
    sequence, as published there (vla/decoders/whole.py): every evaluation runs all of it, and the prefix's states cannot be shared.
    """

    kind: ClassVar[str] = "decoder.masked"
    codec: Any = field(default_factory=Bins)
    evaluations: int = 12
    temperature: float = 0.0
    remask: float | None = None
    whole: bool = False

    def build(self, width: int, roster: Roster) -> MaskedDecoder:
        if self.evaluations < 1 or (self.remask is not None and self.remask <= 0):
            raise UserError(f"masked diffusion needs evaluations >= 1 and remask > 0; got {self.evaluations} and {self.remask}")
        return MaskedDecoder(self, width, roster)


class MaskedDecoder(ActionDecoder):
    """One bidirectional suffix of N codes, some of them the mask id; the prefix runs once per chunk, unless the two are one sequence."""

    reads = Reads(layers=())

    def __init__(self, config: MaskedDiffusion, width: int, roster: Roster) -> None:
        super().__init__()
        self.config = config
        self.codes = CodeTokens(config.codec.build(roster), width, roster, extra=1)
        self.fits = self.codes.codec.fits
        if not self.codes.codec.fixed:
            raise UserError(f"{config.codec.kind} has chunks of any number of codes, which cannot be unmasked; decode it one by one")
        self.mask_id = self.codes.codec.vocabulary
        self.shares_prefix = not config.whole
        self.closing_1D = nn.Parameter(torch.randn(1, width) * 0.5) if config.whole else None

    @property
    def draws(self) -> bool:
        return self.config.temperature > 0

    def fit(self, target: Target) -> None:
        self.codes.fit(target)

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"cross_entropy": draw_hidden(self.codes.labels(target), noise).sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Cross-entropy of the hidden codes, the ratio drawn per sample from the cosine schedule (MaskGIT, section 3.1)."""
        code_BN, exists_BN, label_BN = self.codes.encode(target)
        hidden_BN = draw_hidden(label_BN, noise)
        # Codes without a label (past the end of an episode) are never shown: at decoding time nobody could know them.
        id_BN = code_BN.masked_fill(hidden_BN | ~label_BN, self.mask_id)
        logits_BNC = self._logits(backbone, prefix, id_BN, exists_BN, joint=True)
        error_BN = F.cross_entropy(logits_BNC.transpose(1, 2), code_BN, reduction="none")
        return make_loss({"cross_entropy": (error_BN, hidden_BN)}, {"cross_entropy": 1.0})

    def resume(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior) -> Tensor:
        """In-filling: the codes that the prior decides are shown from the start. A codec of whole chunks has none, and is mixed."""
        if self.codes.codec.whole:
            return super().resume(backbone, prefix, like, noise, prior)
        found_BTA = self.sample(backbone, prefix, like, noise, self.codes.given(prior, like))
        return join(found_BTA, like, prior, soft=False)

    def sample(
        self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, given: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Starts from all codes hidden but those that are `given` (codes (B, N), and which); every evaluation keeps the most confident and
        hides the rest again."""
        codec, T = self.codes.codec, self.config.evaluations
        id_BN = like.mask_BTA.new_full((len(like.mask_BTA), self.codes.length), self.mask_id, dtype=torch.int64)
        exists_BN = codec.exists(id_BN, like)
        cache = None if self.config.whole else backbone(prefix)
        kept_BN = torch.full(exists_BN.shape, -math.inf, device=exists_BN.device)
        open_BN = exists_BN
        if given is not None:
            id_BN, open_BN = torch.where(given[1], given[0], id_BN), exists_BN & ~given[1]
        for step in range(T):
            hidden_BN = id_BN == self.mask_id
            logits_BNC = self._logits(backbone, prefix, id_BN, exists_BN, cache=cache)
            if self.config.remask is not None and 0 < step < T - 1:
                fallen_BN = kept_BN - _log_p(logits_BNC, id_BN.clamp(max=self.mask_id - 1))
                hidden_BN = hidden_BN | ((fallen_BN > self.config.remask) & open_BN)
            found_BN, confidence_BN = _choose(logits_BNC, noise.fold(step), self.config.temperature, step, T)
            id_BN = torch.where(hidden_BN, found_BN, id_BN)
            if self.config.remask is not None:
                kept_BN = torch.where(hidden_BN, _log_p(logits_BNC, found_BN), kept_BN)
            stay_B = still_hidden(open_BN.sum(1), step, T).minimum((hidden_BN & exists_BN).sum(1))
            confidence_BN = confidence_BN.masked_fill(~hidden_BN | ~exists_BN, math.inf)
            id_BN = id_BN.masked_fill(lowest(confidence_BN, stay_B), self.mask_id)
        return self.codes.decode(id_BN, like)

    def _logits(
        self, backbone: Backbone, prefix: Tokens, id_BN: Tensor, exists_BN: Tensor, joint: bool = False, cache: Hidden | None = None
    ) -> Tensor:
        x_BND = self.codes.embed(id_BN).to(prefix.x_BSD.dtype)
        if self.closing_1D is not None:
            return self.codes.logits(one_ahead(backbone, prefix, x_BND, exists_BN, self.closing_1D))
        suffix = suffix_tokens(prefix, x_BND, causal=False, valid_BS=exists_BN)
        hidden = backbone(prefix.cat(suffix)) if joint else backbone(suffix, cache=cache)
        return self.codes.logits(hidden.last(len(suffix)))


def draw_hidden(label_BN: Tensor, noise: Noise) -> Tensor:
    """Which labelled codes a training step hides, bool (B, N): max(1, round(share * n)) of each row's n, uniformly chosen."""
    share_B = torch.cos(noise.uniform("ratio", 1)[:, 0] * (math.pi / 2)).clamp(1e-6, 1)
    count_B = torch.maximum((share_B * label_BN.sum(1)).round().long(), torch.ones_like(share_B).long())
    score_BN = noise.uniform("which", label_BN.shape[1]).masked_fill(~label_BN, math.inf)
    return lowest(score_BN, count_B) & label_BN


def still_hidden(unknown_B: Tensor, step: int, evaluations: int) -> Tensor:
    """How many codes stay hidden after evaluation `step` (from 0): floor(unknown cos(pi r / 2)), r = (step + 1) / evaluations.

    Kept in 1..unknown-1 until the last evaluation, so that each one reveals something; the last leaves none.
    """
    if step == evaluations - 1:
        return torch.zeros_like(unknown_B)
    share = math.cos((step + 1) / evaluations * math.pi / 2)
    return (unknown_B * share).floor().long().clamp(min=1).minimum((unknown_B - 1).clamp(min=0))


def lowest(score_BN: Tensor, count_B: Tensor) -> Tensor:
    """bool (B, N): the `count_B` lowest scores of each row; ties go to the earlier place."""
    rank_BN = score_BN.argsort(dim=1, stable=True).argsort(dim=1)
    return rank_BN < count_B[:, None]


def _choose(logits_BNC: Tensor, noise: Noise, temperature: float, step: int, evaluations: int) -> tuple[Tensor, Tensor]:
    """Codes and their confidence log p + temperature (1 - r) Gumbel, each (B, N)."""
    log_p_BNC = F.log_softmax(logits_BNC, dim=-1)
    if temperature == 0:
        confidence_BN, found_BN = log_p_BNC.max(dim=-1)
        return found_BN, confidence_BN
    gumbel_BNC = -torch.log(-torch.log(noise.uniform("code", *log_p_BNC.shape[1:])))
    found_BN = (log_p_BNC + gumbel_BNC).argmax(dim=-1)
    confidence_BN = log_p_BNC.gather(-1, found_BN[..., None])[..., 0]
    gumbel_BN = -torch.log(-torch.log(noise.uniform("confidence", found_BN.shape[1])))
    return found_BN, confidence_BN + temperature * (1 - (step + 1) / evaluations) * gumbel_BN


def _log_p(logits_BNC: Tensor, code_BN: Tensor) -> Tensor:
    """Log-probability of each code, (B, N)."""
    return F.log_softmax(logits_BNC, dim=-1).gather(-1, code_BN[..., None])[..., 0]
