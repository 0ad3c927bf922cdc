"""One projection per embodiment, indexed per sample, so that batches mix robots and every rank runs every parameter."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """E linear maps in one padded tensor. Rows follow the roster; widths are those of the widest robot.

    `axes`: what the last two axes of the weight count (`A` actions, `P` state, or None), for carrying weights to another roster.
    """

    def __init__(self, count: int, width_in: int, width_out: int, axes: tuple[str | None, str | None]) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(width_in, 1))
        self.weight_EIO = nn.Parameter(torch.empty(count, width_in, width_out).uniform_(-bound, bound))
        self.bias_EO = nn.Parameter(torch.zeros(count, width_out))
        self.roster_axes = {"weight_EIO": ("E", *axes), "bias_EO": ("E", axes[1])}

    def forward(self, x: Tensor, embodiment_B: Tensor) -> Tensor:
        """(B, ..., I), (B,) -> (B, ..., O)."""
        flat_BNI = x.reshape(x.shape[0], -1, x.shape[-1])
        bias_B1O = self.bias_EO[embodiment_B][:, None].to(x.dtype)
        out_BNO = torch.baddbmm(bias_B1O, flat_BNI, self.weight_EIO[embodiment_B].to(x.dtype))
        return out_BNO.reshape(*x.shape[:-1], -1)
