"""Floating-point operations of a model's own pass, counted as it runs, and what the machine could do (for MFU).

MFU (Chowdhery et al. 2022, PaLM, appendix B): the operations that the model needs, without any that are done twice to save memory, over
what the device does at most. That most is measured here, by a matrix product, not taken from a data sheet: a share of 100% is in reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vla.decoders.base import total_loss
from vla.noise import Noise
from vla.types import Batch


@contextmanager
def counted() -> Iterator[Callable[[], float]]:
    """Counts what runs inside, in operations (a multiplication and an addition are two). The function tells the sum so far."""
    from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

    def attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the one that torch's own table lacks
    with _Counter({**flop_registry, kernel: shape_wrapper(attention)}) as counter:
        yield lambda: float(counter.total)


class _Counter(TorchDispatchMode):
    """Sums up torch's own formulas. Not torch's FlopCounterMode, which also follows modules, and fails there on a view of a parameter
    that was made in inference mode."""

    def __init__(self, formulas: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()
        self.formulas, self.total = formulas, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = self.formulas.get(func._overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **(kwargs or {}))  # in inference mode a linear layer arrives whole
            if parts is not NotImplemented:
                return parts
        out = func(*args, **(kwargs or {}))
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def backward_share(model: nn.Module) -> float:
    """Operations of the backward pass per operation of the forward pass, about: one for the gradient of what came in, and one for the
    gradient of the weights where they are trained."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters() if p.dim() > 1]
    return 1 + sum(n for n, trained in sizes if trained) / max(sum(n for n, _ in sizes), 1)


def count_on_meta(model: nn.Module, batch: Batch, noise: Noise) -> tuple[float, float]:
    """(forward, backward) of one batch, exactly, without computing it: model, batch and noise are on the meta device.

    Gradient checkpointing is off meanwhile. Raises RuntimeError where the model must know a value to go on.
    """
    backbone: Any = model.get_submodule("backbone")
    on = any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules())
    if on:
        backbone.set_gradient_checkpointing(False)
    try:
        with answered(), counted() as operations:
            loss = total_loss(model(batch, noise))
            forward = operations()
            loss.backward()
            return forward, operations() - forward
    finally:
        if on:
            backbone.set_gradient_checkpointing(True)


class answered(TorchDispatchMode):
    """On the meta device, questions of yes or no (is this codec fitted?) are answered yes; any other value stays an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta
        return True if asked and args[0].dtype == torch.bool else func(*args, **(kwargs or {}))


def measured_peak(device: torch.device, precision: str, size: int = 8192, repeats: int = 10) -> float:
    """Operations per second of a large matrix product at the run's precision, the best of three tries; under a second on a GPU."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):  # the first warms up
        _wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * repeats / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
