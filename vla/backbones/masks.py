"""The one rule of attention in the form that each attention implementation of `transformers` takes.

| implementation | form | what goes wrong otherwise |
|---|---|---|
| sdpa | bool, True is seen | float 0/1 is silently added to the scores |
| eager | additive: 0, or the type's finite minimum | bool is silently added; -inf makes NaN of a row that sees nothing |
| flex_attention | BlockMask | an additive tensor aborts the process |
| flash_attention_2/3 | (B, Sk) bool of valid keys, and whether causal | only plain causal and plain full masks exist |

A 4-D tensor or a BlockMask passes through the library's own mask code untouched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla.backbones.base import Tokens, visible
from vla.errors import UnknownName

IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3")


def attention_mask(query: Tokens, key: Tokens, implementation: str) -> Any:
    """The mask for `query` over `key` (the cached tokens, then the query's own): (B, 1, Sq, Sk), or a BlockMask.

    flash has no such form: see `flash_form`. Raises UnknownName for an implementation that is not in the table.
    """
    seen = safe_rows(visible(query, key))
    if implementation == "sdpa":
        return seen
    if implementation == "eager":
        dtype = query.x_BSD.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    if implementation == "flex_attention":
        return _block_mask(seen)
    raise UnknownName("attention implementation for a block mask", implementation, IMPLEMENTATIONS[:3])


def safe_rows(seen_B1QK: Tensor) -> Tensor:
    """A query that sees nothing (padding before anything valid) sees itself: some kernels make NaN of an empty row."""
    Q, K = seen_B1QK.shape[-2:]
    itself = torch.eye(Q, K, dtype=torch.bool, device=seen_B1QK.device)
    itself = itself.roll(K - Q, dims=1)  # the query's own keys are the last ones
    return seen_B1QK | (itself & ~seen_B1QK.any(-1, keepdim=True))


def flash_form(query: Tokens, key: Tokens) -> tuple[Tensor, bool] | None:
    """(valid keys (B, Sk), causal) if flash-attn can express the rule here, else None. Reads the mask's values: it synchronises.

    Flash's causal mask is that of the valid keys in their order; ours must agree for every valid query.
    """
    seen = visible(query, key)[:, 0]
    Q, K = seen.shape[1:]
    asked = query.valid_BS[:, :, None]
    full = key.valid_BS[:, None, :].expand_as(seen)
    if torch.equal(seen & asked, full & asked):
        return key.valid_BS, False
    order = torch.arange(K, device=seen.device)
    causal = full & (order[None, :] <= (order[K - Q :])[:, None])
    if torch.equal(seen & asked, causal & asked):
        return key.valid_BS, True
    return None


def _block_mask(seen_B1QK: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    seen = seen_B1QK[:, 0]
    B, Q, K = seen.shape
    return create_block_mask(lambda b, h, q, k: seen[b, q, k], B, None, Q, K, device=seen.device)
