"""The interface of a codec: a normalised chunk (B, T, A) as N integer codes, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Codec(ABC, torch.nn.Module):
    """`vocabulary`: number of codes. The number of codes per chunk is `length(T, A)`; `slot_axes` says what a place counts, for
    carrying weights to another roster (`TA`: one place per number, in that order; `T3A`: per number of every third step)."""

    vocabulary: int
    slot_axes: tuple[str | None, ...]

    @abstractmethod
    def length(self, horizon: int, width: int) -> int:
        """Codes per chunk."""

    @abstractmethod
    def encode(self, action_BTA: Tensor) -> Tensor:
        """float (B, T, A) in about -1..1 -> int64 (B, N) in [0, vocabulary)."""

    @abstractmethod
    def decode(self, code_BN: Tensor, mask_BTA: Tensor) -> Tensor:
        """int64 (B, N) -> float32 (B, T, A), 0 where the mask is False. Every sequence of codes decodes, and codes of places that
        `mask` leaves out move nothing."""

    @abstractmethod
    def mask(self, mask_BTA: Tensor) -> Tensor:
        """bool (B, T, A) -> bool (B, N): which codes carry real numbers."""
