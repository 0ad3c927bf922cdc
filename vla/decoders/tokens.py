"""Actions as tokens, one after the other (RT-2, Brohan et al. 2023; OpenVLA, Kim et al. 2024): cross-entropy over a codec's codes.

The codec decides the rest: bins (RT-2, OpenVLA), FAST (pi0-FAST), grids (SpatialVLA), a learned codebook with an offset (VQ-BeT), scales
of which each is predicted at once from the coarser ones (CARP). The vocabulary head is restricted to the action codes, and to those after
which a chunk can still be completed, so a decoded chunk is always a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Backbone, Hidden, Tokens, suffix_tokens
from vla.backbones.remembered import Reads
from vla.bank import Bank
from vla.codecs.base import Codec, hold
from vla.codecs.bins import Bins
from vla.decoders.base import ActionDecoder, join, make_loss
from vla.errors import UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Prior, Target


@dataclass(frozen=True)
class AutoregressiveTokens:
    """`codec`: how a chunk becomes codes. `temperature`: 0 takes the likeliest code. `hide`: share of the shown codes that training
    replaces by the start id. Later codes follow from earlier ones so easily that little is learned from the image otherwise.
    `offset`: a continuous correction of what the codes say, learned by L1 (VQ-BeT, Lee et al. 2024, section 3.3). `from_prefix`: the first
    code is read from the prefix's last token, as a language model's answer is (SpatialVLA), not from a start token behind it."""

    kind: ClassVar[str] = "decoder.tokens"
    codec: Any = field(default_factory=Bins)
    temperature: float = 0.0
    hide: float = 0.0
    offset: bool = False
    from_prefix: bool = False

    def build(self, width: int, roster: Roster) -> TokensDecoder:
        return TokensDecoder(self, width, roster)


class CodeTokens(nn.Module):
    """Codes as suffix embeddings, and suffix states as logits; `extra` ids after the vocabulary are for start or mask."""

    def __init__(self, codec: Codec, width: int, roster: Roster, extra: int) -> None:
        super().__init__()
        self.codec = codec
        self.length = codec.length(roster.horizon, roster.action_width)
        self.code_in = nn.Embedding(codec.vocabulary + extra, width)
        self.slot_ND = nn.Parameter(torch.randn(self.length, width) * 0.5)
        self.roster_axes = {"slot_ND": codec.slot_axes}
        self.head = nn.Linear(width, codec.vocabulary)
        self.register_buffer("range_N2", codec.ranges(roster.horizon, roster.action_width), persistent=False)
        nn.init.normal_(self.code_in.weight, std=0.5)

    def embed(self, id_BN: Tensor) -> Tensor:
        """int64 (B, N) -> (B, N, D), each code with its place."""
        return self.code_in(id_BN) + self.slot_ND[: id_BN.shape[1]]

    def logits(self, hidden_BmD: Tensor, at: slice = slice(None)) -> Tensor:
        """States of the places `at` -> float32 (B, m, vocabulary), minus infinity for codes that a place cannot hold."""
        logits_BmC = self.head(hidden_BmD).float()
        if self.range_N2 is None:
            return logits_BmC
        code_C, range_m2 = torch.arange(logits_BmC.shape[-1], device=logits_BmC.device), self.range_N2[at][: hidden_BmD.shape[1]]
        return logits_BmC.masked_fill((code_C < range_m2[:, :1]) | (code_C >= range_m2[:, 1:]), -torch.inf)

    def encode(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """-> codes int64, which exist, and which are labelled: each (B, N), N as short as the batch allows."""
        codec, action_BTA = self.codec, target.action_BTA
        if codec.whole:  # what stands after an episode's end must not matter
            action_BTA = hold(action_BTA, target.label_BTA)
        codec.require(labelled_rows(target))
        code_BN = codec.encode(action_BTA, target.spec)
        exists_BN = codec.exists(code_BN, target.spec)
        label_BN = codec.labelled(exists_BN, target.label_BTA)
        if not codec.fixed:
            longest = max(1, int(exists_BN.sum(1).max()))
            code_BN, exists_BN, label_BN = (t[:, :longest] for t in (code_BN, exists_BN, label_BN))
        return code_BN, exists_BN, label_BN

    def labels(self, target: Target) -> Tensor:
        """The third of `encode`; cheap where the number of codes is known without the chunk."""
        if not self.codec.fixed:
            return self.encode(target)[2]
        exists_BN = self.codec.exists(target.action_BTA.new_zeros(len(target.action_BTA), self.length, dtype=torch.int64), target.spec)
        return self.codec.labelled(exists_BN, target.label_BTA)

    def given(self, prior: Prior, like: ActionSpec) -> tuple[Tensor, Tensor]:
        """What a prior decides: codes int64 (B, N), and which of them it does. Codes that speak of a whole chunk only if all of it is
        certain; codes of no fixed number never."""
        self.codec.require(like)
        code_BN = self.codec.encode(prior.action_BTA, like)
        sure_BTA = (prior.weight_BT == 1)[..., None] & like.mask_BTA
        if not self.codec.fixed:
            return code_BN, torch.zeros_like(code_BN, dtype=torch.bool)
        exists_BN = self.codec.exists(code_BN, like)
        if self.codec.whole:
            return code_BN, exists_BN & (sure_BTA == like.mask_BTA).flatten(1).all(1, keepdim=True)
        return code_BN, exists_BN & self.codec.labelled(exists_BN, sure_BTA)

    def decode(self, code_BN: Tensor, like: ActionSpec) -> Tensor:
        """int64 (B, N) -> float32 (B, T, A)."""
        return self.codec.decode(code_BN, like)

    def fit(self, target: Target) -> None:
        """Fits the codec on labelled chunks, and moves what a checkpoint learned of its codes to what they mean now."""
        self.codec.fit(
            hold(target.action_BTA, target.label_BTA) if self.codec.whole else target.action_BTA, labelled_spec(self.codec, target)
        )
        with torch.no_grad():
            for weight in (self.code_in.weight, self.head.weight, self.head.bias[:, None]):
                rows_VD = weight[: self.codec.vocabulary]
                rows_VD.copy_(self.codec.moved(rows_VD))


def labelled_rows(target: Target) -> ActionSpec:
    """Without the numbers of rows that have no label: nobody needs their codes to mean anything."""
    return replace(target.spec, mask_BTA=target.spec.mask_BTA & target.label_BTA.flatten(1).any(1)[:, None, None])


def labelled_spec(codec: Codec, target: Target) -> ActionSpec:
    """What a codec is fitted on: the labelled numbers, or (`whole`) all numbers of chunks with labels."""
    return labelled_rows(target) if codec.whole else replace(target.spec, mask_BTA=target.label_BTA)


class TokensDecoder(ActionDecoder):
    """A suffix start, c_0, ..., c_{N-2} that predicts c_0, ..., c_{N-1}, causal by the codec's blocks (of one code each, usually).

    A place exists iff the code it predicts does, and shows the last code before it that exists: so a narrow robot's sequence is the
    same in a roster with wider ones.
    """

    reads = Reads(layers=())

    def __init__(self, config: AutoregressiveTokens, width: int, roster: Roster) -> None:
        super().__init__()
        self.temperature, self.hide = config.temperature, config.hide
        self.codes = CodeTokens(config.codec.build(roster), width, roster, extra=1)
        self.fits = self.codes.codec.fits
        codec = self.codes.codec
        self.start_id = codec.vocabulary
        self.register_buffer("block_N", codec.blocks(roster.horizon, roster.action_width), persistent=False)
        self.register_buffer("parent_N", codec.parents(roster.horizon, roster.action_width), persistent=False)
        self.chain = bool((self.parent_N == torch.arange(len(self.parent_N)) - 1).all())
        self.from_prefix = config.from_prefix
        if self.from_prefix and not self.chain:
            raise UserError(f"{config.codec.kind} predicts several codes at once; the prefix's last token is one: set from_prefix=False")
        blocks = self.block_N.tolist()  # asked once: on a GPU each answer is a wait, and ends a capture
        self.end_block = blocks[-1] + 1
        self.runs = _runs(blocks)
        self.offset = Offset(width, roster) if config.offset else None
        self.chunks = self.repaired = 0
        """Chunks sampled, and those in which the likeliest code would have made one that is too long or too short."""

    @property
    def draws(self) -> bool:
        return self.temperature > 0

    def fit(self, target: Target) -> None:
        self.codes.fit(target)

    def facts(self) -> dict[str, int]:
        return {} if self.codes.codec.fixed or not self.chunks else {"chunks": self.chunks, "repaired": self.repaired}

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        weights = {"cross_entropy": self.codes.labels(target).sum().float()}
        return weights | ({"offset": target.label_BTA.sum().float()} if self.offset else {})

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Cross-entropy of every code given those before it (teacher forcing), some of them hidden; L1 of the offset, if any."""
        code_BN, exists_BN, label_BN = self.codes.encode(target)
        shown_BN = self._shown(code_BN, exists_BN)
        if self.hide > 0:
            shown_BN = shown_BN.masked_fill(noise.uniform("hide", shown_BN.shape[1]) < self.hide, self.start_id)
        x_BND = self.codes.embed(shown_BN)
        if self.offset:
            last_B1 = self._last(code_BN, exists_BN)
            x_BND = torch.cat([x_BND, self.codes.code_in(last_B1) + self.offset.slot_D], dim=1)
        suffix = self._places(prefix, x_BND, exists_BN)
        hidden_BSD = self._states(prefix, backbone(prefix.cat(suffix)), len(suffix))
        logits_BNC = self.codes.logits(hidden_BSD[:, : code_BN.shape[1]])
        error_BN = F.cross_entropy(logits_BNC.transpose(1, 2), code_BN, reduction="none")
        parts, scale = {"cross_entropy": (error_BN, label_BN)}, {"cross_entropy": 1.0}
        if self.offset:
            left_BTA = target.action_BTA - self.codes.decode(code_BN, labelled_rows(target))
            error_BTA = (self.offset(hidden_BSD[:, -1], target.spec) - left_BTA).abs()
            parts["offset"], scale["offset"] = (error_BTA, target.label_BTA), 1.0
        return make_loss(parts, scale)

    def resume(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior) -> Tensor:
        """The codes that the prior decides are said as they are, the others after them. A codec without such codes (`given`) is mixed."""
        code_BN, sure_BN = self.codes.given(prior, like)
        if not self.codes.codec.fixed or self.codes.codec.whole:
            return super().resume(backbone, prefix, like, noise, prior)
        return join(self.sample(backbone, prefix, like, noise, (code_BN, sure_BN)), like, prior, soft=False)

    def sample(
        self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, given: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """A block of codes at a time after the cached prefix, or the same in fewer passes (`_settle`). `given`: codes (B, N), and which of
        them are decided already."""
        codec, N = self.codes.codec, self.codes.length
        B = len(like.mask_BTA)
        code_BN = like.mask_BTA.new_zeros(B, N, dtype=torch.int64)
        left_Bn = None if codec.fixed else codec.begin(like)
        exists_BN = codec.exists(code_BN, like) if codec.fixed else torch.ones_like(code_BN, dtype=torch.bool)
        places = self._places(prefix, prefix.x_BSD.new_zeros(B, N, prefix.x_BSD.shape[-1]), exists_BN)
        draws_BNC = noise.uniform("tokens", N, codec.vocabulary) if self.temperature > 0 else None
        hidden, shown_BN, repaired_B = backbone(prefix), torch.full_like(code_BN, self.start_id), torch.zeros_like(like.embodiment_B)
        runs = self.runs
        alone = codec.fixed and len(runs) == N and not self.from_prefix
        if alone and code_BN.device.type == "cpu":  # elsewhere each answer is a wait
            code_BN, hidden = self._settle(backbone, hidden, places, exists_BN, draws_BNC, given)
            runs = []
        for at in runs:
            if left_Bn is not None:
                exists_BN[:, at] = (left_Bn > 0).any(-1, keepdim=True)
                if not exists_BN[:, at].any():
                    code_BN, exists_BN = code_BN[:, : at.start], exists_BN[:, : at.start]
                    break
            if at.start > 0 or not self.from_prefix:
                x_BmD = (self.codes.code_in(shown_BN[:, at]) + self.codes.slot_ND[at]).to(prefix.x_BSD.dtype)
                hidden = backbone(places.slice(at.start, at.stop).with_x(x_BmD, exists_BN[:, at]), cache=hidden)
            state_BmD = hidden.last(at.stop - at.start) if at.start > 0 else self._states(prefix, hidden, at.stop)
            logits_BmC = self._drawn(self.codes.logits(state_BmD, at), draws_BNC, at)
            if left_Bn is not None:
                wanted_B, allowed_BC = logits_BmC[:, 0].argmax(-1), codec.allow(left_Bn)
                repaired_B |= exists_BN[:, at.start] & ~allowed_BC.gather(1, wanted_B[:, None])[:, 0]
                logits_BmC = logits_BmC.masked_fill(~allowed_BC[:, None], -torch.inf)
            code_BN[:, at] = torch.where(exists_BN[:, at], logits_BmC.argmax(-1), 0)
            if given is not None:
                code_BN[:, at] = torch.where(given[1][:, at], given[0][:, at], code_BN[:, at])
            if left_Bn is not None:
                left_Bn = torch.where(exists_BN[:, at], codec.spend(left_Bn, code_BN[:, at.start]), left_Bn)
            shown_BN = self._shown(code_BN, exists_BN & (torch.arange(N, device=code_BN.device) < at.stop))
        self.chunks += B
        if left_Bn is not None:
            self.repaired += int(repaired_B.sum())
        action_BTA = self.codes.decode(F.pad(code_BN, (0, N - code_BN.shape[1])), like)
        return action_BTA if self.offset is None else action_BTA + self._correction(backbone, prefix, hidden, code_BN, exists_BN, like)

    def _settle(
        self,
        backbone: Backbone,
        hidden: Hidden,
        places: Tokens,
        exists_BN: Tensor,
        draws_BNC: Tensor | None,
        given: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Hidden]:
        """The codes that one after the other would give, int64 (B, N), and the cache behind them, in as few passes as it takes (Jacobi
        decoding, Santilli et al. 2023; of actions, Song et al. 2025).

        A pass runs places whose codes are not certain yet, each shown what the passes before found. A code is certain once all that its
        place and those before it were shown is; so in each pass at least the first is. What was run for others is taken back. Where little
        becomes certain, the next pass looks less far ahead: at worst this is one code a pass.
        """
        N, from_BN = exists_BN.shape[1], self._from(exists_BN)
        first_BN, from_BN = from_BN < 0, from_BN.clamp(min=0)
        code_BN = torch.full_like(from_BN, self.start_id)  # which nothing found is equal to
        start, stop = 0, N
        while start < N:
            at, fresh = slice(start, stop), stop - start == N
            shown_Bm = code_BN.gather(1, from_BN[:, at]).masked_fill(first_BN[:, at], self.start_id)
            x_BmD = (self.codes.code_in(shown_Bm) + self.codes.slot_ND[at]).to(places.x_BSD.dtype)
            hidden = backbone(places.slice(start, stop).with_x(x_BmD, exists_BN[:, at]), cache=hidden)
            found_Bm = self._drawn(self.codes.logits(hidden.last(stop - start), at), draws_BNC, at).argmax(-1)
            found_Bm = torch.where(exists_BN[:, at], found_Bm, 0)
            if given is not None:
                found_Bm = torch.where(given[1][:, at], given[0][:, at], found_Bm)
            right = [*(found_Bm == code_BN[:, at]).all(0).tolist(), False].index(False)  # guesses before the first wrong one
            sure = min(right + 1, stop - start)
            code_BN[:, at] = found_Bm
            hidden = hidden.without(stop - start - sure)
            start += sure
            stop = N if fresh else min(start + max(1, 2 * right), N)
        return code_BN, hidden

    def _drawn(self, logits_BmC: Tensor, draws_BNC: Tensor | None, at: slice) -> Tensor:
        """Logits whose largest is a draw from softmax(logits / temperature) (Gumbel-max); as they are where nothing is drawn."""
        return logits_BmC if draws_BNC is None else logits_BmC - self.temperature * torch.log(-torch.log(draws_BNC[:, at]))

    def _places(self, prefix: Tokens, x_BSD: Tensor, exists_BN: Tensor) -> Tokens:
        """The suffix: a place per code, and one more for the offset if there is one."""
        S, N = x_BSD.shape[1], exists_BN.shape[1]
        valid_BS = F.pad(exists_BN, (0, S - N), value=True)
        if self.from_prefix:
            valid_BS = F.pad(valid_BS[:, 1:], (1, 0))
        block_S = F.pad(self.block_N[:N], (0, S - N), value=self.end_block)
        suffix = suffix_tokens(prefix, x_BSD.to(prefix.x_BSD.dtype), causal=True, valid_BS=valid_BS)
        return replace(suffix, block_BS=(prefix.next_block() + block_S).expand(valid_BS.shape))

    def _states(self, prefix: Tokens, hidden: Hidden, count: int) -> Tensor:
        """Of the first `count` places, which are the last that ran; of the very first, where it is the prefix's, that of its last token."""
        if not self.from_prefix:
            return hidden.last(count)
        last_B = prefix.position_BS.masked_fill(~prefix.valid_BS, -1).argmax(1)
        first_B1D = hidden.x_BSD[torch.arange(len(last_B), device=last_B.device), last_B][:, None]
        return torch.cat([first_B1D, hidden.last(count)[:, 1:]], dim=1)

    def _correction(self, backbone: Backbone, prefix: Tokens, hidden: Any, code_BN: Tensor, exists_BN: Tensor, like: ActionSpec) -> Tensor:
        assert self.offset is not None
        x_B1D = self.codes.code_in(self._last(code_BN, exists_BN)) + self.offset.slot_D
        empty_BND = x_B1D.new_zeros(*exists_BN.shape, x_B1D.shape[-1])
        place = self._places(prefix, torch.cat([empty_BND, x_B1D], dim=1), exists_BN)
        place = place.slice(exists_BN.shape[1], exists_BN.shape[1] + 1)
        return (self.offset(backbone(place, cache=hidden).last(1)[:, 0], like) * like.mask_BTA).float()

    def _last(self, code_BN: Tensor, exists_BN: Tensor) -> Tensor:
        """int64 (B, 1): the last code that exists, or the start id."""
        place_N = torch.arange(code_BN.shape[1], device=code_BN.device)
        last_B1 = torch.where(exists_BN, place_N, -1).amax(1, keepdim=True)
        return code_BN.gather(1, last_B1.clamp(min=0)).masked_fill(last_B1 < 0, self.start_id)

    def _shown(self, code_BN: Tensor, exists_BN: Tensor) -> Tensor:
        """What each place shows, int64 (B, N): its parent's code (in a chain, the last existing one before it), or the start id."""
        from_BN = self._from(exists_BN)
        return code_BN.gather(1, from_BN.clamp(min=0)).masked_fill(from_BN < 0, self.start_id)

    def _from(self, exists_BN: Tensor) -> Tensor:
        """The place of the code that each place shows, int64 (B, N), -1 where that is the start id."""
        N = exists_BN.shape[1]
        if self.chain:
            place_N = torch.arange(N, device=exists_BN.device)
            last_BN = torch.where(exists_BN, place_N, -1).cummax(dim=1).values
            return F.pad(last_BN[:, :-1], (1, 0), value=-1)
        from_BN = self.parent_N[:N].expand(exists_BN.shape)
        return torch.where(exists_BN.gather(1, from_BN.clamp(min=0)), from_BN, -1)


def _runs(blocks: list[int]) -> list[slice]:
    """The places of each block, in order."""
    stops = [at for at in range(1, len(blocks)) if blocks[at] != blocks[at - 1]] + [len(blocks)]
    return [slice(a, b) for a, b in zip([0, *stops[:-1]], stops, strict=True)]


class Offset(nn.Module):
    """One state per chunk -> a correction of every number of it, small at first."""

    def __init__(self, width: int, roster: Roster) -> None:
        super().__init__()
        self.slot_D = nn.Parameter(torch.randn(width) * 0.5)
        self.step_TD = nn.Parameter(torch.randn(roster.horizon, width) * 0.5)
        self.roster_axes = {"step_TD": ("T", None)}
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.out = Bank(len(roster), width, roster.action_width, axes=(None, "A"))
        nn.init.normal_(self.out.weight_EIO, std=1e-3)

    def forward(self, x_BD: Tensor, spec: ActionSpec) -> Tensor:
        """(B, D) -> (B, T, A)."""
        return self.out(self.mix(x_BD[:, None] + self.step_TD.to(x_BD.dtype)), spec.embodiment_B)
