"""A transformer beside the backbone: its own width and depth, and keys and values that it is given.

It takes `Tokens` and a cache as a backbone does, so that one mechanism serves every conditioning: the cache holds the backbone's own
keys and values (pi0), projections of its states (GR00T N1), or one token that sums them up (CogACT).

- `llama`: RMSNorm, gated SiLU, rotary positions, no biases. `gemma`: with a gated, tanh-approximated GELU (pi0's expert).
- `dit`: LayerNorm without weights, plain GELU, biases, no rotary positions (Peebles, Xie 2023; CogACT's and GR00T's heads).

`adaptive`: each norm's scale and shift, and the gate of each residual, are linear in SiLU(condition): adaLN (Peebles, Xie 2023), adaRMSNorm
(pi0.5). Deviation: they start near zero instead of at zero, so that every parameter learns from the first step.
`experts`: the MLP is a mixture of which the condition alone, that is the noise level, chooses `top_k` (MoDE, Reuss et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla.backbones.base import Hidden, Tokens, visible
from vla.backbones.transformer import additive, rotate, rotation
from vla.decoders.mixture import ExpertMixture
from vla.errors import UnknownName, UserError
from vla.fused import whole_product

STYLES = ("llama", "gemma", "dit")
EPS = 1e-6

Mask = tuple[Tensor, Tensor | None]
"""What is added to the scores, (B, 1, R S, keys), and bool (B, 1, R S, 1): queries that see anything. The others take nothing: some
kernels make NaN of an empty row. None where every token sees itself. R: query heads that share a key head, which stand in its rows one
after the other, so that no key is copied for them."""

Modulations = tuple[Tensor, ...]
"""One more than the scale, the shift and the gate that each adaptive norm makes of the condition, (B, K, 2 or 3 widths): two a layer, then
the last one's."""


Angles = tuple[Tensor, Tensor] | None
"""Cosines and sines of positions (`rotation`); None where nothing turns."""


@dataclass(frozen=True)
class Seen:
    """Keys and values (B, kv_heads, S, head_width). `both`: the keys' heads, then the values', where they are one tensor, to be put behind
    others at once."""

    k: Tensor
    v: Tensor
    both: Tensor | None = None

    @staticmethod
    def of(both: Tensor) -> Seen:
        """(B, 2 kv_heads, S, head_width)."""
        k, v = both.chunk(2, dim=1)
        return Seen(k, v, both)

    def after(self, before: Seen | None) -> Seen:
        """Behind others."""
        if before is None:
            return self
        if self.both is not None and before.both is not None:
            return Seen.of(torch.cat([before.both, self.both], dim=2))
        return Seen(torch.cat([before.k, self.k], dim=2), torch.cat([before.v, self.v], dim=2))


@dataclass(frozen=True)
class Arrangement:
    """What tokens in these places, after this cache, need besides their embeddings: for those who run other embeddings in the same places
    again and again. `angles`: of keys and queries. `all_angles`: of every head of the product that makes queries, keys and values, of
    which values do not turn. `before`: keys and values of the cache per layer, None without one."""

    seen: Tokens
    masks: tuple[Mask, ...]
    angles: Angles
    all_angles: Angles
    before: tuple[Seen, ...] | None


