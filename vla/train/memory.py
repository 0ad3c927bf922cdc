"""What training holds in the memory of one device, from its model's sizes and how it is spread (Rajbhandari et al. 2020, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from vla.train.optim import Zero

DEEP = ("vision", "projector", "language", "head")
"""Parts of a part that are named on their own."""


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to: its top module, and within a vision-language backbone one of `DEEP`."""
    top, _, rest = name.partition(".")
    inner = rest.partition(".")[0]
    return f"{top}.{inner}" if inner in DEEP else top


def parameters_by_part(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Part -> (trained, frozen) numbers. Under ZeRO-3 a parameter is empty between uses, and `ds_numel` is its size."""
    found: dict[str, tuple[int, int]] = {}
    for name, p in model.named_parameters():
        trained, frozen = found.get(part_of(name), (0, 0))
        size = getattr(p, "ds_numel", p.numel())
        found[part_of(name)] = (trained + size, frozen) if p.requires_grad else (trained, frozen + size)
    return found


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. `working`: low-precision copies that autocast makes, and the flat buffer of the all-reduce. `host`: what is
    offloaded to the machine's own memory, and no part of the total."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    working: float = 0.0
    activations: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "host")

    def line(self) -> str:
        """For people; what is nothing is left out."""
        parts = [(field.name, getattr(self, field.name)) for field in fields(self)]
        said = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts if size and name != "host")
        return f"{gigabytes(self.total)} a device ({said})" + (f", and {gigabytes(self.host)} of the host's" if self.host else "")


def gigabytes(size: float) -> str:
    """10^9 bytes, as devices are sold."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def estimate(
    model: nn.Module, precision: str, ema: bool, zero: Zero | None, world: int, activations: float = 0.0, moment_bits: int = 32
) -> Memory:
    """Of a model, built or on the meta device, on each of `world` ranks.

    Plain torch keeps everything in fp32 on every rank. DeepSpeed computes in the run's precision, and keeps masters, moments and the
    average in fp32: stage 1 shares these out over the ranks, 2 the gradients too, 3 the weights as well.
    """
    params = [(getattr(p, "ds_numel", p.numel()), p) for p in model.parameters()]  # under ZeRO-3 one is empty between uses
    count, trained = sum(n for n, _ in params), sum(n for n, p in params if p.requires_grad)
    packed = sum(b.numel() * b.element_size() for b in model.buffers())  # weights in 4 bits are buffers
    copies = 4 * trained * ema
    low = precision == "bf16"
    if zero is None:
        weights = sum(n * p.element_size() for n, p in params) + packed
        working = 2 * count * low + 4 * trained * (world > 1)
        return Memory(weights, 4 * trained, trained * moment_bits / 4, copies, working, activations)
    size = 2 if low else 4
    weights = size * count / (world if zero.stage == 3 else 1)
    gradients = size * trained / (world if zero.stage >= 2 else 1)
    optimizer, copies, host = 12 * trained / world, copies / world, 0.0
    if zero.device_of("offload_optimizer") != "none":
        host, optimizer, copies = host + optimizer + copies, 0.0, 0.0
    if zero.device_of("offload_param") != "none":
        host, weights = host + weights, 0.0
    return Memory(weights + packed, gradients, optimizer, copies, 0.0, activations, host)


def activation_bytes(model: nn.Module, forward: Callable[[], Any]) -> float:
    """Bytes that one forward pass keeps for the backward pass, each storage once and weights left out; exact also on the meta device.

    With gradient checkpointing that is what lies between the checkpoints.
    """
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held on to, so that its number is not given away again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return float(sum(storage.nbytes() for storage in kept.values()))
