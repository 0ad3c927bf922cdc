"""Adam's moments: as torch keeps them, and in 8 bits for a quarter of the memory (after Dettmers et al. 2022).

Blocks of 256 values share a scale, their largest magnitude; a code is the fourth root of what is left, rounded, so that values down to a
thousandth of their block's largest keep a tenth of error at most. (Their codes are a dynamic tree; roots need no table. bitsandbytes has
the tree for CUDA alone, and its state does not go to fp32 and back.) Reading a code and writing it again gives the same code: a run's
state is fp32 whatever it is trained with, and resumes to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
BLOCK = 256
LEAST_SIZE = 4096
"""Smaller tensors keep fp32: they weigh nothing, and biases and norms suffer most (Dettmers et al., section 2.3)."""


def moments(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    """Both moments of a parameter in fp32; zero before its first update."""
    held = optimizer.state[p]
    return {name: _read(held, name, p) if name in held else torch.zeros_like(p) for name in MOMENTS}


def set_moments(optimizer: torch.optim.Optimizer, p: Tensor, values: Mapping[str, Tensor], updates: int) -> None:
    """The inverse of `moments`, after so many updates."""
    packs = isinstance(optimizer, AdamW8)
    # On the host where it is asked for at every step: on a GPU each answer is a wait.
    held: dict[str, Any] = {"step": torch.tensor(float(updates), device="cpu" if packs else p.device)}
    for name in MOMENTS:
        value = values[name].to(p)
        if packs and p.numel() >= LEAST_SIZE:
            held[name], held[f"{name}_scale"] = pack(value, signed=name == "exp_avg")
        else:
            held[name] = value.clone()
    optimizer.state[p] = held


class AdamW8(torch.optim.Optimizer):
    """AdamW as torch's, whose moments are packed between updates."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                held = moments(self, p)
                first = held["exp_avg"].lerp_(p.grad, 1 - beta1)
                second = held["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                updates = float(self.state[p].get("step", 0.0)) + 1
                p.mul_(1 - group["lr"] * group["weight_decay"])
                spread = (second.sqrt() / math.sqrt(1 - beta2**updates)).add_(group["eps"])
                p.addcdiv_(first, spread, value=-group["lr"] / (1 - beta1**updates))
                set_moments(self, p, held, int(updates))


def pack(value: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(uint8 codes like `value`, fp32 scale of each block). A value that is not 0 never becomes 0 if unsigned: Adam divides by it."""
    flat = torch.nn.functional.pad(value.flatten(), (0, -value.numel() % BLOCK)).view(-1, BLOCK)
    scale = flat.abs().amax(1)
    root = (flat.abs() / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).sqrt().sqrt()
    if signed:
        code = 128 + (root * 127).round() * flat.sign()
    else:
        code = torch.where(flat > 0, (root * 255).round().clamp_min(1), 0.0)
    return code.to(torch.uint8).flatten()[: value.numel()].view_as(value), scale


def unpack(code: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """The inverse of `pack`, to rounding."""
    flat = torch.nn.functional.pad(code.flatten(), (0, -code.numel() % BLOCK), value=128 if signed else 0).view(-1, BLOCK).float()
    root = (flat - 128) / 127 if signed else flat / 255
    value = root.square().square() * root.sign() * scale[:, None]
    return value.flatten()[: code.numel()].view(code.shape)


def _read(held: Mapping[str, Any], name: str, p: Tensor) -> Tensor:
    return unpack(held[name], held[f"{name}_scale"], name == "exp_avg") if f"{name}_scale" in held else held[name]