@dataclass(frozen=True)
class ExpertShape:
    """Sizes. `context_width`: of the states that `remember` projects (None: the cache comes from elsewhere). `interleaved`: even layers
    see the cache alone, odd ones the new tokens alone; otherwise every layer sees both."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    style: str = "llama"
    rope_theta: float = 1000.0
    context_width: int | None = None
    interleaved: bool = False
    adaptive: bool = False
    experts: int = 1
    top_k: int = 1

    @staticmethod
    def of(width: int, depth: int, heads: int, style: str, **more: object) -> ExpertShape:
        """The usual proportions: heads share the width; an MLP of four widths, or as many parameters in three matrices."""
        if style not in STYLES:
            raise UnknownName("style of expert", style, STYLES)
        if width % heads or (width // heads) % 2:
            raise UserError(f"an expert of width {width} does not divide into {heads} heads of even width")
        mlp_width = 4 * width if style == "dit" else int(width * 8 / 3 / 8) * 8
        return ExpertShape(width, depth, heads, heads, width // heads, mlp_width, style, **more)  # type: ignore[arg-type]


class Expert(nn.Module):
    """Tokens of its width after a cache -> `Hidden`, as a backbone gives it."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList(_Block(shape, layer) for layer in range(shape.depth))
        self.norm = _Norm(shape, gate=False)
        self.gradient_checkpointing = False

    def forward(
        self,
        tokens: Tokens,
        cache: Hidden | None = None,
        condition_BKD: Tensor | None = None,
        arranged: Arrangement | None = None,
        modulations: Modulations | None = None,
    ) -> Hidden:
        """`condition_BKD`: one per group of equally many tokens; what adaptive norms and mixtures depend on. `arranged`, `modulations`:
        what the methods of these names found for the same places and condition, where the caller has them already."""
        here = arranged or self.arrange(tokens, cache)
        if modulations is None:
            modulations = self.modulations(condition_BKD)
        x_BSD, layers, keys, values = tokens.x_BSD, [], [], []
        for layer, block in enumerate(self.blocks):
            before = None if here.before is None else here.before[layer]
            mask, own = here.masks[layer % len(here.masks)], modulations[2 * layer : 2 * layer + 2]
            given = (x_BSD, mask, (here.angles, here.all_angles), before, condition_BKD, own)
            if self.gradient_checkpointing and self.training:
                x_BSD, key, value = checkpoint(block, *given, use_reentrant=False)
            else:
                x_BSD, key, value = block(*given)
            layers.append(x_BSD)
            keys.append(key)
            values.append(value)
        return Hidden(here.seen, self.norm(x_BSD, modulations[-1] if modulations else None)[0], tuple(layers), tuple(keys), tuple(values))

    def arrange(self, tokens: Tokens, cache: Hidden | None) -> Arrangement:
        """Of tokens whose embeddings, but for their type, do not matter."""
        seen, dtype = _places(tokens) if cache is None else _places(cache.tokens).cat(_places(tokens)), tokens.x_BSD.dtype
        angles, joined = self._angles(tokens.position_BS, dtype), not torch.is_grad_enabled() and not self.shape.interleaved
        before = None
        if cache is not None:
            pairs = [(k.to(dtype), v.to(dtype)) for k, v in zip(cache.keys, cache.values, strict=True)]
            before = tuple(Seen.of(torch.cat(pair, dim=1)) if joined else Seen(*pair) for pair in pairs)
        return Arrangement(seen, self._masks(tokens, seen, cache), angles, self._all_angles(angles) if joined else None, before)

    def modulations(self, condition_BKD: Tensor | None) -> Modulations:
        """What each norm makes of conditions, of one noise level or of several at once; () where norms do not adapt."""
        if not self.shape.adaptive:
            return ()
        assert condition_BKD is not None, "adaptive norms need the condition they adapt to"
        active_BKD = F.silu(condition_BKD)
        norms = [norm for block in self.blocks for norm in (block.norm1, block.norm2)]
        return tuple(norm.modulations(active_BKD) for norm in (*norms, self.norm))

    def remember(self, context: Tokens) -> Hidden:
        """States of `context_width` -> a cache of each layer's projections of them."""
        angles = self._angles(context.position_BS, context.x_BSD.dtype)
        pairs = [block.project(context.x_BSD, angles) for block in self.blocks]
        return Hidden(context, context.x_BSD, (), tuple(k for k, _ in pairs), tuple(v for _, v in pairs))

    def balance(self, condition_ND: Tensor) -> Tensor:
        """The mean load-balancing loss of the mixtures over these conditions; a scalar, 1 when perfectly balanced."""
        return torch.stack([block.mlp.balance(condition_ND) for block in self.blocks]).mean()

    def _masks(self, tokens: Tokens, seen: Tokens, cache: Hidden | None) -> tuple[Mask, ...]:
        """One per layer of the repeating pattern."""
        share, pattern = self.shape.heads // self.shape.kv_heads, self._seen(tokens, seen, cache)
        blind = [self.blocks[layer].context_only for layer in range(len(pattern))]
        return tuple(_mask(each.repeat(1, 1, share, 1), tokens.x_BSD.dtype, may) for each, may in zip(pattern, blind, strict=True))

    def _seen(self, tokens: Tokens, seen: Tokens, cache: Hidden | None) -> Sequence[Tensor]:
        """bool (B, 1, S, keys) each."""
        if not self.shape.interleaved or cache is None:
            return [visible(tokens, seen)]
        own, context = visible(tokens, tokens), visible(tokens, cache.tokens)
        image_BS = cache.tokens.extras.get("image_BS")
        if image_BS is None:
            return [context, own]
        # GR00T N1.7 (`attend_text_every_n_blocks = 2`): every other look is at the text, the others at the images.
        return [context & ~image_BS[:, None, None], own, context & image_BS[:, None, None], own]

    def _angles(self, position_BS: Tensor, dtype: torch.dtype) -> Angles:
        if self.shape.style == "dit":
            return None
        return rotation(position_BS, self.shape.head_width, self.shape.rope_theta, dtype)

    def _all_angles(self, angles: Angles) -> Angles:
        """(B, heads + 2 kv_heads, S, head_width) each."""
        if angles is None:
            return None
        turned, still = self.shape.heads + self.shape.kv_heads, self.shape.kv_heads
        cos, sin = (angle.expand(-1, turned, -1, -1) for angle in angles)
        fixed = (fill(angles[0]).expand(-1, still, -1, -1) for fill in (torch.ones_like, torch.zeros_like))
        return tuple(torch.cat(pair, dim=1) for pair in zip((cos, sin), fixed, strict=True))


