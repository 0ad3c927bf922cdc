"""The interface of a path between noise and data. Time runs from t = 0 (noise) to t = 1 (data) everywhere in this repository."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from vla.noise import Noise

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_BTA noisy, t_B in [0, 1]) -> the network's output, (B, T, A)."""


class Path(ABC):
    """How data is corrupted, what a network predicts, and how a sample is found. Arrays are (N, T, A), times (N,)."""

    @abstractmethod
    def times(self, noise: Noise, samples: int) -> Tensor:
        """Training times, float32 (B, samples) in [0, 1]."""

    @abstractmethod
    def corrupt(self, data: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(data, standard normal, times) -> (noisy data, what the network should predict)."""

    @abstractmethod
    def solve(self, predict: Predict, eps: Tensor, evaluations: int) -> Tensor:
        """From standard normal to data in `evaluations` calls of `predict`; deterministic."""


def spread(t: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1), to multiply (N, T, A)."""
    return t.view(-1, *(1,) * (like.dim() - 1)).to(like.dtype)
