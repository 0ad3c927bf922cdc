"""Flow matching with straight paths (Lipman et al. 2023; Liu et al. 2023).

x_t = (1 - t) eps + t data, velocity data - eps; t = 0 is noise. pi0 (Black et al. 2024) writes time the other way round, tau = 1 - t,
and draws tau ~ 0.999 Beta(1.5, 1) + 0.001: most weight near noise. Its distribution function is s^1.5, so a draw is u^(2/3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vla.diffusion.base import Path, Predict, spread
from vla.errors import UnknownName
from vla.noise import Noise

TIMES = ("uniform", "pi0", "logit_normal")


@dataclass(frozen=True)
class Flow:
    """`times`: distribution of training times; `predict`: `velocity`, or `data` (the velocity is then (data - x) / (1 - t))."""

    kind: ClassVar[str] = "path.flow"
    times: str = "pi0"
    predict: str = "velocity"

    def build(self) -> FlowPath:
        if self.times not in TIMES:
            raise UnknownName("time distribution", self.times, TIMES)
        if self.predict not in ("velocity", "data"):
            raise UnknownName("prediction", self.predict, ("velocity", "data"))
        return FlowPath(self)


class FlowPath(Path):
    """Euler's method over equal steps."""

    def __init__(self, config: Flow) -> None:
        self.config = config

    def times(self, noise: Noise, samples: int) -> Tensor:
        if self.config.times == "logit_normal":  # Esser et al. 2024
            return torch.sigmoid(noise.normal("time", samples))
        uniform = noise.uniform("time", samples)
        if self.config.times == "uniform":
            return uniform
        return 1 - (0.999 * uniform ** (2 / 3) + 0.001)

    def corrupt(self, data: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = spread(t, data)
        return (1 - t) * eps + t * data, data if self.config.predict == "data" else data - eps

    def solve(self, predict: Predict, eps: Tensor, evaluations: int) -> Tensor:
        x = eps
        for step in range(evaluations):
            t = torch.full((len(x),), step / evaluations, device=x.device)
            out = predict(x, t)
            # The last step of a data prediction lands on it exactly: (1 - t) = 1 / evaluations.
            velocity = (out - x) / (1 - step / evaluations) if self.config.predict == "data" else out
            x = x + velocity / evaluations
        return x
