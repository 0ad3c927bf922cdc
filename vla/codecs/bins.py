"""Each number in one of 256 uniform bins over -1..1 (RT-2, Brohan et al. 2023; OpenVLA, Kim et al. 2024).

256 edges `linspace(-1, 1, 256)` give 255 bins with centres between edges; values outside go to the end bins. Round-trip error: at most
1/255 inside -1..1. OpenVLA's `digitize` yields 1..256, of which 256 (exactly 1.0) decodes to the last centre; ours is digitize - 1,
clipped to 0..254.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vla.codecs.base import Codec


@dataclass(frozen=True)
class Bins:
    """`edges`: number of bin edges over -1..1."""

    kind: ClassVar[str] = "codec.bins"
    edges: int = 256

    def build(self) -> BinsCodec:
        return BinsCodec(self)


class BinsCodec(Codec):
    """One code per number, in the order of (T, A)."""

    slot_axes = ("TA", None)

    def __init__(self, config: Bins) -> None:
        super().__init__()
        self.vocabulary = config.edges - 1

    def length(self, horizon: int, width: int) -> int:
        return horizon * width

    def encode(self, action_BTA: Tensor) -> Tensor:
        # digitize(x, edges) - 1 in float64, where an edge value falls into the bin it opens. numpy's own edges: torch's linspace
        # differs from it in the last place.
        edges = torch.from_numpy(np.linspace(-1, 1, self.vocabulary + 1)).to(action_BTA.device)
        bins = torch.bucketize(action_BTA.double(), edges, right=True) - 1
        return bins.clamp(0, self.vocabulary - 1).flatten(1)

    def decode(self, code_BN: Tensor, horizon: int, width: int) -> Tensor:
        centre = (code_BN.double() + 0.5) * (2 / self.vocabulary) - 1
        return centre.float().view(-1, horizon, width)

    def mask(self, mask_BTA: Tensor) -> Tensor:
        return mask_BTA.flatten(1)
