"""Denoising diffusion with the squared-cosine schedule, and DDIM (Ho et al. 2020; Nichol, Dhariwal 2021; Song et al. 2021).

Noise index k = 0 .. K-1 maps to time t = 1 - (k + 1) / K: t = 0 is the noisiest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vla.diffusion.base import Path, Predict, Warm, spread
from vla.errors import UnknownName, UserError
from vla.kept import Kept
from vla.noise import Noise

PREDICTIONS = ("noise", "data", "velocity")
SPACINGS = ("trailing", "leading")


@dataclass(frozen=True)
class DDPM:
    """`steps`: training noise levels (CogACT: 100). `predict`: `noise`, `data`, or `velocity` (sqrt(a) eps - sqrt(1 - a) data, Salimans,
    Ho 2022). `clip`: bound of the data estimate while sampling (None: none). `eta`: 0 is DDIM, 1 over all levels is the ancestral
    sampler of DDPM. `spacing`: of the levels used, as in diffusers: `trailing` starts at pure noise, `leading` ends at level 0 (CogACT's).
    """

    kind: ClassVar[str] = "path.ddpm"
    steps: int = 100
    predict: str = "noise"
    clip: float | None = 1.5
    eta: float = 0.0
    spacing: str = "trailing"

    def build(self) -> DDPMPath:
        if self.predict not in PREDICTIONS:
            raise UnknownName("prediction", self.predict, PREDICTIONS)
        if self.spacing not in SPACINGS:
            raise UnknownName("spacing of levels", self.spacing, SPACINGS)
        return DDPMPath(self)


class DDPMPath(Path):
    """DDIM over a subset of the levels. With `clip`, the noise estimate follows the clipped data."""

    def __init__(self, config: DDPM) -> None:
        self.config = config
        self.alphas_cumprod_K = squared_cosine(config.steps)
        self._on_device = Kept()
        # For sampling, which must not ask the device for them.
        self._kept: list[float] = self.alphas_cumprod_K.tolist()
        self._times: list[float] = self._time(torch.arange(config.steps, device="cpu")).tolist()

    def times(self, noise: Noise, samples: int) -> Tensor:
        return self._time(noise.integers("time", self.config.steps, samples))

    def corrupt(self, data: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        kept = spread(self._signal_power(t), data)
        signal, disturbance = kept.sqrt(), (1 - kept).sqrt()
        want = {"noise": eps, "data": data, "velocity": signal * eps - disturbance * data}[self.config.predict]
        return signal * data + disturbance * eps, want

    def grid(self, evaluations: int, start: float = 0.0) -> list[float]:
        return [self._times[level] for level in self.levels(evaluations, start)]

    def solve(self, predict: Predict, eps: Tensor, evaluations: int, *, warm: Warm | None = None, noise: Noise | None = None) -> Tensor:
        x, levels = eps, self.levels(evaluations, 0.0 if warm is None else warm.t)
        if warm is not None:
            x = self.corrupt(warm.guess_BTA, eps, self._time(torch.full((len(eps),), levels[0], device=eps.device)))[0]
        for index, level in enumerate(levels):
            out = predict(x, self._time(torch.full((len(x),), level, device=x.device)))
            following = levels[index + 1] if index + 1 < len(levels) else -1
            fresh = None
            if self.config.eta > 0 and following >= 0:
                assert noise is not None, "a path with eta > 0 draws noise while it samples"
                fresh = noise.fold(index).normal("ddim", *x.shape[1:]).to(x.dtype)
            x = self.step(x, out, level, following, fresh)
        return x

    def step(self, x: Tensor, out: Tensor, level: int, following: int, fresh: Tensor | None = None) -> Tensor:
        """One step from `level` to `following` (-1: data), given the network's output (Song et al. 2021, eq. 12 and 16)."""
        kept, after = self._kept[level], self._kept[following] if following >= 0 else 1.0
        data = self._data(x, out, math.sqrt(kept), math.sqrt(1 - kept))
        if self.config.clip is not None:
            data = data.clamp(-self.config.clip, self.config.clip)
        estimate = (x - math.sqrt(kept) * data) / math.sqrt(1 - kept)
        sigma = self.config.eta * math.sqrt((1 - after) / (1 - kept) * (1 - kept / after))
        x = math.sqrt(after) * data + math.sqrt(max(1 - after - sigma**2, 0.0)) * estimate
        return x if fresh is None else x + sigma * fresh

    def check_one_step(self) -> None:
        if self.config.predict == "noise":
            raise UserError(
                "at the noisiest level a prediction of the noise says nothing about the data: distil a teacher that predicts data"
            )
        if self.config.spacing == "leading" and self.config.predict != "data":
            raise UserError(
                "with levels spaced 'leading' one evaluation is at the least noisy level, where an output hardly moves the chunk: distil a "
                "teacher whose spacing is 'trailing', or that predicts data"
            )

    def data(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return self._data(x, out, *(spread(scale, x) for scale in self.scales(t)))

    def output(self, x: Tensor, data: Tensor, t: Tensor) -> Tensor:
        signal, disturbance = (spread(scale, x) for scale in self.scales(t))
        if self.config.predict == "data":
            return data
        if self.config.predict == "noise":
            return (x - signal * data) / disturbance
        return (signal * x - data) / disturbance

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._signal_power(t)
        return kept.sqrt(), (1 - kept).sqrt()

    def levels(self, evaluations: int, start: float = 0.0) -> list[int]:
        """The noise indices of `evaluations` steps from time `start` on, falling."""
        count = self.config.steps - round(start * self.config.steps)
        if not 1 <= evaluations <= count:
            raise UserError(f"{evaluations} evaluations of a path with {count} levels left; choose 1..{count}")
        if self.config.spacing == "leading":
            return [i * (count // evaluations) for i in reversed(range(evaluations))]
        return [round(count - i * count / evaluations) - 1 for i in range(evaluations)]

    def level(self, t: Tensor) -> Tensor:
        return ((1 - t) * self.config.steps).round().long() - 1

    def _signal_power(self, t: Tensor) -> Tensor:
        """The cumulative product of alpha at each time."""
        table = self._on_device.on(t.device, "alphas", lambda: {"alphas_cumprod_K": self.alphas_cumprod_K})
        return table["alphas_cumprod_K"][self.level(t)]

    def _data(self, x: Tensor, out: Tensor, signal: Tensor | float, disturbance: Tensor | float) -> Tensor:
        if self.config.predict == "data":
            return out
        if self.config.predict == "noise":
            return (x - disturbance * out) / signal
        return signal * x - disturbance * out

    def _time(self, level: Tensor) -> Tensor:
        return 1 - (level.float() + 1) / self.config.steps


def squared_cosine(steps: int) -> Tensor:
    """Cumulative products of alpha, float64 (steps,): beta_k = min(1 - f((k+1)/K) / f(k/K), 0.999), f = cos^2((s + 0.008)/1.008 pi/2)."""

    def f(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    beta_K = [min(1 - f((k + 1) / steps) / f(k / steps), 0.999) for k in range(steps)]
    # On the CPU also when a model is built without weights (meta device): these are no weights, and no file brings them back.
    return torch.cumprod(1 - torch.tensor(beta_K, dtype=torch.float64, device="cpu"), dim=0)
