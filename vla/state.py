"""How proprioception enters: as tokens of the prefix, one per history frame, through a map per robot; in words; or not at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Tokens
from vla.bank import Bank
from vla.errors import UserError
from vla.roster import Roster


@dataclass(frozen=True)
class StateTokens:
    """`layers`: 1, a linear map per robot; 2, then GELU and a linear map that all share (OpenVLA-OFT's projector).

    `after_images`: between images and text, as another patch (OFT), where the text sees it and it does not see the text, unless all do.
    Otherwise behind the observation, which does not see it (the blocks of pi0).
    """

    kind: ClassVar[str] = "state.tokens"
    in_words: ClassVar[bool] = False
    layers: int = 1
    after_images: bool = False

    def build(self, width: int, roster: Roster) -> Bank | StateMLP:
        if self.layers not in (1, 2):
            raise UserError(f"proprioception goes through 1 or 2 layers, not {self.layers}")
        return (Bank if self.layers == 1 else StateMLP)(len(roster), roster.state_width, width, axes=("P", None))

    def join(self, seen: Tokens, x_BFD: Tensor, valid_BF: Tensor) -> Tokens:
        """The observation's tokens and those of the state, which stand at the end whatever their positions."""
        age_BF = (valid_BF.long().cumsum(1) - 1).clamp(min=0)
        zero_BF = torch.zeros_like(age_BF)
        if not self.after_images:
            state = Tokens(x_BFD, valid_BF, zero_BF + seen.next_block(), zero_BF, seen.next_position() + age_BF)
            return seen.cat(state)
        image_BS = seen.valid_BS & seen.extras["image_BS"]
        here_BS = torch.where(image_BS.any(1, keepdim=True), image_BS, seen.valid_BS)  # without an image, behind all
        last_B1 = seen.position_BS.masked_fill(~here_BS, -1).amax(1, keepdim=True)
        block_B1 = seen.block_BS.masked_fill(~here_BS, 0).amax(1, keepdim=True)
        behind_BS, above_BS = seen.position_BS > last_B1, seen.block_BS > block_B1
        moved = replace(
            seen,
            position_BS=seen.position_BS + behind_BS * valid_BF.sum(1, keepdim=True),
            block_BS=seen.block_BS + above_BS * valid_BF.shape[1],
        )
        causal_B1 = (seen.block_BS.amax(1, keepdim=True) > 0).long()  # families that see the whole prefix have one block
        step_F = torch.arange(1, valid_BF.shape[1] + 1, device=valid_BF.device)
        return moved.cat(Tokens(x_BFD, valid_BF, block_B1 + causal_B1 * step_F, zero_BF, last_B1 + 1 + age_BF))


@dataclass(frozen=True)
class StateWords:
    """The newest state, normalised, in words at the end of the instruction (pi0.5, pi0-FAST; `vla.collate.state_words`)."""

    kind: ClassVar[str] = "state.words"
    in_words: ClassVar[bool] = True

    def build(self, width: int, roster: Roster) -> None:
        return None


@dataclass(frozen=True)
class NoState:
    """None: the policy sees images and words alone (OpenVLA, CogACT)."""

    kind: ClassVar[str] = "state.none"
    in_words: ClassVar[bool] = False

    def build(self, width: int, roster: Roster) -> None:
        return None


class StateMLP(nn.Module):
    """(B, ..., P), (B,) -> (B, ..., D)."""

    def __init__(self, count: int, width_in: int, width: int, axes: tuple[str | None, str | None]) -> None:
        super().__init__()
        self.first = Bank(count, width_in, width, axes)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor, embodiment_B: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x, embodiment_B)))
