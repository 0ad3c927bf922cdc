"""Randomness as a function of keys, in numpy: hashes, uniform numbers and permutations that need no state and no memory."""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 8  # four on each half; Luby and Rackoff (1988) need four in all for a strong pseudo-random permutation


def name_key(name: str) -> int:
    """A string -> 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def mix(*parts: int | np.ndarray) -> np.ndarray:
    """Integers (broadcast) -> uint64, one hash per element: splitmix64's finaliser (Steele, Lea, Flood 2014) over the parts."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        part = np.asarray([part % 2**64], np.uint64) if isinstance(part, int) else np.asarray(part).astype(np.uint64)
        state = _finalise((state ^ part) + np.uint64(0x9E3779B97F4A7C15))
    return state


def uniform(*parts: int | np.ndarray) -> np.ndarray:
    """Integers (broadcast) -> float64 in [0, 1)."""
    return (mix(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index_N: np.ndarray, size_N: np.ndarray, key_N: np.ndarray) -> np.ndarray:
    """Where each index goes in the keyed permutation of 0..size-1; int64, sizes and uint64 keys per element.

    A Feistel network on the smallest power of two that holds `size`, walked until it lands inside (Black, Rogaway 2002): fewer
    than two walks on average, whatever the size.
    """
    size_N = np.broadcast_to(np.asarray(size_N, np.uint64), index_N.shape)
    key_N = np.broadcast_to(key_N, index_N.shape)
    # log2 of a float64 is exact enough: sizes stay below 2^53.
    bits_N = np.frexp((size_N - np.uint64(1)).astype(np.float64))[1].astype(np.uint64)
    out_N = index_N.astype(np.uint64)
    todo = np.arange(len(out_N))
    while len(todo):
        out_N[todo] = _feistel(out_N[todo], bits_N[todo], key_N[todo])
        todo = todo[out_N[todo] >= size_N[todo]]
    return out_N.astype(np.int64)


def _feistel(value_N: np.ndarray, bits_N: np.ndarray, key_N: np.ndarray) -> np.ndarray:
    one = np.uint64(1)
    low_bits = (bits_N + one) >> one
    low_mask, high_mask = (one << low_bits) - one, (one << (bits_N - low_bits)) - one
    low, high = value_N & low_mask, value_N >> low_bits
    for number in range(_ROUNDS):
        round_key = key_N + np.uint64(number * 0xD1342543DE82EF95 % 2**64)
        if number % 2:
            low = low ^ (_finalise(high + round_key) & low_mask)
        else:
            high = high ^ (_finalise(low + round_key) & high_mask)
    return (high << low_bits) | low


def _finalise(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
