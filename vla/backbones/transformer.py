"""A small pre-norm transformer under the one rule of attention; the language model of the tiny backbone and the body of experts.

RMSNorm (Zhang, Sennrich 2019), rotary positions (Su et al. 2021), SwiGLU (Shazeer 2020), scaled-dot-product attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla.backbones.base import Hidden, Tokens, visible


class Transformer(nn.Module):
    """`depth` layers of width D; returns `Hidden`, and takes an earlier one as cache."""

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, rope_theta: float = 1000.0) -> None:
        super().__init__()
        self.width, self.heads, self.rope_theta = width, heads, rope_theta
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.gradient_checkpointing = False
        for block in self.blocks:  # residual branches start small (GPT-2): depth does not blow up the stream
            for linear in (block.out, block.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, tokens: Tokens, cache: Hidden | None = None) -> Hidden:
        seen = cache.tokens.cat(tokens) if cache is not None else tokens
        mask = additive(visible(tokens, seen), tokens.x_BSD.dtype)
        angles = rotation(tokens.position_BS, self.width // self.heads, self.rope_theta, tokens.x_BSD.dtype)
        # Rows of tokens, one after the other: a linear map of a matrix is one operation, of a batch of them four.
        shape, x_ND = tokens.x_BSD.shape, tokens.x_BSD.flatten(0, 1)
        layers, keys, values = [], [], []
        for index, block in enumerate(self.blocks):
            before = (cache.keys[index], cache.values[index]) if cache is not None else None
            if self.gradient_checkpointing and self.training:
                x_ND, key, value = checkpoint(block, x_ND, mask, angles, before, use_reentrant=False)
            else:
                x_ND, key, value = block(x_ND, mask, angles, before)
            layers.append(x_ND.view(shape))
            keys.append(key)
            values.append(value)
        return Hidden(seen, self.norm(x_ND).view(shape), tuple(layers), tuple(keys), tuple(values))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = int(width * mlp_ratio * 2 / 3 / 8) * 8  # two thirds: SwiGLU has three matrices where a plain MLP has two
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor, angles: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x`: (B S, D), the rows of the mask one after the other."""
        B, _, S, _ = mask.shape
        qkv = self.qkv(self.norm1(x)).view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        (q, k), v = rotate(qkv[:2], angles), qkv[2]
        if before is not None:
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        gate, value = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * value), k, v


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of what is seen as what is added to the scores: what attention makes of it in every layer otherwise."""
    return torch.zeros((), dtype=dtype, device=seen.device).where(seen, -torch.inf)


def rotation(position_BS: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What `rotate` multiplies by, (B, 1, S, head_width) each: cosines, and sines that are negative in the first half."""
    frequency = theta ** (-torch.arange(0, head_width, 2, device=position_BS.device).float() / head_width)
    angle = (position_BS[..., None].float() * frequency)[:, None]  # (B, 1, S, head_width / 2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """(..., S, head_width), whose halves are the pairs' first and second numbers."""
    cos, sin = angles
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
