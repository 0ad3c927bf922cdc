"""Quantizers: a latent vector (B, Z) -> N codes out of `vocabulary` each, and the vector that they stand for.

Written here rather than taken from a library because their randomness (first entries, revival of dead ones, NSVQ's noise) must be
passed in, as everywhere in this project: a function of seed and position, not of an ambient generator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.noise import Noise


class Quantized(NamedTuple):
    """`action_BZ`: what the codes stand for, with a gradient to the latent; `code_BN` int64; `commitment_B`: pulls the latent to it."""

    action_BZ: Tensor
    code_BN: Tensor
    commitment_B: Tensor


class Quantizer(nn.Module, ABC):
    """`latent`: Z, the width of the vector that is quantized. `codes`: N. `vocabulary`: entries a code chooses from."""

    latent: int
    codes: int
    vocabulary: int

    @abstractmethod
    def forward(self, latent_BZ: Tensor, noise: Noise | None = None) -> Quantized:
        """In training mode `noise` is required, and entries may be moved; in evaluation nothing is drawn and nothing changes."""

    @abstractmethod
    def embed(self, code_BN: Tensor) -> Tensor:
        """Codes -> the vectors (B, Z) they stand for; those that `forward` returns in evaluation mode."""


@dataclass(frozen=True)
class ResidualVQ:
    """Each code refines what the codes before it left over (Zeghidour et al. 2021, SoundStream); entries are moving averages.

    The first code is the coarse motion and the most predictable one; the vector is the sum of its codes' entries, so a linear
    readout of the codes is one of the latent itself. `dead_below`: an entry drawn less often than this share of its fair share is
    moved onto a latent of the batch.
    """

    kind: ClassVar[str] = "latent_action.quantizer.residual_vq"
    codes: int = 4
    vocabulary: int = 16
    latent: int = 8
    commitment: float = 0.25
    decay: float = 0.97
    dead_below: float = 0.1

    def build(self) -> Quantizer:
        return _MovingAverageVQ(self, self.latent, residual=True)


@dataclass(frozen=True)
class VQ:
    """Each code has its own part of the latent and its own codebook (van den Oord et al. 2017, appendix A.1: moving averages).
    `width`: of one part; UniVLA has 4 codes x 16 entries x 128."""

    kind: ClassVar[str] = "latent_action.quantizer.vq"
    codes: int = 4
    vocabulary: int = 16
    width: int = 8
    commitment: float = 0.25
    decay: float = 0.97
    dead_below: float = 0.1

    def build(self) -> Quantizer:
        return _MovingAverageVQ(self, self.codes * self.width, residual=False)


@dataclass(frozen=True)
class NSVQ:
    """The quantization error is replaced by noise of its length, through which both sides get a gradient (Vali, Backstrom 2022);
    LAPA: 4 codes x 8 entries x 32. Entries are parameters, of one codebook per code."""

    kind: ClassVar[str] = "latent_action.quantizer.nsvq"
    codes: int = 4
    vocabulary: int = 8
    width: int = 32
    dead_below: float = 0.1
    decay: float = 0.97

    def build(self) -> Quantizer:
        return _NSVQ(self)


@dataclass(frozen=True)
class FSQ:
    """Every dimension rounded to a few levels (Mentzer et al. 2024): no codebook to learn, hence none to collapse.

    The levels are the middles of equal parts of -1..1; the paper's keep zero among them, which leaves one of two levels unused.
    """

    kind: ClassVar[str] = "latent_action.quantizer.fsq"
    codes: int = 4
    levels: tuple[int, ...] = (4, 4)

    def build(self) -> Quantizer:
        return _FSQ(self)


class _Codebooks(Quantizer):
    """N codebooks `entry_NKd`, and how much each entry is used; revival of those that are not."""

    entry_NKd: Tensor
    used_NK: Tensor

    def __init__(self, codes: int, vocabulary: int, decay: float, dead_below: float) -> None:
        super().__init__()
        self.codes, self.vocabulary, self.decay, self.dead_below = codes, vocabulary, decay, dead_below
        self.register_buffer("used_NK", torch.zeros(codes, vocabulary))

    def _nearest(self, part_Bd: Tensor, n: int) -> Tensor:
        return torch.cdist(part_Bd[None].float(), self.entry_NKd[n][None].float())[0].argmin(-1)

    def _count(self, code_B: Tensor, n: int) -> Tensor:
        """Adds to the moving average of uses; returns one-hot (B, K)."""
        chosen_BK = F.one_hot(code_B, self.vocabulary).float()
        self.used_NK[n].lerp_(chosen_BK.sum(0), 1 - self.decay)
        return chosen_BK

    def _revive(self, part_Bd: Tensor, n: int, noise: Noise) -> tuple[Tensor, Tensor, float]:
        """Moves dead entries onto latents of the batch. Unused from the start is dead: so a codebook gets its first entries.

        A dead entry k takes the row with the largest draw for k: a fair choice that does not depend on the order of rows. Returns
        (dead_K, where to, the uses it is given).
        """
        fair = len(part_Bd) / self.vocabulary
        dead_K = self.used_NK[n] < self.dead_below * fair
        to_Kd = part_Bd[noise.uniform(f"revive{n}", self.vocabulary).argmax(0)]
        self.entry_NKd[n] = torch.where(dead_K[:, None], to_Kd, self.entry_NKd[n])
        self.used_NK[n] = self.used_NK[n].masked_fill(dead_K, fair)
        return dead_K, to_Kd, fair


class _MovingAverageVQ(_Codebooks):
    """Straight-through estimate; entries follow the mean of what chose them, so no optimizer touches them."""

    def __init__(self, config: ResidualVQ | VQ, latent: int, residual: bool) -> None:
        super().__init__(config.codes, config.vocabulary, config.decay, config.dead_below)
        self.latent, self.residual, self.beta = latent, residual, config.commitment
        width = latent if residual else latent // config.codes
        self.register_buffer("entry_NKd", torch.zeros(config.codes, config.vocabulary, width))
        self.register_buffer("sum_NKd", torch.zeros(config.codes, config.vocabulary, width))

    def forward(self, latent_BZ: Tensor, noise: Noise | None = None) -> Quantized:
        left_BZ, parts, codes = latent_BZ.detach(), [], []
        for n in range(self.codes):
            part_Bd = left_BZ if self.residual else left_BZ.chunk(self.codes, dim=1)[n]
            if self.training:
                assert noise is not None
                self._learn(part_Bd, n, noise)
            code_B = self._nearest(part_Bd, n)
            entry_Bd = self.entry_NKd[n][code_B]
            left_BZ = left_BZ - entry_Bd if self.residual else left_BZ
            codes.append(code_B)
            parts.append(entry_Bd)
        quantized_BZ = torch.stack(parts).sum(0) if self.residual else torch.cat(parts, dim=1)
        commitment_B = self.beta * (latent_BZ - quantized_BZ).square().mean(1)
        return Quantized(latent_BZ + (quantized_BZ - latent_BZ).detach(), torch.stack(codes, dim=1), commitment_B)

    def embed(self, code_BN: Tensor) -> Tensor:
        parts = [self.entry_NKd[n][code_BN[:, n]] for n in range(self.codes)]
        return torch.stack(parts).sum(0) if self.residual else torch.cat(parts, dim=1)

    @torch.no_grad()
    def _learn(self, part_Bd: Tensor, n: int, noise: Noise) -> None:
        chosen_BK = self._count(self._nearest(part_Bd, n), n)
        self.sum_NKd[n].lerp_(chosen_BK.T @ part_Bd, 1 - self.decay)
        self.entry_NKd[n] = self.sum_NKd[n] / self.used_NK[n].clamp(min=1e-6)[:, None]
        dead_K, to_Kd, fair = self._revive(part_Bd, n, noise)
        self.sum_NKd[n] = torch.where(dead_K[:, None], to_Kd * fair, self.sum_NKd[n])


class _NSVQ(_Codebooks):
    def __init__(self, config: NSVQ) -> None:
        super().__init__(config.codes, config.vocabulary, config.decay, config.dead_below)
        self.latent = config.codes * config.width
        self.entry_NKd = nn.Parameter(torch.zeros(config.codes, config.vocabulary, config.width))

    def forward(self, latent_BZ: Tensor, noise: Noise | None = None) -> Quantized:
        parts, codes = [], []
        for n, part_Bd in enumerate(latent_BZ.chunk(self.codes, dim=1)):
            if self.training:
                assert noise is not None
                with torch.no_grad():
                    self._count(self._nearest(part_Bd, n), n)
                    self._revive(part_Bd, n, noise)
            code_B = self._nearest(part_Bd.detach(), n)
            entry_Bd = self.entry_NKd[n][code_B]
            if self.training:
                assert noise is not None
                error_B1 = (part_Bd - entry_Bd).norm(dim=1, keepdim=True)
                direction_Bd = F.normalize(noise.normal(f"nsvq{n}", part_Bd.shape[1]), dim=1)
                entry_Bd = part_Bd + error_B1 * direction_Bd
            codes.append(code_B)
            parts.append(entry_Bd)
        return Quantized(torch.cat(parts, dim=1), torch.stack(codes, dim=1), latent_BZ.new_zeros(len(latent_BZ)))

    def embed(self, code_BN: Tensor) -> Tensor:
        return torch.cat([self.entry_NKd[n][code_BN[:, n]] for n in range(self.codes)], dim=1)


class _FSQ(Quantizer):
    levels_L: Tensor
    base_L: Tensor

    def __init__(self, config: FSQ) -> None:
        super().__init__()
        self.codes, self.vocabulary = config.codes, math.prod(config.levels)
        self.latent = config.codes * len(config.levels)
        bases = [math.prod(config.levels[:i]) for i in range(len(config.levels))]
        self.register_buffer("levels_L", torch.tensor(config.levels), persistent=False)
        self.register_buffer("base_L", torch.tensor(bases), persistent=False)

    def forward(self, latent_BZ: Tensor, noise: Noise | None = None) -> Quantized:
        bounded_BNL = latent_BZ.tanh().unflatten(1, (self.codes, -1))
        index_BNL = ((bounded_BNL.detach() + 1) / 2 * self.levels_L).long().minimum(self.levels_L - 1)
        code_BN = (index_BNL * self.base_L).sum(-1)
        bounded_BZ = bounded_BNL.flatten(1)
        action_BZ = bounded_BZ + (self.embed(code_BN) - bounded_BZ).detach()
        return Quantized(action_BZ, code_BN, latent_BZ.new_zeros(len(latent_BZ)))

    def embed(self, code_BN: Tensor) -> Tensor:
        index_BNL = code_BN[..., None] // self.base_L % self.levels_L
        return ((2 * index_BNL + 1) / self.levels_L - 1).flatten(1)
