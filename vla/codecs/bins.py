"""Each number in one of 256 uniform bins over -1..1 (RT-2, Brohan et al. 2023; OpenVLA, Kim et al. 2024).

256 edges `linspace(-1, 1, 256)` give 255 bins with centres between edges; values outside go to the end bins. Round-trip error: at most
1/255 inside -1..1. OpenVLA's `digitize` yields 1..256, of which 256 (exactly 1.0) decodes to the last centre; ours is digitize - 1,
clipped to 0..254.

Fast control makes neighbouring steps nearly equal. With `every` = n only every n-th step has codes, and the steps between are
interpolated: n times fewer tokens. The error is then also that of linear interpolation: a quarter of the largest change of slope
within n steps (times n), so nothing for straight motion; an edge of a gripper moves by at most n - 1 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vla.codecs.base import Codec
from vla.errors import UserError


@dataclass(frozen=True)
class Bins:
    """`edges`: number of bin edges over -1..1. `every`: steps from one coded step to the next."""

    kind: ClassVar[str] = "codec.bins"
    edges: int = 256
    every: int = 1

    def build(self) -> BinsCodec:
        if self.edges < 2 or self.every < 1:
            raise UserError(f"bins need at least 2 edges and every >= 1; got {self.edges} and {self.every}")
        return BinsCodec(self)


class BinsCodec(Codec):
    """One code per number of every n-th step, in the order of (T, A)."""

    def __init__(self, config: Bins) -> None:
        super().__init__()
        self.vocabulary, self.every = config.edges - 1, config.every
        self.slot_axes = (f"T{config.every}A", None)

    def length(self, horizon: int, width: int) -> int:
        return -(-horizon // self.every) * width

    def encode(self, action_BTA: Tensor) -> Tensor:
        # digitize(x, edges) - 1 in float64, where an edge value falls into the bin it opens. numpy's own edges: torch's linspace
        # differs from it in the last place.
        edges = torch.from_numpy(np.linspace(-1, 1, self.vocabulary + 1)).to(action_BTA.device)
        bins = torch.bucketize(action_BTA[:, :: self.every].double(), edges, right=True) - 1
        return bins.clamp(0, self.vocabulary - 1).flatten(1)

    def decode(self, code_BN: Tensor, mask_BTA: Tensor) -> Tensor:
        T, A = mask_BTA.shape[1:]
        coded_BKA = ((code_BN.double() + 0.5) * (2 / self.vocabulary) - 1).float().view(len(code_BN), -1, A)
        step_T = torch.arange(T, device=code_BN.device)
        before_T, share_T1 = step_T // self.every, (step_T % self.every / self.every)[:, None]
        after_T = (before_T + 1).clamp(max=coded_BKA.shape[1] - 1)
        exists_BKA = mask_BTA[:, :: self.every]
        # Past a robot's last coded step there is nothing to interpolate to: its value is held.
        start_BTA = coded_BKA[:, before_T]
        change_BTA = (coded_BKA[:, after_T] - start_BTA) * exists_BKA[:, after_T]
        return (start_BTA + change_BTA * share_T1) * mask_BTA

    def mask(self, mask_BTA: Tensor) -> Tensor:
        return mask_BTA[:, :: self.every].flatten(1)
