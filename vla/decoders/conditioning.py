"""How a denoiser sees the observation: what it runs on, and what it may look at.

- `Pooled`: an expert sees one token that sums the prefix up (CogACT's cognition token).
- `CrossAttention`: an expert sees the backbone's final states (GR00T N1).
- `LayerKeysValues`: an expert with a layer per layer of the backbone sees each one's own keys and values (pi0).
- `InContext`: no expert; the noisy actions are a suffix of the backbone itself (Dita, Diffusion Transformer Policy).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from vla.backbones.base import Backbone, Hidden, Tokens, prefix_tokens, suffix_tokens
from vla.backbones.remembered import Reads
from vla.decoders.expert import Expert, ExpertShape
from vla.errors import UnknownName, UserError

DIT_SIZES = {"S": (384, 6, 4), "B": (768, 12, 12), "L": (1024, 24, 16)}
"""(width, depth, heads) of CogACT's action modules (`action_model/action_model.py`)."""


class Body(Protocol):
    """What runs noisy tokens: (tokens, what they may look at, the condition of each group) -> their states.

    `arrange` and `modulations`, given back, save what is the same each time that other embeddings run in the same places
    (vla/decoders/expert.py).
    """

    def __call__(
        self,
        tokens: Tokens,
        cache: Hidden | None = None,
        condition_BKD: Tensor | None = None,
        arranged: Any = None,
        modulations: tuple[Tensor, ...] | None = None,
    ) -> Hidden: ...

    def arrange(self, tokens: Tokens, cache: Hidden | None) -> Any: ...

    def modulations(self, condition_BKD: Tensor | None) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Context:
    """An observation, prepared once for all noise samples and denoising steps.

    `body` runs noisy tokens, which come after `follows` and may look at `cache`. `summary_BD`: one vector for all of it, in the width
    of the noisy tokens, if that is how the observation is seen. `unread`: states that nothing looks at; a zero of them is added to the
    noisy tokens, or the parameters behind them would be missing from the graph, and ZeRO would wait for their gradients.
    """

    body: Body
    follows: Tokens
    cache: Hidden | None
    summary_BD: Tensor | None = None
    unread: Tensor | None = None


class Conditioning(nn.Module, ABC):
    """`width`: of the noisy tokens it runs on. `expert`: its own transformer, if it has one. `reads`: as an `ActionDecoder`'s.
    `summarizes`: noisy tokens are given one vector of the observation (`Context.summary_BD`), not its states."""

    width: int
    expert: Expert
    reads: Reads = Reads()
    summarizes: bool = False

    def bind(self, backbone: Backbone) -> None:
        """Builds what needs the backbone's own sizes; called once, before any weight is loaded."""
        return

    @abstractmethod
    def prepare(self, backbone: Backbone, prefix: Tokens) -> Context: ...


@dataclass(frozen=True)
class Build:
    """What a denoiser asks of its expert: norms that adapt to time, and MLPs that the noise level chooses (vla/decoders/expert.py)."""

    adaptive: bool = False
    experts: int = 1
    top_k: int = 1


@dataclass(frozen=True)
class InContext:
    """The backbone denoises."""

    kind: ClassVar[str] = "conditioning.in_context"

    def build(self, width: int, asks: Build) -> Conditioning:
        if asks != Build():
            raise UserError(
                "in context the backbone denoises: it has no norms that adapt to time and no mixture; choose time='mix' or 'token'"
            )
        return _InContext(width)


@dataclass(frozen=True)
class CrossAttention:
    """An expert of its own size over the backbone's states: those after its last norm, or after `layer` (counted as Python does).

    `interleaved`: even layers look at the backbone alone, odd ones at the actions alone (GR00T N1); where a backbone says which of its
    tokens are images (`extras["image_BS"]`), they look at text and images in turn (N1.7). Otherwise every layer looks at both.
    """

    kind: ClassVar[str] = "conditioning.cross"
    width: int = 192
    depth: int = 4
    heads: int = 4
    style: str = "llama"
    interleaved: bool = False
    layer: int | None = None

    def build(self, width: int, asks: Build) -> Conditioning:
        return _Cross(self, width, asks)


@dataclass(frozen=True)
class Pooled:
    """An expert of its own size over one token that sums the prefix up.

    `read`: `query`, a learned token that runs through the backbone behind the prefix; or `last`, the prefix's last token (CogACT).
    `norm`: whether that token is normalised before it is mapped to the expert's width (CogACT's is not).
    """

    kind: ClassVar[str] = "conditioning.pooled"
    width: int = 192
    depth: int = 4
    heads: int = 4
    style: str = "llama"
    read: str = "query"
    norm: bool = True

    @staticmethod
    def dit(size: str, read: str = "query") -> Pooled:
        """CogACT's DiT-S, B or L."""
        if size not in DIT_SIZES:
            raise UnknownName("size", size, DIT_SIZES)
        return Pooled(*DIT_SIZES[size], style="dit", read=read)

    def build(self, width: int, asks: Build) -> Conditioning:
        if self.read not in ("query", "last"):
            raise UnknownName("way to read the prefix", self.read, ("query", "last"))
        return _Pooled(self, width, asks)


