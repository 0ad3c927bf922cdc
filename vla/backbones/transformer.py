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
        mask = visible(tokens, seen)
        angles = _angles(tokens.position_BS, self.width // self.heads, self.rope_theta, tokens.x_BSD.dtype)
        x_BSD, layers, keys, values = tokens.x_BSD, [], [], []
        for index, block in enumerate(self.blocks):
            before = (cache.keys[index], cache.values[index]) if cache is not None else None
            if self.gradient_checkpointing and self.training:
                x_BSD, key, value = checkpoint(block, x_BSD, mask, angles, before, use_reentrant=False)
            else:
                x_BSD, key, value = block(x_BSD, mask, angles, before)
            layers.append(x_BSD)
            keys.append(key)
            values.append(value)
        return Hidden(seen, self.norm(x_BSD), tuple(layers), tuple(keys), tuple(values))


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
        B, S, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, angles), _rotate(k, angles)
        if before is not None:
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(B, S, D))
        gate, value = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * value), k, v


def _angles(position_BS: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frequency = theta ** (-torch.arange(0, head_width, 2, device=position_BS.device).float() / head_width)
    angle = (position_BS[..., None].float() * frequency)[:, None]  # (B, 1, S, head_width / 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = angles
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
