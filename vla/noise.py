"""Randomness as a function of (seed, key, stream), never ambient.

A sample's noise depends on its position in the data order, or on (episode, step) of a rollout: not on its rank, its neighbours in
the batch or the device. So two ranks draw what one process draws, and batching changes no rollout. Counter-based, by the splitmix64
finaliser (Steele, Lea, Flood 2014), in torch integers: the same bits on every device.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts arithmetically; the mask makes it logical


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Noise:
    """Draws for B rows, each a pure function of (`seed`, its key, the stream's name). `key_B`: int64 on the device of the draws."""

    key_B: Tensor
    seed: int = 0

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """float32 (B, *shape) in the open interval (0, 1)."""
        count = math.prod(shape)
        # Written on the device: what is copied there makes a captured call impossible (vla/capture.py).
        start = torch.full((), zlib.crc32(stream.encode()) + (self.seed << 32), dtype=torch.int64, device=self.key_B.device)
        row_B = _mix(_mix(start + _GOLDEN) ^ (self.key_B.long() * _GOLDEN))
        index_N = torch.arange(1, count + 1, device=self.key_B.device) * _GOLDEN
        bits = _shift(_mix(row_B[:, None] + index_N), 41)  # 23 bits: with + 0.5, never 0 or 1 in float32
        return ((bits.float() + 0.5) * 2.0**-23).reshape(-1, *shape)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """float32 (B, *shape), standard normal (inverse distribution function of `uniform`)."""
        return torch.special.ndtri(self.uniform(stream, *shape).double()).float()

    def integers(self, stream: str, high: int, *shape: int) -> Tensor:
        """int64 (B, *shape) in [0, high)."""
        return (self.uniform(stream, *shape).double() * high).long().clamp(max=high - 1)

    def fold(self, salt: int) -> Noise:
        """Other draws for the same rows."""
        return Noise(self.key_B, self.seed * 1_000_003 + salt + 1 & 0x7FFFFFFF)
