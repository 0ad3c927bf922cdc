"""The interface of a path between noise and data. Time runs from t = 0 (noise) to t = 1 (data) everywhere in this repository."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vla.errors import UserError
from vla.noise import Noise
from vla.types import Prior

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_BTA noisy, t_B in [0, 1]) -> the network's output, (B, T, A)."""


@dataclass(frozen=True)
class Warm:
    """Where sampling starts instead of pure noise: a guess of the data, (B, T, A), noised to time `t` in [0, 1).

    The previous chunk, shifted by what was executed since, is such a guess (Streaming Diffusion Policy, Hoeg et al. 2024; Real-Time
    Iteration, Duan et al. 2025): all `evaluations` are then spent between `t` and 1.
    """

    guess_BTA: Tensor
    t: float = 0.5

    @staticmethod
    def of(prior: Prior) -> Warm | None:
        """The prior's actions, where it asks to be started from. UserError unless the rows of a batch start alike."""
        start = float(prior.warm_B[0])
        if not bool((prior.warm_B == start).all()):
            raise UserError("continuations of one batch must agree on `warm`")
        return Warm(prior.action_BTA, start) if start > 0 else None


class Path(ABC):
    """How data is corrupted, what a network predicts, and how a sample is found. Arrays are (N, T, A), times (N,)."""

    @abstractmethod
    def times(self, noise: Noise, samples: int) -> Tensor:
        """Training times, float32 (B, samples) in [0, 1]."""

    @abstractmethod
    def corrupt(self, data: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(data, standard normal, times) -> (noisy data, what the network should predict)."""

    @abstractmethod
    def grid(self, evaluations: int, start: float = 0.0) -> list[float]:
        """The times at which `solve` asks its network, in turn: once each, from `start` (a warm start's `t`) on."""

    @abstractmethod
    def solve(self, predict: Predict, eps: Tensor, evaluations: int, *, warm: Warm | None = None, noise: Noise | None = None) -> Tensor:
        """From standard normal `eps` to data in `evaluations` calls of `predict`, at the times of `grid`.

        Deterministic; a path that adds noise on the way draws it from `noise`, which it then needs.
        """

    def check_one_step(self) -> None:
        """UserError where a network asked once, at the first time of `grid(1)`, has said too little to learn from."""
        return

    @abstractmethod
    def data(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The data that a network's output `out` at (x, t) speaks of, t < 1."""

    @abstractmethod
    def output(self, x: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """The inverse of `data`: what a network that knew `data` would say at (x, t)."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(of the data, of the noise) in a noisy x at times (N,), each (N,): x = scale * data + other * eps."""

    def clock(self, t: Tensor) -> Tensor:
        """The time in [0, 1] that a network is shown: `t`, unless its weights were trained with another convention."""
        return t

    @abstractmethod
    def level(self, t: Tensor) -> Tensor:
        """The noise level, counted as the 256-wide embeddings of image diffusion count it (0, 1, 2, ...)."""


@dataclass(frozen=True)
class Denoiser:
    """A denoiser given what it is conditioned on: `predict`, the path that it was trained on, and how often it is asked."""

    predict: Predict
    path: Path
    evaluations: int


def spread(t: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1), to multiply (N, T, A)."""
    return t.view(-1, *(1,) * (like.dim() - 1)).to(like.dtype)
