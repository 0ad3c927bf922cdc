"""Flow matching with straight paths (Lipman et al. 2023; Liu et al. 2023).

x_t = (1 - t) eps + t data, velocity data - eps; t = 0 is noise. GR00T N1 runs time the same way; pi0 (Black et al. 2024) the other way
round: tau = 1 - t, tau ~ 0.999 Beta(1.5, 1) + 0.001, velocity eps - data, steps of -1/10 from tau = 1. GR00T's t = 0.999 (1 - Beta(1.5, 1))
is the same distribution. Its distribution function is s^1.5, so a draw is u^(2/3): most weight near noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vla.diffusion.base import Path, Predict, Warm, spread
from vla.errors import UnknownName, UserError
from vla.noise import Noise

TIMES = ("uniform", "pi0", "logit_normal")
PREDICTIONS = ("velocity", "data")
LEVELS = 1000
"""Levels per unit of time for embeddings that count them; GR00T N1's `num_timestep_buckets`."""


@dataclass(frozen=True)
class Flow:
    """`times`: distribution of training times; `predict`: `velocity`, or `data` (the velocity is then (data - x) / (1 - t)).

    `reverse`: the network is shown tau = 1 - t, and its velocity points to the noise: for weights trained by pi0's convention.
    """

    kind: ClassVar[str] = "path.flow"
    times: str = "pi0"
    predict: str = "velocity"
    reverse: bool = False

    def build(self) -> FlowPath:
        if self.times not in TIMES:
            raise UnknownName("time distribution", self.times, TIMES)
        if self.predict not in PREDICTIONS:
            raise UnknownName("prediction", self.predict, PREDICTIONS)
        return FlowPath(self)


class FlowPath(Path):
    """Euler's method over equal steps."""

    def __init__(self, config: Flow) -> None:
        self.config = config
        self._sign = -1 if config.reverse and config.predict == "velocity" else 1

    def times(self, noise: Noise, samples: int) -> Tensor:
        if self.config.times == "logit_normal":  # Esser et al. 2024
            return torch.sigmoid(noise.normal("time", samples))
        uniform = noise.uniform("time", samples)
        if self.config.times == "uniform":
            return uniform
        return 1 - (0.999 * uniform ** (2 / 3) + 0.001)

    def corrupt(self, data: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = spread(t, data)
        return (1 - t) * eps + t * data, data if self.config.predict == "data" else self._sign * (data - eps)

    def grid(self, evaluations: int, start: float = 0.0) -> list[float]:
        if evaluations < 1:
            raise UserError(f"{evaluations} evaluations of a flow; choose at least 1")
        return [start + step * (1 - start) / evaluations for step in range(evaluations)]

    def solve(self, predict: Predict, eps: Tensor, evaluations: int, *, warm: Warm | None = None, noise: Noise | None = None) -> Tensor:
        x, times = eps, self.grid(evaluations, 0.0 if warm is None else warm.t)
        if warm is not None:
            x = self.corrupt(warm.guess_BTA, eps, torch.full((len(eps),), warm.t, device=eps.device))[0]
        size = (1 - times[0]) / evaluations
        for now in times:
            out = predict(x, torch.full((len(x),), now, device=x.device))
            # The last step of a data prediction lands on it exactly: 1 - now = size.
            velocity = (out - x) / (1 - now) if self.config.predict == "data" else self._sign * out
            x = x + velocity * size
        return x

    def data(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return out if self.config.predict == "data" else x + (1 - spread(t, x)) * self._sign * out

    def output(self, x: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return data if self.config.predict == "data" else self._sign * (data - x) / (1 - spread(t, x))

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, 1 - t

    def clock(self, t: Tensor) -> Tensor:
        return 1 - t if self.config.reverse else t

    def level(self, t: Tensor) -> Tensor:
        return (self.clock(t) * LEVELS).floor()
