"""Each number in one of 256 bins over -1..1 (RT-2, Brohan et al. 2023; OpenVLA, Kim et al. 2024).

256 edges `linspace(-1, 1, 256)` give 255 bins with centres between edges; values outside go to the end bins. Round-trip error: at most
1/255 inside -1..1. OpenVLA's `digitize` yields 1..256, of which 256 (exactly 1.0) decodes to the last centre; ours is digitize - 1,
clipped to 0..254, or with `top` as theirs: numbers from 1 on have a code of their own (an open gripper, say), which decodes as the last.

With `spacing="quantile"` the inner edges are quantiles of the training chunks, per robot and number, so that every bin is used equally
often; a bin's value is the mean of what fell into it. The error is then small where there is data: half a bin's width.

Fast control makes neighbouring steps nearly equal. With `every` = n only every n-th step has codes, and the steps between are
interpolated: n times fewer tokens. The error is then also that of linear interpolation: a quarter of the largest change of slope
within n steps (times n), so nothing for straight motion; an edge of a gripper moves by at most n - 1 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vla.codecs.base import Codec, need_fitted
from vla.errors import UserError
from vla.roster import Roster
from vla.types import ActionSpec

FIT_CHUNKS = 2048


@dataclass(frozen=True)
class Bins:
    """`edges`: number of bin edges. `every`: steps from one coded step to the next. `spacing`: of the edges over -1..1."""

    kind: ClassVar[str] = "codec.bins"
    edges: int = 256
    every: int = 1
    spacing: Literal["uniform", "quantile"] = "uniform"
    top: bool = False

    def build(self, roster: Roster) -> BinsCodec:
        if self.edges < 2 or self.every < 1:
            raise UserError(f"bins need at least 2 edges and every >= 1; got {self.edges} and {self.every}")
        if self.spacing not in ("uniform", "quantile"):
            raise UserError(f"spacing '{self.spacing}' of bins: choose uniform or quantile")
        if self.top and self.spacing != "uniform":
            raise UserError("a code of its own for numbers from 1 on (top) goes with uniform bins")
        return QuantileBins(self, roster) if self.spacing == "quantile" else BinsCodec(self)


class BinsCodec(Codec):
    """One code per number of every n-th step, in the order of (T, A)."""

    def __init__(self, config: Bins) -> None:
        super().__init__()
        self.bins, self.every = config.edges - 1, config.every
        self.vocabulary = self.bins + config.top
        self.slot_axes = (f"T{config.every}A", None)

    def length(self, horizon: int, width: int) -> int:
        return -(-horizon // self.every) * width

    def encode(self, action_BTA: Tensor, spec: ActionSpec) -> Tensor:
        return self._bins(action_BTA[:, :: self.every].double(), spec).clamp(0, self.vocabulary - 1).flatten(1)

    def decode(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        self.require(spec)
        T, A = spec.mask_BTA.shape[1:]
        coded_BKA = self._values(code_BN.view(len(code_BN), -1, A), spec)
        step_T = torch.arange(T, device=code_BN.device)
        before_T, share_T1 = step_T // self.every, (step_T % self.every / self.every)[:, None]
        after_T = (before_T + 1).clamp(max=coded_BKA.shape[1] - 1)
        exists_BKA = spec.mask_BTA[:, :: self.every]
        # Past a robot's last coded step there is nothing to interpolate to: its value is held.
        start_BTA = coded_BKA[:, before_T]
        change_BTA = (coded_BKA[:, after_T] - start_BTA) * exists_BKA[:, after_T]
        return (start_BTA + change_BTA * share_T1) * spec.mask_BTA

    def exists(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        return spec.mask_BTA[:, :: self.every].flatten(1)

    def labelled(self, exists_BN: Tensor, label_BTA: Tensor) -> Tensor:
        return label_BTA[:, :: self.every].flatten(1)

    def _bins(self, value_BKA: Tensor, spec: ActionSpec) -> Tensor:
        # digitize(x, edges) - 1 in float64, where an edge value falls into the bin it opens. numpy's own edges: torch's linspace
        # differs from it in the last place.
        edges = torch.from_numpy(np.linspace(-1, 1, self.bins + 1)).to(value_BKA.device)
        return torch.bucketize(value_BKA, edges, right=True) - 1

    def _values(self, code_BKA: Tensor, spec: ActionSpec) -> Tensor:
        return ((code_BKA.clamp(max=self.bins - 1).double() + 0.5) * (2 / self.bins) - 1).float()


class QuantileBins(BinsCodec):
    """Edges and values of each robot's each number, fitted on data."""

    edge_EAQ: Tensor
    value_EAC: Tensor
    fits = FIT_CHUNKS

    def __init__(self, config: Bins, roster: Roster) -> None:
        super().__init__(config)
        E, A = len(roster), roster.action_width
        self.register_buffer("edge_EAQ", torch.zeros(E, A, self.vocabulary - 1))
        self.register_buffer("value_EAC", torch.zeros(E, A, self.vocabulary))
        self._fits_robots(roster)
        self.roster_axes = {"edge_EAQ": ("E", "A", None), "value_EAC": ("E", "A", None), "fitted_E": ("E",)}

    def fit(self, action_BTA: Tensor, spec: ActionSpec) -> None:
        for robot in range(len(self.fitted_E)):
            rows_B = spec.embodiment_B == robot
            if self.fitted_E[robot] or not (rows_B[:, None, None] & spec.mask_BTA).any():
                continue
            for number in range(action_BTA.shape[2]):
                found_N = action_BTA[rows_B, :, number][spec.mask_BTA[rows_B, :, number]].double()
                if len(found_N):
                    self.edge_EAQ[robot, number], self.value_EAC[robot, number] = self._fitted(found_N)
            self.fitted_E[robot] = 1

    def _fitted(self, found_N: Tensor) -> tuple[Tensor, Tensor]:
        """Inner edges, and the mean of what falls between them (an edge may repeat: then bins between are empty and hold it)."""
        share = torch.linspace(0, 1, self.vocabulary + 1, dtype=torch.float64, device=found_N.device)
        edge_Q = torch.quantile(found_N, share).float()
        bin_N = torch.searchsorted(edge_Q[1:-1].double(), found_N, right=True)
        count_C = torch.bincount(bin_N, minlength=self.vocabulary)
        sum_C = torch.zeros_like(count_C, dtype=torch.float64).index_add_(0, bin_N, found_N)
        return edge_Q[1:-1], torch.where(count_C > 0, sum_C / count_C.clamp(min=1), edge_Q[:-1].double()).float()

    def _bins(self, value_BKA: Tensor, spec: ActionSpec) -> Tensor:
        need_fitted(any(self._fitted_now()), "the quantile codec")
        edges_BAQ = self.edge_EAQ[spec.embodiment_B].double()
        return torch.searchsorted(edges_BAQ, value_BKA.transpose(1, 2).contiguous(), right=True).transpose(1, 2)

    def _values(self, code_BKA: Tensor, spec: ActionSpec) -> Tensor:
        return self.value_EAC[spec.embodiment_B].gather(2, code_BKA.transpose(1, 2)).transpose(1, 2)
