"""Fewer and larger steps for acting: linear maps of one input as one product, root-mean-square norms as one kernel, frozen batch norms as
part of the convolutions before them, and weights that lie as a CPU reads them.

Queries, keys and values, and gate and up, become rows of one matrix, in place: names, checkpoints and numbers stay as they were (each
weight is a view of its rows), and no memory is added. The first of them that is called computes all, and the others take their share of
it. Whoever trains the parts, or moves them to another device or precision, separates them again.

A norm of transformers' is six kernels, one of them its gain's. torch has one for all of it, so that folding the gain into the next product,
which would change weights, has nothing left to save. A norm is known by what it computes, not by its name.

On a CPU the weights of narrow maps are stored by columns: the product of a few tokens waits for memory, and then reads it in order. That is
less time for some ten tokens, the same for hundreds, and for wider maps sometimes more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("q", "kv"), ("gate_proj", "up_proj"))
"""Names of maps that read the same input, in transformers' classes and in ours."""
NARROW = 256
"""Numbers in the input of a map whose weight is stored by columns, at most."""


class Share(nn.Linear):
    """One of several maps that are one product. It is a map of its own wherever its input is not that of the one before it."""

    product: Product
    place: int

    def forward(self, x: Tensor) -> Tensor:
        return self.product.take(self, x)


class Product:
    """The maps together. `weight_OI`: theirs, one below the other."""

    def __init__(self, parts: Sequence[Share]) -> None:
        self.weight_OI, self.bias_O = _laid_out(torch.cat([part.weight.data for part in parts])), None
        if parts[0].bias is not None:
            self.bias_O = torch.cat([part.bias.data for part in parts])
        self.sizes = [part.out_features for part in parts]
        self._x: Tensor | None = None
        self._found: dict[int, Tensor] = {}
        for place, (part, rows_OI) in enumerate(zip(parts, self.weight_OI.split(self.sizes), strict=True)):
            part.product, part.place, part.weight.data = self, place, rows_OI
            if self.bias_O is not None:
                part.bias.data = self.bias_O.split(self.sizes)[place]
        self._at = [part.weight.data_ptr() for part in parts]

    def left(self, part: Share) -> bool:
        """Whether the part's weight is another than its rows here."""
        return part.weight.data_ptr() != self._at[part.place] or part.weight.dtype != self.weight_OI.dtype

    def take(self, part: Share, x: Tensor) -> Tensor:
        """The part's rows of the product with `x`, which is computed when the first part asks and kept until the last one has."""
        if self.left(part) or torch.is_grad_enabled():
            return F.linear(x, part.weight, part.bias)
        if self._x is not x or part.place not in self._found:
            self._x, self._found = x, dict(enumerate(F.linear(x, self.weight_OI, self.bias_O).split(self.sizes, dim=-1)))
        found = self._found.pop(part.place)
        if not self._found:
            self._x = None
        return found


def whole_product(maps: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """(..., all of their outputs, one after the other), where they are parts of one product and nobody learns; else None."""
    first = maps[0]
    if torch.is_grad_enabled() or not isinstance(first, Share) or len(maps) != len(first.product.sizes):
        return None
    if not all(isinstance(each, Share) and each.product is first.product and not each.product.left(each) for each in maps):
        return None
    return F.linear(x, first.product.weight_OI, first.product.bias_O)


def fuse(model: nn.Module) -> int:
    """Joins the siblings in every module of a model, where they are plain maps of equal inputs; how many products came of it. Its
    root-mean-square norms become one kernel each (`Norm`), and on a CPU narrow maps are laid out anew."""
    count = 0
    join_norms(model)
    for module in list(model.modules()):
        for names in SIBLINGS:
            maps = [getattr(module, name, None) for name in names]
            if all(type(each) is nn.Linear for each in maps) and _alike(maps):
                for each in maps:
                    each.__class__ = Share
                Product([each for each in maps if isinstance(each, Share)])
                count += 1
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if type(module) is nn.Linear and id(module.weight) not in tables:
            module.weight.data = _laid_out(module.weight.data)
    return count


class Norm(nn.Module):
    """Mixed into the class of a norm: x / sqrt(mean(x^2) + eps) * gain in one kernel, while nobody learns and all is of one type."""

    weight: Tensor
    one_more: bool
    root_eps: float
    own_forward: Callable[[Any, Tensor], Tensor]
    _gain: tuple[int, int, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != self.weight.dtype:
            return self.own_forward(x)
        return F.rms_norm(x, self.weight.shape, self._gain_D() if self.one_more else self.weight, self.root_eps)

    def _gain_D(self) -> Tensor:
        """One more than the weight, computed again whenever that may be another."""
        weight = self.weight
        at = (weight.data_ptr(), -1 if weight.is_inference() else weight._version)  # made in inference mode, it counts no versions
        if self._gain is None or self._gain[:2] != at or at[1] < 0:
            self._gain = (*at, (1 + weight.float()).to(weight.dtype))
        return self._gain[2]


def join_norms(model: nn.Module) -> int:
    """Makes a `Norm` of each root-mean-square norm of a model; how many. Frozen batch norms become part of the convolutions before them."""
    for module in model.modules():
        if hasattr(module, "folds"):
            module.folds = True
    return sum(_one_kernel(module) for module in model.modules())


def _one_kernel(module: nn.Module) -> bool:
    """Whether a module computes a root-mean-square norm, with `weight` or 1 + `weight` as its gain; then it is a `Norm` from now on, and of
    its own class as before."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    own = dict(module.named_parameters())
    if [*own] != ["weight"] or own["weight"].ndim != 1 or own["weight"].is_meta or not isinstance(eps, float):
        return False
    if isinstance(module, (Norm, nn.RMSNorm, nn.LayerNorm)) or any(True for _ in module.children()):
        return False
    weight = own["weight"].detach()
    # No mean of zero: a norm that subtracts it would look the same.
    x = torch.linspace(-1, 3, 3 * len(weight), device=weight.device, dtype=weight.dtype).view(3, -1)
    near = 1e-4 if weight.dtype == torch.float32 else 2e-2
    with torch.no_grad():
        try:
            found = module(x)
        except (TypeError, ValueError, RuntimeError):  # it wants something else
            return False
        for one_more in (False, True):
            gain = weight.float() + one_more
            if isinstance(found, Tensor) and torch.allclose(found.float(), F.rms_norm(x.float(), weight.shape, gain, eps), near, near):
                module.one_more, module.root_eps = one_more, eps
                module.__class__ = _joined(type(module))
                return True
    return False


@functools.cache
def _joined(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (Norm, kind), {"own_forward": kind.forward, "__module__": kind.__module__})


def _laid_out(weight_OI: Tensor) -> Tensor:
    by_columns = weight_OI.device.type == "cpu" and weight_OI.shape[1] <= NARROW
    return weight_OI.t().contiguous().t() if by_columns else weight_OI


def _alike(maps: Sequence[nn.Linear]) -> bool:
    kinds = {(each.in_features, each.weight.dtype, each.weight.device, each.bias is None) for each in maps}
    return len(kinds) == 1 and not maps[0].weight.is_meta
