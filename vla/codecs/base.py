"""The interface of a codec: a normalised chunk (B, T, A) as at most N integer codes, and back.

A codec may be fitted on data before training (edges, merges, a codebook). What it finds lies in buffers, so a checkpoint's weights hold
it and nothing beside them is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vla.errors import UserError
from vla.kept import MAKING
from vla.roster import Roster
from vla.types import ActionSpec


class Codec(ABC, nn.Module):
    """`vocabulary`: number of codes. `slot_axes`: what a place counts, for carrying weights to another roster (`T3A`: one place per
    number of every third step, in that order; None: the place itself).

    `fits`: chunks that `fit` wants to see before training, 0 where there is nothing to fit. `whole`: codes speak of a chunk as a whole
    and not of one number each, so steps past an episode's end are held (`hold`) and a chunk is labelled where its first step is.
    `fixed`: the number of codes follows from the robot alone; otherwise from the chunk, and `begin` and `allow` guide decoding.
    `robots`: those that it is fitted on each for itself, in the roster's order; () where robots share what is fitted.
    """

    vocabulary: int
    slot_axes: tuple[str | None, ...]
    fits: int = 0
    whole: bool = False
    fixed: bool = True
    robots: tuple[str, ...] = ()
    fitted_E: Tensor
    _known: tuple[object, tuple[bool, ...]] = (None, ())

    @abstractmethod
    def length(self, horizon: int, width: int) -> int:
        """N: the most codes that a chunk can have."""

    @abstractmethod
    def encode(self, action_BTA: Tensor, spec: ActionSpec) -> Tensor:
        """float (B, T, A) in about -1..1 -> int64 (B, N) in [0, vocabulary). Where no number exists the code means nothing, nor where
        `require` would refuse: rows without labels are encoded too, and whoever learns from codes asks it of the others."""

    @abstractmethod
    def decode(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        """int64 (B, N) -> float32 (B, T, A), 0 where the mask is False. Every sequence that `allow` allows decodes (if `fixed`: every
        one), and codes of places that do not exist move nothing. What `require` refuses is refused."""

    @abstractmethod
    def exists(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        """bool (B, N): which places hold a code. If `fixed`, the codes are not looked at."""

    def labelled(self, exists_BN: Tensor, label_BTA: Tensor) -> Tensor:
        """bool (B, N): which codes there is something to learn from."""
        return exists_BN & label_BTA.flatten(1).any(1, keepdim=True)

    def blocks(self, horizon: int, width: int) -> Tensor:
        """int64 (N,), rising from 0: codes of one block are predicted at once, from the blocks before. By default one by one."""
        return torch.arange(self.length(horizon, width))

    def parents(self, horizon: int, width: int) -> Tensor:
        """int64 (N,): the code of an earlier block that a place is shown while it is predicted; -1 for the start."""
        return torch.arange(self.length(horizon, width)) - 1

    def ranges(self, horizon: int, width: int) -> Tensor | None:
        """int64 (N, 2): the codes [first, last) that a place may hold; None: all of them everywhere."""
        return None

    def begin(self, spec: ActionSpec) -> Tensor:
        """What is still to be said before the first code: int64 (B, n), 0 once a chunk is complete. Only if not `fixed`."""
        raise AssertionError("a codec of fixed length needs no guide")

    def allow(self, left_Bn: Tensor) -> Tensor:
        """bool (B, vocabulary): codes after which the chunk can still be completed. Only if not `fixed`."""
        raise AssertionError("a codec of fixed length needs no guide")

    def spend(self, left_Bn: Tensor, code_B: Tensor) -> Tensor:
        """What is still to be said after these codes; complete chunks stay complete. Only if not `fixed`."""
        raise AssertionError("a codec of fixed length needs no guide")

    def fit(self, action_BTA: Tensor, spec: ActionSpec) -> None:
        """Fits what `fits` speaks of on chunks of the training data; what is fitted already (by a checkpoint) stays."""

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Before `fit`: what the codec of the checkpoint that a run starts from was fitted to, under the names of its buffers."""

    def moved(self, weight_VD: Tensor) -> Tensor:
        """After `fit`: rows learned on the adopted codec's codes -> rows for the codes as they mean now. float (vocabulary, D)."""
        return weight_VD

    def require(self, spec: ActionSpec) -> None:
        """UserError, with the robots' names, where a row has numbers and its robot is not fitted: its codes would mean nothing."""
        fitted = self._fitted_now() if self.robots else ()
        if all(fitted):  # then the rows, which may lie on a GPU, are not looked at
            return
        rows = zip(spec.embodiment_B.tolist(), spec.mask_BTA.flatten(1).any(1).tolist(), strict=True)
        lacking = sorted({self.robots[robot] for robot, exists in rows if exists and not fitted[robot]})
        need_fitted(not lacking, f"the {type(self).__name__}", lacking)

    def _fits_robots(self, roster: Roster) -> None:
        """For a constructor: this codec is fitted on each robot for itself, and `fitted_E` is 1 for those that are."""
        self.robots = roster.names
        self.register_buffer("fitted_E", torch.zeros(len(roster)))

    def _fitted_now(self) -> tuple[bool, ...]:
        """Of each robot. The buffer is looked at once, and again when it has changed: on a GPU each look is a wait, and ends a capture."""
        key = (self.fitted_E.data_ptr(), 0 if self.fitted_E.is_inference() else self.fitted_E._version)
        if self._known[0] != key:
            begun = MAKING.set(True)
            try:
                self._known = (key, tuple(value > 0 for value in self.fitted_E.tolist()))
            finally:
                MAKING.reset(begun)
        return self._known[1]


def hold(action_BTA: Tensor, label_BTA: Tensor) -> Tensor:
    """Replaces every unlabelled step by the last labelled one before it (zeros without any), per number."""
    T = action_BTA.shape[1]
    place_T1 = torch.arange(T, device=action_BTA.device)[:, None]
    last_BTA = torch.where(label_BTA, place_T1, -1).cummax(dim=1).values
    return action_BTA.gather(1, last_BTA.clamp(min=0)) * (last_BTA >= 0)


def need_fitted(ready: bool, what: str, robots: Sequence[str] = ()) -> None:
    """Refuses a codec that was never fitted (on these robots): its codes would mean nothing."""
    if not ready:
        on, it = (f" on {', '.join(robots)}", "a source of its actions") if robots else ("", "it")
        fix = f"train with {it} (a run fits it on its data first), or load a checkpoint that holds it"
        raise UserError(f"{what} is not fitted{on}: {fix}")
