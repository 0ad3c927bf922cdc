"""How a denoiser sees the observation: what it runs on, and what it may look at. Every way gives (body, cache): `body(suffix, cache)`.

- `Pooled`: one learned token reads the prefix inside the backbone; an expert sees that token alone (CogACT's cognition token).
- `CrossAttention`: an expert sees the backbone's final states (GR00T N1).
- `InContext`: no expert; the noisy actions are a suffix of the backbone itself (Dita, Diffusion Transformer Policy).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vla.backbones.base import Backbone, Hidden, Tokens, prefix_tokens, suffix_tokens
from vla.backbones.transformer import Transformer

Body = Callable[..., Hidden]


class Conditioning(nn.Module, ABC):
    """`width`: of the noisy tokens it runs on."""

    width: int

    @abstractmethod
    def prepare(self, backbone: Backbone, prefix: Tokens) -> tuple[Body, Tokens, Hidden]:
        """-> what runs the noisy suffix, the tokens the suffix follows, and the cache it sees."""


@dataclass(frozen=True)
class InContext:
    """The backbone denoises."""

    kind: ClassVar[str] = "conditioning.in_context"

    def build(self, width: int) -> Conditioning:
        return _InContext(width)


@dataclass(frozen=True)
class CrossAttention:
    """An expert of its own size over the backbone's final states."""

    kind: ClassVar[str] = "conditioning.cross"
    width: int = 192
    depth: int = 4
    heads: int = 4

    def build(self, width: int) -> Conditioning:
        return _Cross(self, width)


@dataclass(frozen=True)
class Pooled:
    """An expert of its own size over one token that sums the prefix up."""

    kind: ClassVar[str] = "conditioning.pooled"
    width: int = 192
    depth: int = 4
    heads: int = 4

    def build(self, width: int) -> Conditioning:
        return _Pooled(self, width)


class _InContext(Conditioning):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def prepare(self, backbone: Backbone, prefix: Tokens) -> tuple[Body, Tokens, Hidden]:
        return backbone, prefix, backbone(prefix)


class _Cross(Conditioning):
    def __init__(self, config: CrossAttention | Pooled, width: int) -> None:
        super().__init__()
        self.width = config.width
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.context_in = nn.Linear(width, config.width)
        self.expert = Transformer(config.width, config.depth, config.heads)

    def prepare(self, backbone: Backbone, prefix: Tokens) -> tuple[Body, Tokens, Hidden]:
        return self._expert_over(backbone(prefix).x_BSD, prefix.valid_BS)

    def _expert_over(self, x_BSD: Tensor, valid_BS: Tensor) -> tuple[Body, Tokens, Hidden]:
        context = prefix_tokens(self.context_in(self.norm(x_BSD)), valid_BS)
        return self.expert, context, self.expert(context)


class _Pooled(_Cross):
    def __init__(self, config: Pooled, width: int) -> None:
        super().__init__(config, width)
        self.query_1D = nn.Parameter(torch.randn(1, width) * 0.5)

    def prepare(self, backbone: Backbone, prefix: Tokens) -> tuple[Body, Tokens, Hidden]:
        x_B1D = self.query_1D.expand(len(prefix.x_BSD), -1, -1).to(prefix.x_BSD.dtype)
        hidden = backbone(prefix.cat(suffix_tokens(prefix, x_B1D, causal=False)))
        pooled_B1D = hidden.last(1)
        return self._expert_over(pooled_B1D, torch.ones_like(pooled_B1D[..., 0], dtype=torch.bool))
