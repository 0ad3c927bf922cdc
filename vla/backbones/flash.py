"""flash-attn for the masks that it takes, the plain implementation for the others; chosen call by call, by the mask's form.

A language model has one implementation in its configuration, which must still be the right one when a layer is computed again in the
backward pass. So it stays flash, and what is registered under that name looks at the mask.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def dispatch(implementation: str) -> None:
    """Registers, under the library's name for flash, a function that sends 4-D masks elsewhere. Once per process; others notice nothing."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    flash = ALL_ATTENTION_FUNCTIONS[implementation]
    if hasattr(flash, "sends_blocks_elsewhere"):
        return

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        if attention_mask is None or attention_mask.dim() == 2:
            return flash(module, query, key, value, attention_mask, **kwargs)
        kwargs.pop("is_causal", None)
        if kwargs.get("softcap") is None:
            return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
        eager = sys.modules[type(module).__module__].eager_attention_forward  # every model file of the library has its own
        return eager(module, query, key, value, attention_mask, **kwargs)

    attention.sends_blocks_elsewhere = True  # type: ignore[attr-defined]
    ALL_ATTENTION_FUNCTIONS.register(implementation, attention)
