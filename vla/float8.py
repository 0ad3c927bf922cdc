"""Linear maps in 8-bit floating point, for a GPU that multiplies them: half the bytes of bf16 to read, twice the operations a second.

E4M3 (Micikevicius et al. 2022): each row of a weight and each token has a scale of its own, so that the largest number of either is 448.
Scales of tokens are found as they come; nothing is calibrated. A map rounds to about 3 bits: actions stay close, not the same, so that a
policy is to be evaluated as it will act.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 448.0
"""Of E4M3."""
LEAST = (8, 9)
"""Compute capability of the first GPUs with such products."""
UNIT = 16
"""The library's products want sides that are multiples of this."""


class Float8Linear(nn.Module):
    """A linear map whose weight is E4M3 and whose input becomes so. Elsewhere than on a GPU it computes the same numbers, slowly."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight_OI, scale_O1 = _scaled(linear.weight.data)
        self.register_buffer("weight_OI", weight_OI)
        self.register_buffer("scale_1O", scale_O1.t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), of the type that came."""
        rows_NI = x.reshape(-1, self.in_features)
        x_NI, scale_N1 = _scaled(rows_NI)
        if x.is_cuda:
            out_NO = torch._scaled_mm(x_NI, self.weight_OI.t(), scale_N1, self.scale_1O, out_dtype=torch.bfloat16)
        else:
            out_NO = (x_NI.float() @ self.weight_OI.float().t()) * scale_N1 * self.scale_1O
        out_NO = out_NO.to(x.dtype)
        return (out_NO if self.bias is None else out_NO + self.bias).view(*x.shape[:-1], self.out_features)


def to_float8(model: nn.Module) -> int:
    """Replaces the plain maps whose sides allow it, one after the other, so that no second model is held; how many. Not for training."""
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not (child.in_features % UNIT or child.out_features % UNIT):
                setattr(module, name, Float8Linear(child))
                count += 1
    return count


def multiplies(device: torch.device) -> bool:
    """Whether a device has such products."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, I) -> E4M3 and their scales, float32 (N, 1)."""
    scale_N1 = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (rows.float() / scale_N1).to(torch.float8_e4m3fn), scale_N1
