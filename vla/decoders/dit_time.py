"""The time of denoising, as vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEVEL_WIDTH = 256
"""Width of the sines and cosines in DiT (Peebles, Xie 2023) and all that took it over."""


def time_embedding(t: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """(...,) in [0, 1] -> (..., width): sines and cosines of geometric periods, 4e-3 .. 4.0 as in pi0."""
    period = shortest * (longest / shortest) ** (torch.arange(width // 2, device=t.device) / (width // 2 - 1))
    angle = t[..., None].double() * (2 * math.pi / period.double())
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def level_embedding(level: Tensor, width: int = LEVEL_WIDTH, max_period: float = 10_000.0) -> Tensor:
    """Noise levels (...,) -> (..., width): cosines and sines of frequencies 1 .. 1 / max_period (Peebles, Xie 2023)."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=level.device) / (width // 2))
    angle = level[..., None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class LevelMLP(nn.Module):
    """Noise levels (...,) -> (..., width), by a two-layer MLP on `level_embedding`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(LEVEL_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level: Tensor) -> Tensor:
        return self.mlp(level_embedding(level).to(self.mlp[0].weight.dtype))


class PeriodMLP(nn.Module):
    """Times in 0..1 (...,) -> (..., width), by a two-layer MLP on `time_embedding` of that width (pi0.5's `time_mlp`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_embedding(t, self.width).to(self.mlp[0].weight.dtype))
