"""Prefix and chunk as one sequence in which every token sees every other (OpenVLA-OFT, Kim et al. 2025; Discrete Diffusion VLA)."""

from __future__ import annotations

import torch
from torch import Tensor

from vla.backbones.base import Backbone, Tokens, suffix_tokens


def one_ahead(backbone: Backbone, prefix: Tokens, x_BSD: Tensor, valid_BS: Tensor, closing_1D: Tensor) -> Tensor:
    """States for the tokens `x_BSD` behind the prefix, closed by one more: of each, that of the last valid token before it, as in a
    language model that predicted the next word until it was fine-tuned so. The prefix's own states depend on the chunk: nothing here is
    cached."""
    closing_B1D = closing_1D.expand(len(x_BSD), -1, -1).to(x_BSD.dtype)
    closed = torch.cat([valid_BS, torch.ones_like(valid_BS[:, :1])], dim=1)
    suffix = suffix_tokens(prefix, torch.cat([x_BSD, closing_B1D], dim=1), causal=False, valid_BS=closed)
    hidden = backbone(prefix.cat(suffix).bidirectional())
    place_S = torch.arange(valid_BS.shape[1], device=valid_BS.device)
    last_B1 = prefix.position_BS.masked_fill(~prefix.valid_BS, -1).argmax(1, keepdim=True)
    seen_BS = torch.where(valid_BS, place_S + len(prefix), last_B1)
    before_BS = torch.cat([last_B1, seen_BS[:, :-1]], dim=1).cummax(1).values
    return hidden.x_BSD.gather(1, before_BS[..., None].expand(-1, -1, hidden.x_BSD.shape[-1]))