@dataclass(frozen=True)
class LayerKeysValues:
    """An expert whose layers see the keys and values of the backbone's layers, and so has its depth, heads and head width.

    pi0's is `LayerKeysValues(width=1024, mlp_width=4096)` beside Gemma 2B. The backbone's last layer after its keys and values, and its
    last norm, then act on nothing.
    """

    kind: ClassVar[str] = "conditioning.layer_keys_values"
    width: int = 192
    mlp_width: int = 768
    style: str = "gemma"

    def build(self, width: int, asks: Build) -> Conditioning:
        return _LayerKeysValues(self, asks)


class _InContext(Conditioning):
    reads = Reads(layers=())

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def prepare(self, backbone: Backbone, prefix: Tokens) -> Context:
        return Context(_ByBackbone(backbone), prefix, backbone(prefix))


class _ByBackbone:
    """A backbone as the body: it arranges tokens itself, and nothing in it adapts."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def __call__(self, tokens: Tokens, cache: Hidden | None = None, *_: Any, **__: Any) -> Hidden:
        return self.backbone(tokens, cache=cache)

    def arrange(self, tokens: Tokens, cache: Hidden | None) -> None:
        return None

    def modulations(self, condition_BKD: Tensor | None) -> tuple[Tensor, ...]:
        return ()


class _Cross(Conditioning):
    def __init__(self, config: CrossAttention, width: int, asks: Build) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.reads = Reads(keys_values=False, layers=() if config.layer is None else (config.layer,))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        shape = _shape(config, asks, context_width=width, interleaved=config.interleaved)
        self.expert = Expert(shape)

    def prepare(self, backbone: Backbone, prefix: Tokens) -> Context:
        hidden = backbone(prefix)
        x_BSD = hidden.x_BSD if self.config.layer is None else hidden.layers[self.config.layer]
        context = prefix.with_x(self.norm(x_BSD))
        return Context(self.expert, context, self.expert.remember(context), unread=_unread(backbone, hidden))


class _Pooled(Conditioning):
    summarizes = True

    def __init__(self, config: Pooled, width: int, asks: Build) -> None:
        super().__init__()
        self.width = config.width
        self.norm = nn.RMSNorm(width, eps=1e-6) if config.norm else nn.Identity()
        self.context_in = nn.Linear(width, config.width)
        self.expert = Expert(_shape(config, asks))
        self.query_1D = nn.Parameter(torch.randn(1, width) * 0.5) if config.read == "query" else None
        self.reads = Reads(keys_values=config.read == "query", layers=(), last=config.read == "last")

    def prepare(self, backbone: Backbone, prefix: Tokens) -> Context:
        if self.query_1D is None:
            place_S = torch.arange(len(prefix), device=prefix.valid_BS.device)
            last_B11 = torch.where(prefix.valid_BS, place_S, 0).amax(1)[:, None, None]
            x_BSD = backbone(prefix).x_BSD
            pooled_BD = x_BSD.gather(1, last_B11.expand(-1, 1, x_BSD.shape[-1]))[:, 0]
        else:
            x_B1D = self.query_1D.expand(len(prefix.x_BSD), -1, -1).to(prefix.x_BSD.dtype)
            pooled_BD = backbone(prefix.cat(suffix_tokens(prefix, x_B1D, causal=False))).last(1)[:, 0]
        summary_BD = self.context_in(self.norm(pooled_BD))
        alone = prefix_tokens(summary_BD[:, None], prefix.valid_BS.new_ones(len(summary_BD), 1))
        return Context(self.expert, replace(alone, given=prefix.given), None, summary_BD)


class _LayerKeysValues(Conditioning):
    reads = Reads(layers=())

    def __init__(self, config: LayerKeysValues, asks: Build) -> None:
        super().__init__()
        self.config, self.asks, self.width = config, asks, config.width

    def bind(self, backbone: Backbone) -> None:
        theirs, c = backbone.attention, self.config
        if c.style == "dit":
            raise UserError("an expert on the backbone's keys needs rotary positions; choose the style 'llama' or 'gemma'")
        self.expert = Expert(
            ExpertShape(
                width=c.width,
                depth=theirs.layers,
                heads=theirs.heads,
                kv_heads=theirs.kv_heads,
                head_width=theirs.head_width,
                mlp_width=c.mlp_width,
                style=c.style,
                rope_theta=theirs.rope_theta,
                **vars(self.asks),
            )
        )

    def prepare(self, backbone: Backbone, prefix: Tokens) -> Context:
        hidden = backbone(prefix)
        return Context(self.expert, prefix, hidden, unread=_unread(backbone, hidden))


def _unread(backbone: Backbone, hidden: Hidden) -> Tensor | None:
    return hidden.x_BSD if backbone.all_reached and hidden.x_BSD.requires_grad else None


def _shape(config: CrossAttention | Pooled, asks: Build, **more: object) -> ExpertShape:
    return ExpertShape.of(config.width, config.depth, config.heads, config.style, **vars(asks), **more)
