"""Public statistics as normalisers that give the numbers their own code gives, in both directions.

OpenVLA, OFT, CogACT (`data_utils.py`, `modeling_prismatic.py`): forward clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1), back
0.5 (a + 1) (q99 - q01) + q01; numbers without mask are left alone. openpi (`transforms.py`): (x - q01) / (q99 - q01 + 1e-6) 2 - 1 or
(x - mean) / (std + 1e-6), both inverted exactly, not clipped. lerobot (`normalize_processor.py`): an epsilon under the mean and deviation
in the forward direction alone, and in place of a range of 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import SchemaError, UnknownName
from vla.interop.source import require
from vla.normalize import Normalizer, RobotNormalizer, StatsKey

NO_STATE = "this policy does not read proprioception"


def robot_normalizer(robot: Embodiment, state: Normalizer | None, action: Normalizer) -> RobotNormalizer:
    """As a checkpoint keeps it. `state` None: the policy reads none."""
    state = Normalizer.identity(robot.state.size, NO_STATE) if state is None else state
    made = RobotNormalizer(StatsKey.of(robot), state, action)
    made.check(robot)
    return made


def openvla(
    data: Mapping[str, Any],
    where: str,
    *,
    bounds: str = "quantile",
    both_ways: bool = False,
    clip_out: bool = False,
    binary: tuple[int, ...] = (),
) -> Normalizer:
    """`bounds`: q01 and q99 (`quantile`), or the extremes (OFT's BOUNDS). `both_ways`: the epsilon (OFT)."""
    low_A, high_A = (np.array(x, float) for x in require(data, ("q01", "q99") if bounds == "quantile" else ("min", "max"), where))
    mask_A = np.array(data.get("mask", np.ones_like(low_A)), bool)
    _same(where, low_A, high_A, mask_A)
    constant_A = mask_A & (np.array(data.get("min", low_A), float) == np.array(data.get("max", high_A), float))
    half_A = (high_A - low_A + 1e-8) / 2
    forward_A2 = np.stack([low_A + half_A, half_A], axis=1)
    forward_A2[constant_A] = np.stack([low_A, np.ones_like(low_A)], axis=1)[constant_A]  # theirs become 0, whatever the constant
    forward_A2[~mask_A] = (0, 1)
    scale_A = np.where(mask_A, half_A if both_ways else (high_A - low_A) / 2, 1.0)
    offset_A = np.where(mask_A, low_A + scale_A, 0.0)
    pairs = tuple((float(a), float(b)) for a, b in forward_A2)
    flagged = tuple(int(i) for i in np.flatnonzero(constant_A))
    return Normalizer("quantile", _floats(offset_A), _floats(scale_A), flagged, "", pairs, True, clip_out, binary)


def openpi(data: Mapping[str, Any], where: str, size: int, *, quantiles: bool) -> Normalizer:
    """The first `size` numbers (the rest is padding)."""
    first, second = (np.array(x, float)[:size] for x in require(data, ("q01", "q99") if quantiles else ("mean", "std"), where))
    _same(where, first, second)
    if len(first) != size:
        raise SchemaError(f"{where} has {len(first)} numbers; the robot has {size}")
    scale_A = (second - first + 1e-6) / 2 if quantiles else second + 1e-6
    offset_A = first + scale_A if quantiles else first
    return Normalizer("quantile" if quantiles else "zscore", _floats(offset_A), _floats(scale_A))


def lerobot(data: Mapping[str, Any], where: str, size: int, mode: str, eps: float) -> Normalizer:
    """`mode`: of `norm_map`."""
    pairs = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
    if mode == "IDENTITY":
        return Normalizer.identity(size, f"{where} says IDENTITY")
    if mode not in pairs:
        raise UnknownName("normalisation", mode, [*pairs, "IDENTITY"])
    first, second = (np.asarray(x, float).reshape(-1)[:size] for x in require(data, pairs[mode], where))
    _same(where, first, second)
    if len(first) != size:
        raise SchemaError(f"{where} has {len(first)} numbers; the robot has {size}")
    if mode == "MEAN_STD":
        forward = tuple((float(mean), float(std) + eps) for mean, std in zip(first, second, strict=True))
        return Normalizer("zscore", _floats(first), _floats(second), forward=forward)
    half_A = np.where(second == first, eps, second - first) / 2
    return Normalizer("quantile", _floats(first + half_A), _floats(half_A))


def _floats(values_A: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values_A)


def _same(where: str, *arrays: np.ndarray) -> None:
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise SchemaError(f"{where}: lists of different lengths {[array.shape for array in arrays]}")
