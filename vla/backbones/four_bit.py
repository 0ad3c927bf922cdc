"""Linear maps in 4 bits (NF4; Dettmers et al. 2023, QLoRA) by bitsandbytes: with LoRA beside them, a 7B model trains on a 24 GB card.

Bits and scales are buffers, so that resuming restores them exactly. A state dict holds the weight itself, in floats: a checkpoint
is the same whether its model was held in 4 bits or not, and can be loaded either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vla.errors import UserError

BLOCK = 64
"""Weights that share a scale (QLoRA, section 3)."""


class FourBitLinear(nn.Module):
    """A frozen linear map; `weight` in 4 bits, `bias` as it was."""

    code: Tensor
    packed: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        blocks = -(-linear.weight.numel() // BLOCK)
        self.register_buffer("packed", torch.zeros(blocks * BLOCK // 2, 1, dtype=torch.uint8), persistent=False)
        self.register_buffer("scale", torch.zeros(blocks), persistent=False)
        self.register_buffer("code", _library().functional.get_4bit_type("nf4", device="cpu"), persistent=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        if not linear.weight.is_meta:
            self.put(linear.weight.detach())

    def put(self, weight: Tensor) -> None:
        """Takes a weight in floats."""
        packed, state = _library().functional.quantize_4bit(weight.float().to(self.packed.device), blocksize=BLOCK, quant_type="nf4")
        self.packed.copy_(packed), self.scale.copy_(state.absmax)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The weight in floats."""
        return _library().functional.dequantize_4bit(self.packed, self._state(dtype))

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _library().matmul_4bit(x, self.packed.t(), quant_state=self._state(x.dtype), bias=bias)

    def _state(self, dtype: torch.dtype) -> Any:
        shape = torch.Size((self.out_features, self.in_features))
        state = _library().functional.QuantState
        return state(absmax=self.scale, shape=shape, code=self.code, blocksize=BLOCK, quant_type="nf4", dtype=dtype)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight_in(torch.float32)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        weight = state_dict.pop(f"{prefix}weight", None)
        if weight is not None:
            self.put(weight)
        else:
            args[2].append(f"{prefix}weight")  # missing keys
        super()._load_from_state_dict(state_dict, prefix, *args)


def quantize(backbone: Any) -> None:
    """The language model's linear maps in 4 bits, in place; norms, embeddings and adapters keep their precision."""
    _library()
    for name, linear in list(backbone.language.layers.named_modules()):
        if type(linear) is nn.Linear and ".lora_" not in name:
            owner = backbone.language.layers.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], FourBitLinear(linear))


def _library() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("weights in 4 bits need bitsandbytes: pip install 'vla[quantize]', or set four_bit=False") from error
    return bitsandbytes
