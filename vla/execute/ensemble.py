"""How chunks that overlap in time become one command."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from vla.embodiment import ROTATION_UNITS, Space, from_rotation, to_rotation
from vla.errors import UserError


class Ensemble(Protocol):
    """Combines what several chunks say about the same step."""

    def combine(self, candidate_KA: np.ndarray, space: Space) -> np.ndarray:
        """float64 (K, A) commands for this step, from the oldest chunk to the newest, K >= 1 -> (A,)."""
        ...


@dataclass(frozen=True)
class Newest:
    """The newest chunk alone."""

    def combine(self, candidate_KA: np.ndarray, space: Space) -> np.ndarray:
        return candidate_KA[-1]


@dataclass(frozen=True)
class TemporalEnsemble:
    """Weighted mean with weights exp(-decay * i), where i = 0 is the *oldest* chunk (ACT, Zhao et al. 2023, algorithm 2).

    A larger decay trusts new chunks less; 0.01 is the paper's. Rotations are averaged as rotations (Markley et al. 2007).
    """

    decay: float = 0.01

    def __post_init__(self) -> None:
        if not math.isfinite(self.decay):
            raise UserError(f"the decay of temporal ensembling must be a finite number, not {self.decay}")

    def combine(self, candidate_KA: np.ndarray, space: Space) -> np.ndarray:
        """K predictions of one step, oldest first -> the one to execute; rotations are averaged as rotations."""
        if len(candidate_KA) == 1:
            return candidate_KA[0]
        logit_K = -self.decay * np.arange(len(candidate_KA))
        weight_K = np.exp(logit_K - logit_K.max())
        weight_K /= weight_K.sum()
        out_A = weight_K @ candidate_KA
        for field in space.fields:
            if field.frame == "from_state":
                raise UserError(f"field '{field.name}' is relative to its chunk's start: chunks cannot be averaged; use Newest()")
            if field.unit in ROTATION_UNITS:
                where = space.slices()[field.name]
                mean = to_rotation(candidate_KA[:, where], field.unit).mean(weight_K)
                out_A[where] = from_rotation(Rotation.concatenate([mean]), field.unit)[0]
        return out_A
