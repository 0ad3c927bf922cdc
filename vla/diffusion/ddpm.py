"""Denoising diffusion with the squared-cosine schedule, and DDIM (Ho et al. 2020; Nichol, Dhariwal 2021; Song et al. 2021).

Noise index k = 0 .. K-1 maps to time t = 1 - (k + 1) / K: t = 0 is the noisiest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vla.diffusion.base import Path, Predict, spread
from vla.errors import UnknownName, UserError
from vla.noise import Noise


@dataclass(frozen=True)
class DDPM:
    """`steps`: training noise levels (CogACT: 100). `predict`: `noise` or `data`. `clip`: bound of the data estimate while sampling."""

    kind: ClassVar[str] = "path.ddpm"
    steps: int = 100
    predict: str = "noise"
    clip: float = 1.5

    def build(self) -> DDPMPath:
        if self.predict not in ("noise", "data"):
            raise UnknownName("prediction", self.predict, ("noise", "data"))
        return DDPMPath(self)


class DDPMPath(Path):
    """DDIM (eta = 0) over a subset of the levels, spaced as diffusers' `timestep_spacing="trailing"`: it starts at pure noise."""

    def __init__(self, config: DDPM) -> None:
        self.config = config
        self.alphas_cumprod_K = squared_cosine(config.steps)

    def times(self, noise: Noise, samples: int) -> Tensor:
        return self._time(noise.integers("time", self.config.steps, samples))

    def corrupt(self, data: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        kept = spread(self._kept(t), data)
        return kept.sqrt() * data + (1 - kept).sqrt() * eps, data if self.config.predict == "data" else eps

    def solve(self, predict: Predict, eps: Tensor, evaluations: int) -> Tensor:
        if not 1 <= evaluations <= self.config.steps:
            raise UserError(f"{evaluations} evaluations of a path with {self.config.steps} levels; choose 1..{self.config.steps}")
        stride = self.config.steps / evaluations
        levels = [round(self.config.steps - i * stride) - 1 for i in range(evaluations)]
        x = eps
        for level, following in zip(levels, [*levels[1:], -1], strict=True):
            t = self._time(torch.full((len(x),), level, device=x.device))
            kept = float(self.alphas_cumprod_K[level])
            after = float(self.alphas_cumprod_K[following]) if following >= 0 else 1.0
            out = predict(x, t)
            data = out if self.config.predict == "data" else (x - math.sqrt(1 - kept) * out) / math.sqrt(kept)
            data = data.clamp(-self.config.clip, self.config.clip)
            noise = (x - math.sqrt(kept) * data) / math.sqrt(1 - kept)
            x = math.sqrt(after) * data + math.sqrt(1 - after) * noise
        return x

    def _time(self, level: Tensor) -> Tensor:
        return 1 - (level.float() + 1) / self.config.steps

    def _kept(self, t: Tensor) -> Tensor:
        level = ((1 - t) * self.config.steps).round().long() - 1
        return self.alphas_cumprod_K.to(t.device)[level].to(t.dtype)


def squared_cosine(steps: int) -> Tensor:
    """Cumulative products of alpha, float64 (steps,): beta_k = min(1 - f((k+1)/K) / f(k/K), 0.999), f = cos^2((s + 0.008)/1.008 pi/2)."""

    def f(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    beta_K = [min(1 - f((k + 1) / steps) / f(k / steps), 0.999) for k in range(steps)]
    return torch.cumprod(1 - torch.tensor(beta_K, dtype=torch.float64), dim=0)
