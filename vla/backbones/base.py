"""Tokens, the one rule of attention, and the interface of every backbone.

Query i sees key j iff j is valid, and (group[j] = 0 or group[j] = group[i]), and block[j] <= block[i].

Group 0 is the prefix, in blocks below every suffix. Each noise sample, decoder or packed sequence is a group of its own, so
K noise samples per context and jointly trained decoders cannot see each other. A causal suffix has blocks n+1, n+2, ...; a
bidirectional one has a single block n+1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.errors import UserError
from vla.types import Observation

LEAST_SAVED = 512
"""Tokens. Fewer cost a large model no time: a pass over some hundred waits for its weights."""


@dataclass(frozen=True)
class Tokens:
    """A sequence with what each token may see. `valid_BS` bool; `block_BS`, `group_BS`, `position_BS` int64.

    `extras` carries what a family needs beside the embeddings (multi-axis positions, deep visual features): (B, S, ...) each, one row
    a token, zero where a token has none. They are cut and joined with the tokens. `given`: facts of the whole row, (B, ...) each, which
    stay as they are (proprioception that a decoder takes itself).
    """

    x_BSD: Tensor
    valid_BS: Tensor
    block_BS: Tensor
    group_BS: Tensor
    position_BS: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.x_BSD.shape[1]

    def next_block(self) -> Tensor:
        """(B, 1): the first block above every token here."""
        return self.block_BS.amax(1, keepdim=True) + 1

    def next_position(self) -> Tensor:
        """(B, 1): the first position after the last valid token (right-padded rows continue where their text ends)."""
        return self.position_BS.masked_fill(~self.valid_BS, -1).amax(1, keepdim=True) + 1

    def cat(self, other: Tokens) -> Tokens:
        """These tokens, then the other's."""
        names = (*self.extras, *(name for name in other.extras if name not in self.extras))
        extras = {name: torch.cat([self._extra(name, other), other._extra(name, self)], dim=1) for name in names}
        x_BSD, valid_BS, block_BS, group_BS, position_BS = (torch.cat(pair, 1) for pair in zip(self._core(), other._core(), strict=True))
        return Tokens(x_BSD, valid_BS, block_BS, group_BS, position_BS, extras, {**self.given, **other.given})

    def slice(self, start: int, stop: int) -> Tokens:
        """Tokens start <= i < stop."""
        cut = {name: t[:, start:stop] for name, t in self.extras.items()}
        x_BSD, valid_BS, block_BS, group_BS, position_BS = (t[:, start:stop] for t in self._core())
        return Tokens(x_BSD, valid_BS, block_BS, group_BS, position_BS, cut, self.given)

    def repeat(self, samples: int) -> Tokens:
        """Each row `samples` times, one after the other."""
        extras = {name: t.repeat_interleave(samples, dim=0) for name, t in self.extras.items()}
        given = {name: t.repeat_interleave(samples, dim=0) for name, t in self.given.items()}
        x_BSD, valid_BS, block_BS, group_BS, position_BS = (t.repeat_interleave(samples, dim=0) for t in self._core())
        return Tokens(x_BSD, valid_BS, block_BS, group_BS, position_BS, extras, given)

    def padded(self, length: int) -> Tokens:
        """The same, then tokens that nobody sees and that take no position, up to `length`."""
        more = (0, length - len(self))
        x_BSD, extras = (F.pad(self.x_BSD, (0, 0, *more)), {n: F.pad(t, (0, 0) * (t.dim() - 2) + more) for n, t in self.extras.items()})
        valid_BS, block_BS, group_BS, position_BS = (F.pad(t, more) for t in self._core()[1:])
        return Tokens(x_BSD, valid_BS, block_BS, group_BS, position_BS, extras, self.given)

    def chosen(self, rows: Tensor, length: int) -> Tokens:
        """These rows alone, each with its valid tokens first, in their order; the first `length` of them."""
        order_BS = (~self.valid_BS[rows]).int().argsort(dim=1, stable=True)[:, :length]

        def pick(tensor: Tensor) -> Tensor:
            index = order_BS.view(*order_BS.shape, *[1] * (tensor.dim() - 2))
            return tensor[rows].gather(1, index.expand(-1, -1, *tensor.shape[2:]))

        extras, given = {n: pick(t) for n, t in self.extras.items()}, {n: t[rows] for n, t in self.given.items()}
        x_BSD, valid_BS, block_BS, group_BS, position_BS = map(pick, self._core())
        return Tokens(x_BSD, valid_BS, block_BS, group_BS, position_BS, extras, given)

    def with_x(self, x_BSD: Tensor, valid_BS: Tensor | None = None) -> Tokens:
        """The same places with other embeddings (and validity)."""
        return replace(self, x_BSD=x_BSD, valid_BS=self.valid_BS if valid_BS is None else valid_BS)

    def bidirectional(self) -> Tokens:
        """The same tokens as one block of the prefix: every one sees every valid other."""
        zero_BS = torch.zeros_like(self.block_BS)
        return Tokens(self.x_BSD, self.valid_BS, zero_BS, zero_BS, self.position_BS, self.extras, self.given)

    def _core(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return (self.x_BSD, self.valid_BS, self.block_BS, self.group_BS, self.position_BS)

    def _extra(self, name: str, other: Tokens) -> Tensor:
        if name in self.extras:
            return self.extras[name]
        like = other.extras[name]
        return like.new_zeros(*self.x_BSD.shape[:2], *like.shape[2:])


def one_of_few(length: int) -> int:
    """The length rounded up to one of eight in an octave, so that padding is an eighth at most."""
    step = max(1 << length.bit_length() - 4, 1) if length > 8 else 1
    return -(-length // step) * step


def by_length(valid_BS: Tensor, least_saved: int = LEAST_SAVED) -> list[tuple[Tensor, int]]:
    """Rows in groups that are worth a pass of their own, each with the length of its longest: (rows int64, length).

    In a group no row is shorter than three quarters of the longest, unless a group of its own would spare fewer than `least_saved` tokens.
    One group with all rows where nothing is to be gained. On a GPU it waits for the lengths.
    """
    length_B, at = valid_BS.sum(1).sort(descending=True, stable=True)
    lengths, rows = length_B.tolist(), at.tolist()
    groups = [[0]]
    for place, length in enumerate(lengths[1:], start=1):
        longest, rest = lengths[groups[-1][0]], len(lengths) - place
        if length < 0.75 * longest and (longest - length) * rest >= least_saved:
            groups.append([])
        groups[-1].append(place)
    return [(torch.tensor(sorted(rows[p] for p in group), device=at.device), lengths[group[0]]) for group in groups]


def prefix_tokens(x_BSD: Tensor, valid_BS: Tensor, causal: bool = False) -> Tokens:
    """Group-0 tokens at positions 0, 1, ... (padding takes no position), all in block 0, or causal."""
    index_BS = (valid_BS.long().cumsum(1) - 1).clamp(min=0)
    zero_BS = torch.zeros_like(index_BS)
    return Tokens(x_BSD, valid_BS, index_BS if causal else zero_BS, zero_BS, index_BS)


def suffix_tokens(prefix: Tokens, x_BSD: Tensor, *, causal: bool, samples: int = 1, valid_BS: Tensor | None = None) -> Tokens:
    """Tokens that follow a prefix: `samples` equal groups of S / samples tokens, each starting right after the prefix.

    Every group sees the prefix and itself alone, and has the same positions as the others. All valid unless said otherwise.
    """
    B, S, _ = x_BSD.shape
    assert S % samples == 0
    if valid_BS is None:
        valid_BS = torch.ones(B, S, dtype=torch.bool, device=x_BSD.device)
    step_S = torch.arange(S // samples, device=x_BSD.device).repeat(samples)
    group_S = torch.arange(samples, device=x_BSD.device).repeat_interleave(S // samples)
    block_BS = prefix.next_block() + (step_S if causal else torch.zeros_like(step_S))
    count_BKS = valid_BS.view(B, samples, -1).long()
    before_BS = (count_BKS.cumsum(2) - count_BKS).view(B, S)  # padding takes no position
    return Tokens(
        x_BSD,
        valid_BS,
        block_BS.expand(B, S),
        (prefix.group_BS.amax() + 1 + group_S).expand(B, S),
        prefix.next_position() + before_BS,
    )


def visible(query: Tokens, key: Tokens) -> Tensor:
    """The rule, as bool (B, 1, Sq, Sk)."""
    return _rule(query.block_BS, query.group_BS, key.valid_BS, key.block_BS, key.group_BS)


def _rule(block_Bq: Tensor, group_Bq: Tensor, valid_Bk: Tensor, block_Bk: Tensor, group_Bk: Tensor) -> Tensor:
    key_group = group_Bk[:, None, :]
    same = (key_group == 0) | (key_group == group_Bq[:, :, None])
    return (valid_Bk[:, None, :] & same & (block_Bk[:, None, :] <= block_Bq[:, :, None]))[:, None]


@dataclass(frozen=True)
class Hidden:
    """What a forward pass leaves: the tokens it ran on, the states after each layer, and each layer's keys and values.

    `x_BSD`: final states, after the last norm. `layers`: (B, S, D) after each layer. `keys`, `values`: (B, heads, S, head width)
    per layer, as attended to; of the tokens before (cache) and these. Given back as `cache`, everything here is before the new tokens.
    """

    tokens: Tokens
    x_BSD: Tensor
    layers: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def detach(self) -> Hidden:
        """Stops gradients into the prefix (knowledge insulation)."""
        return replace(
            self,
            x_BSD=self.x_BSD.detach(),
            layers=tuple(t.detach() for t in self.layers),
            keys=tuple(t.detach() for t in self.keys),
            values=tuple(t.detach() for t in self.values),
        )

    def repeat(self, samples: int) -> Hidden:
        """Each row `samples` times, for suffixes that stand in rows of their own (two conditions, K samples)."""
        repeated = lambda tensors: tuple(t.repeat_interleave(samples, dim=0) for t in tensors)  # noqa: E731
        (x_BSD,) = repeated((self.x_BSD,))
        return Hidden(self.tokens.repeat(samples), x_BSD, repeated(self.layers), repeated(self.keys), repeated(self.values))

    def without(self, count: int) -> Hidden:
        """As if the last `count` tokens had not run."""
        if not count:
            return self
        cut = lambda tensors: tuple(t[:, :, :-count] for t in tensors)  # noqa: E731
        layers = tuple(t[:, :-count] for t in self.layers)
        return Hidden(self.tokens.slice(0, len(self.tokens) - count), self.x_BSD[:, :-count], layers, cut(self.keys), cut(self.values))

    def last(self, count: int) -> Tensor:
        """Final states of the last `count` tokens, (B, count, D)."""
        return self.x_BSD[:, -count:]


@dataclass(frozen=True)
class AttentionShape:
    """Of the keys and values that every layer leaves in `Hidden`, for experts that attend to them layer by layer.

    `heads`: of the queries; `rope_theta`: base of the rotary positions (rotated in halves, as in Llama and Gemma).
    """

    layers: int
    heads: int
    kv_heads: int
    head_width: int
    rope_theta: float


class Backbone(nn.Module, ABC):
    """A vision-language transformer under the one rule of attention. `width`: D of its hidden states.

    `few_sizes`: prefixes, and stacks of images, are padded to `one_of_few` sizes, for layers that are compiled for each
    (`Run(compiled=True)`); numbers stay as they are. `all_reached`: every parameter has a gradient, if only of zeros, because ZeRO waits
    for it; where nobody waits, what nothing looks at is spared its backward pass.
    """

    width: int
    few_sizes: bool = False
    all_reached: bool = True

    @property
    def attention(self) -> AttentionShape:
        """What `Hidden.keys` and `Hidden.values` look like; from the backbone's own configuration."""
        raise UserError(
            f"{type(self).__name__} does not say what its keys and values look like; choose another conditioning than per layer"
        )

    @abstractmethod
    def collate(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """Observations -> CPU tensors with B rows each (uint8 images, token ids, masks). Runs in loader workers."""

    @abstractmethod
    def embed(self, inputs: Mapping[str, Tensor]) -> Tokens:
        """Collated inputs -> prefix tokens of group 0."""

    @abstractmethod
    def forward(self, tokens: Tokens, cache: Hidden | None = None) -> Hidden:
        """Runs the transformer over `tokens`, which may also see what `cache` holds. Equal to one pass over both."""

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Whether training computes activations again in the backward pass instead of keeping them. The numbers are the same."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = on

    def load_pretrained(self) -> list[str]:
        """Weights from where the configuration says, for a new run's first step; nothing for a backbone from scratch.

        Returns lines for people. A checkpoint of ours holds its weights: loading it never comes here.
        """
        return []
