"""How chunks that overlap in time become one command."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

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
        """The last of float64 (K, A) predictions: (A,)."""
        return candidate_KA[-1]


@dataclass(frozen=True)
class TemporalEnsemble:
    """Weighted mean with weights exp(-decay * i), where i = 0 is the *oldest* chunk (ACT, Zhao et al. 2023, algorithm 2).

    A larger decay trusts new chunks less; 0.01 is the paper's.
    """

    continues: ClassVar[bool] = False
    warm: ClassVar[float] = 0.0
    decay: float = 0.01

    def __post_init__(self) -> None:
        if not math.isfinite(self.decay):
            raise UserError(f"the decay of temporal ensembling must be a finite number, not {self.decay}")

    @property
    def spec(self) -> str:
        """What `ensemble_of` reads."""
        return f"temporal:{self.decay!r}"

    def combine(self, candidate_KA: np.ndarray, space: Space) -> np.ndarray:
        """K predictions of one step, oldest first -> the one to execute; rotations are averaged as rotations."""
        logit_K = -self.decay * np.arange(len(candidate_KA))
        return _mean(candidate_KA, np.exp(logit_K - logit_K.max()), space)


@dataclass(frozen=True)
class AdaptiveEnsemble:
    """Weighted mean of the newest `horizon` predictions with weights exp(alpha * cos), cos between each and the newest one (CogACT, Li et
    al. 2024, section 3.4): an old prediction that points elsewhere, of another mode perhaps, counts less.

    CogACT's `adaptive_ensemble.py`: alpha 0.1, horizon 7 on the WidowX and 2 on the Google robot. The cosine is of commands in physical
    units, as there.
    """

    continues: ClassVar[bool] = False
    warm: ClassVar[float] = 0.0
    alpha: float = 0.1
    horizon: int = 7

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha) or self.horizon < 1:
            raise UserError(f"adaptive ensembling needs a finite alpha and a horizon of at least 1, not {self.alpha} and {self.horizon}")

    @property
    def spec(self) -> str:
        """What `ensemble_of` reads."""
        return f"adaptive:{self.alpha!r}:{self.horizon}"

    def combine(self, candidate_KA: np.ndarray, space: Space) -> np.ndarray:
        """K predictions of one step, oldest first -> the one to execute."""
        recent_KA = candidate_KA[-self.horizon :]
        newest_A = recent_KA[-1]
        length_K = np.linalg.norm(recent_KA, axis=1) * np.linalg.norm(newest_A)
        cosine_K = recent_KA @ newest_A / np.maximum(length_K, 1e-7)
        return _mean(recent_KA, np.exp(self.alpha * cosine_K), space)


@dataclass(frozen=True)
class RealTime(Newest):
    """The newest chunk alone, which was asked to continue the one before it (vla/execute/realtime.py). `warm`: see `Continuation`."""

    continues: ClassVar[bool] = True
    warm: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warm < 1:
            raise UserError(f"a chunk can be started from the last one noised to a time in [0, 1), not {self.warm}")

    @property
    def spec(self) -> str:
        """What `ensemble_of` reads."""
        return f"realtime:{self.warm!r}"


Overlapping = TemporalEnsemble | AdaptiveEnsemble | RealTime
"""Those that a simulator's process can be told by their `spec`. `continues`: whether a chunk is asked to go on from the one before it,
`warm` as in `Continuation`."""


def ensemble_of(spec: str) -> Overlapping:
    """`temporal:DECAY` (or the number alone), `adaptive:ALPHA:HORIZON` or `realtime:WARM`; what is left out keeps the paper's value."""
    name, *given = spec.split(":")
    try:
        if name == "adaptive" and len(given) <= 2:
            return AdaptiveEnsemble(*(convert(value) for convert, value in zip((float, int), given, strict=False)))
        if name == "realtime" and len(given) <= 1:
            return RealTime(*map(float, given))
        if name == "temporal" and len(given) <= 1:
            return TemporalEnsemble(*map(float, given))
        if not given:
            return TemporalEnsemble(float(name))
    except UserError:
        raise
    except ValueError:
        pass
    raise UserError(
        f"ensemble '{spec}' is not understood; give temporal:DECAY (temporal:0.01), adaptive:ALPHA:HORIZON (adaptive:0.1:7) or realtime"
    )


def _mean(candidate_KA: np.ndarray, weight_K: np.ndarray, space: Space) -> np.ndarray:
    """The weighted mean of predictions (A,); of rotations, the mean rotation (Markley et al. 2007)."""
    if len(candidate_KA) == 1:
        return candidate_KA[0]
    weight_K = weight_K / weight_K.sum()
    out_A = weight_K @ candidate_KA
    for field in space.fields:
        if field.frame == "from_state":
            raise UserError(f"field '{field.name}' is relative to its chunk's start: chunks cannot be averaged; use Newest()")
        if field.unit in ROTATION_UNITS:
            where = space.slices()[field.name]
            mean = to_rotation(candidate_KA[:, where], field.unit).mean(weight_K)
            out_A[where] = from_rotation(Rotation.concatenate([mean]), field.unit)[0]
    return out_A
