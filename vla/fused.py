"""Linear maps for acting: those of one input as one product, and weights that lie as a CPU reads them.

Queries, keys and values, and gate and up, become rows of one matrix, in place: names, checkpoints and numbers stay as they were (each
weight is a view of its rows), and no memory is added. The first of them that is called computes all, and the others take their share of
it. Whoever trains the parts, or moves them to another device or precision, separates them again.

On a CPU the weights of narrow maps are stored by columns: the product of a few tokens waits for memory, and then reads it in order. That is
less time for some ten tokens, the same for hundreds, and for wider maps sometimes more.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def take(self, part: Share, x: Tensor) -> Tensor:
        """The part's rows of the product with `x`, which is computed when the first part asks and kept until the last one has."""
        moved = part.weight.data_ptr() != self._at[part.place] or part.weight.dtype != self.weight_OI.dtype
        if moved or torch.is_grad_enabled():
            return F.linear(x, part.weight, part.bias)
        if self._x is not x or part.place not in self._found:
            self._x, self._found = x, dict(enumerate(F.linear(x, self.weight_OI, self.bias_O).split(self.sizes, dim=-1)))
        found = self._found.pop(part.place)
        if not self._found:
            self._x = None
        return found


def fuse(model: nn.Module) -> int:
    """Joins the siblings in every module of a model, where they are plain maps of equal inputs; how many products came of it. On a CPU
    narrow maps are laid out anew."""
    count = 0
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


def _laid_out(weight_OI: Tensor) -> Tensor:
    by_columns = weight_OI.device.type == "cpu" and weight_OI.shape[1] <= NARROW
    return weight_OI.t().contiguous().t() if by_columns else weight_OI


def _alike(maps: Sequence[nn.Linear]) -> bool:
    kinds = {(each.in_features, each.weight.dtype, each.weight.device, each.bias is None) for each in maps}
    return len(kinds) == 1 and not maps[0].weight.is_meta
