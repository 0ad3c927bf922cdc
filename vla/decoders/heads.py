"""From the states of a chunk's tokens to its numbers, per robot.

`Linear` reads one token a step. `ResNet` is OpenVLA-OFT's regression head (Kim et al. 2025; `prismatic/models/action_heads.py`) over the
states of all of a step's tokens side by side: norm, linear, ReLU, two residual blocks of norm, linear and ReLU, norm, linear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.bank import Bank
from vla.errors import UserError
from vla.roster import Roster
from vla.types import ActionSpec

EPSILON = 1e-5
"""Of the norms: torch's default."""


@dataclass(frozen=True)
class Linear:
    """One linear map per robot."""

    kind: ClassVar[str] = "head.linear"

    def build(self, width: int, roster: Roster, tokens: int = 1) -> LinearHead:
        """`tokens` of a step: 1, or the roster's action width, one a number."""
        if tokens != 1:
            raise UserError("a linear head reads one token a step; with a token a number choose head=ResNet()")
        return LinearHead(len(roster), width, roster.action_width, axes=(None, "A"))


@dataclass(frozen=True)
class ResNet:
    """`blocks` residual blocks of width `hidden`; the last map is per robot. OFT: 2 and 4096."""

    kind: ClassVar[str] = "head.resnet"
    blocks: int = 2
    hidden: int = 4096

    def build(self, width: int, roster: Roster, tokens: int = 1) -> ResNetHead:
        """See `Linear.build`."""
        return ResNetHead(self, width, roster, tokens)


class LinearHead(Bank):
    """(B, ..., D) -> (B, ..., A)."""

    def forward(self, x: Tensor, like: ActionSpec) -> Tensor:
        return super().forward(x, like.embodiment_B)


class ResNetHead(nn.Module):
    """(B, ..., D), or (B, ..., N, D) with a token for each number of the widest robot -> (B, ..., A).

    The first norm is over the numbers that a robot has: a wider robot in the roster moves nothing.
    """

    def __init__(self, config: ResNet, width: int, roster: Roster, tokens: int) -> None:
        super().__init__()
        self.per_number = tokens > 1
        self.norm_weight_ND = nn.Parameter(torch.ones(tokens, width))
        self.norm_bias_ND = nn.Parameter(torch.zeros(tokens, width))
        bound = 1 / math.sqrt(tokens * width)
        self.weight_NDH = nn.Parameter(torch.empty(tokens, width, config.hidden).uniform_(-bound, bound))
        self.bias_H = nn.Parameter(torch.empty(config.hidden).uniform_(-bound, bound))
        numbers = "A" if self.per_number else None
        self.roster_axes = {
            "norm_weight_ND": (numbers, None),
            "norm_bias_ND": (numbers, None),
            "weight_NDH": (numbers, None, None),
        }
        self.blocks = nn.ModuleList(_Residual(config.hidden) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.hidden)
        self.out = Bank(len(roster), config.hidden, roster.action_width, axes=(None, "A"))

    def forward(self, x: Tensor, like: ActionSpec) -> Tensor:
        """(B, ..., [N,] D) -> (B, ..., A); rows as in `like`."""
        if not self.per_number:
            normal = F.layer_norm(x, x.shape[-1:], self.norm_weight_ND[0].to(x.dtype), self.norm_bias_ND[0].to(x.dtype))
        else:
            normal = self._norm(x, like.mask_BTA.any(1)).flatten(-2)
        h = F.relu(normal @ self.weight_NDH.flatten(0, 1).to(x.dtype) + self.bias_H.to(x.dtype))
        for block in self.blocks:
            h = block(h)
        return self.out(self.norm(h), like.embodiment_B)

    def _norm(self, x: Tensor, has_BN: Tensor) -> Tensor:
        """Layer norm over the (N, D) of the numbers that exist; 0 for the others."""
        has = has_BN.view(len(x), *[1] * (x.dim() - 3), -1, 1)
        count = (has.sum((-2, -1), keepdim=True) * x.shape[-1]).clamp(min=1)
        full = torch.where(has, x.float(), 0)
        centred = torch.where(has, full - full.sum((-2, -1), keepdim=True) / count, 0)
        scale = torch.rsqrt(centred.square().sum((-2, -1), keepdim=True) / count + EPSILON)
        normal = (centred * scale).to(x.dtype) * self.norm_weight_ND.to(x.dtype) + self.norm_bias_ND.to(x.dtype)
        return normal * has


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.linear(self.norm(x)))