class _Block(nn.Module):
    def __init__(self, shape: ExpertShape, layer: int) -> None:
        super().__init__()
        self.shape = shape
        self.context_only = shape.interleaved and layer % 2 == 0
        self.self_only = shape.interleaved and layer % 2 == 1
        s, bias = shape, shape.style == "dit"
        self.norm1, self.norm2 = _Norm(s), _Norm(s)
        self.q = nn.Linear(s.width, s.heads * s.head_width, bias=bias)
        self.kv = None if self.context_only else nn.Linear(s.width, 2 * s.kv_heads * s.head_width, bias=bias)
        reads = s.context_width is not None and not self.self_only
        self.context_kv = nn.Linear(s.context_width or 0, 2 * s.kv_heads * s.head_width, bias=bias) if reads else None
        self.out = nn.Linear(s.heads * s.head_width, s.width, bias=bias)
        make = lambda: _MLP(s)  # noqa: E731
        self.mlp = make() if s.experts == 1 else ExpertMixture(make, s.experts, s.top_k, s.width)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * s.depth) ** 0.5)  # as vla/backbones/transformer.py

    def project(self, x_BSD: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """Keys and values (B, kv_heads, S, head_width) of the context; empty where this layer does not look at it."""
        if self.context_kv is None:
            empty = x_BSD.new_zeros(len(x_BSD), self.shape.kv_heads, 0, self.shape.head_width)
            return empty, empty
        found = self._split(self.context_kv(x_BSD), angles)
        return found.k, found.v

    def forward(
        self,
        x_BSD: Tensor,
        mask: Mask,
        angles: tuple[Angles, Angles],
        before: Seen | None,
        condition_BKD: Tensor | None,
        modulations: Modulations,
    ) -> tuple[Tensor, Tensor, Tensor]:
        first, second = modulations or (None, None)
        normed_BSD, join = self.norm1(x_BSD, first)
        q, own = self._look(normed_BSD, *angles)
        seen = before if own is None else own.after(None if self.self_only else before)
        assert seen is not None, "a layer that looks at a cache alone needs one"
        k, v = seen.k, seen.v
        added, anything = mask
        rows = q.reshape(len(q), self.shape.kv_heads, -1, self.shape.head_width)
        attended = F.scaled_dot_product_attention(rows, k, v, attn_mask=added)
        attended = (attended if anything is None else attended * anything).reshape(q.shape)
        x_BSD = join(x_BSD, self.out(attended.transpose(1, 2).flatten(2)))
        normed_BSD, join = self.norm2(x_BSD, second)
        return join(x_BSD, self.mlp(normed_BSD, condition_BKD)), k, v

    def _look(self, normed_BSD: Tensor, angles: Angles, all_angles: Angles) -> tuple[Tensor, Seen | None]:
        """Queries (B, heads, S, head_width), and the tokens' own keys and values."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        whole = None if self.kv is None else whole_product((self.q, self.kv), normed_BSD)
        if whole is not None and (angles is None or all_angles is not None):  # then all lie side by side, and turn at once
            every = _rotate(whole.unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(1, 2), all_angles)
            return every[:, :heads], Seen.of(every[:, heads:])
        q = _rotate(self.q(normed_BSD).unflatten(-1, (heads, -1)).transpose(1, 2), angles)
        return q, None if self.kv is None else self._split(self.kv(normed_BSD), angles)

    def _split(self, kv_BSX: Tensor, angles: Angles) -> Seen:
        k, v = kv_BSX.unflatten(-1, (2, self.shape.kv_heads, -1)).permute(2, 0, 3, 1, 4)
        return Seen(_rotate(k, angles), v)


class _Norm(nn.Module):
    """x, what `modulations` made of the condition -> the normed x, and how the residual branch joins: (x, y) -> x + y, where y is gated if
    the norm adapts."""

    def __init__(self, shape: ExpertShape, gate: bool = True) -> None:
        super().__init__()
        self.centred, self.gated = shape.style == "dit", gate
        plain = shape.adaptive or self.centred
        self.weight_D = None if plain else nn.Parameter(torch.ones(shape.width))
        self.modulate = nn.Linear(shape.width, (3 if gate else 2) * shape.width) if shape.adaptive else None
        if self.modulate is not None:
            nn.init.normal_(self.modulate.weight, std=0.02)
            nn.init.zeros_(self.modulate.bias)

    def modulations(self, active_BKD: Tensor) -> Tensor:
        """(B, K, 2 or 3 D): one more than the scale, the shift, and the gate. Found once for all evaluations of a call."""
        assert self.modulate is not None
        D, out_BKX = active_BKD.shape[-1], self.modulate(active_BKD)
        return torch.cat([1 + out_BKX[..., :D], out_BKX[..., D:]], dim=-1)

    def forward(self, x_BSD: Tensor, modulations_BKX: Tensor | None) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        D = x_BSD.shape[-1]
        if self.centred:
            normed = F.layer_norm(x_BSD, (D,), eps=EPS)
        elif self.weight_D is None or self.weight_D.dtype == x_BSD.dtype:  # one kernel, which adds up in float32
            normed = F.rms_norm(x_BSD, (D,), self.weight_D, EPS)
        else:
            normed = F.rms_norm(x_BSD.float(), (D,), self.weight_D.float(), EPS).to(x_BSD.dtype)
        if modulations_BKX is None:
            return normed, torch.add
        groups = modulations_BKX.shape[1]
        modulations_BSX = modulations_BKX if groups == 1 else modulations_BKX.repeat_interleave(x_BSD.shape[1] // groups, dim=1)
        scale, shift, *gate = modulations_BSX.chunk(3 if self.gated else 2, dim=-1)
        return torch.addcmul(shift, normed, scale), (lambda x, y: torch.addcmul(x, y, gate[0])) if gate else torch.add


class _MLP(nn.Module):
    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.gated, self.tanh = shape.style != "dit", shape.style != "llama"
        self.up = nn.Linear(shape.width, (2 if self.gated else 1) * shape.mlp_width, bias=not self.gated)
        self.down = nn.Linear(shape.mlp_width, shape.width, bias=not self.gated)
        nn.init.normal_(self.down.weight, std=0.02 / (2 * shape.depth) ** 0.5)

    def forward(self, x: Tensor, condition_BKD: Tensor | None = None) -> Tensor:
        act = (lambda y: F.gelu(y, approximate="tanh")) if self.tanh else F.silu
        if not self.gated:
            return self.down(act(self.up(x)))
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(act(gate) * value)


def hide(cache: Hidden, rows_B: Tensor) -> Hidden:
    """The cache as if its tokens were not there, in the rows where `rows_B` is True."""
    return replace(cache, tokens=replace(cache.tokens, valid_BS=cache.tokens.valid_BS & ~rows_B[:, None]))


def _places(tokens: Tokens) -> Tokens:
    """The tokens without their embeddings: a cache of the backbone is of another width."""
    return tokens.with_x(tokens.x_BSD[..., :0])


def _mask(seen_B1SK: Tensor, dtype: torch.dtype, may_be_blind: bool) -> Mask:
    """Blind: a token of a layer that looks at the context alone, where there is none to be seen; it takes nothing from there. A token that
    does not exist sees something else elsewhere, which nobody asks for."""
    anything_B1S1 = seen_B1SK.any(-1, keepdim=True)
    return additive(seen_B1SK | ~anything_B1S1, dtype), anything_B1S1 if may_be_blind else None


def _rotate(x: Tensor, angles: Angles) -> Tensor:
    return x if angles is None else rotate(x, angles)
