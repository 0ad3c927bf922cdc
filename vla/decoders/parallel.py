"""Parallel decoding with L1 (OpenVLA-OFT, Kim et al. 2025): the whole chunk at once, regressed.

By default a learned query stands for one or several whole steps behind a prefix that does not see it, and a robot's numbers are read by one
linear map of its own. `Parallel(tokens="numbers", whole=True, head=ResNet())` is the published form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.backbones.base import Backbone, Tokens, suffix_tokens
from vla.backbones.remembered import Reads
from vla.decoders.base import ActionDecoder, make_loss
from vla.decoders.fold import StepFold
from vla.decoders.heads import Linear
from vla.decoders.whole import one_ahead
from vla.errors import UnknownName, UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target

TOKENS = ("steps", "numbers")


@dataclass(frozen=True)
class Parallel:
    """`steps_per_token`: action steps that share one query; more is cheaper and hardly blunter (docs/design.md).

    `tokens`: `steps`, learned queries; or `numbers`, a token of zeros for each number of each step, which differ by their positions (OFT).
    `whole`: prefix and chunk are one sequence in which every token sees every other, closed by one more token, and a number is read from
    the token before its own, as in a language model that predicted the next word until it was fine-tuned so (OFT). The prefix's states then
    depend on the chunk's length, so they can be neither cached nor shared. `head`: vla/decoders/heads.py.
    """

    kind: ClassVar[str] = "decoder.parallel"
    steps_per_token: int = 1
    tokens: str = "steps"
    whole: bool = False
    head: Any = field(default_factory=Linear)

    def build(self, width: int, roster: Roster) -> ParallelDecoder:
        if self.tokens not in TOKENS:
            raise UnknownName("what a token stands for", self.tokens, TOKENS)
        if self.tokens == "numbers" and self.steps_per_token != 1:
            raise UserError("a token a number leaves nothing to fold: set steps_per_token=1")
        return ParallelDecoder(self, width, roster)


class ParallelDecoder(ActionDecoder):
    """A bidirectional suffix, unfolded to T steps, then the head. Deterministic: the noise is unused."""

    reads = Reads(layers=())

    def __init__(self, config: Parallel, width: int, roster: Roster) -> None:
        super().__init__()
        self.shares_prefix = not config.whole
        self.fold = StepFold(roster.horizon, config.steps_per_token, width)
        self.numbers = roster.action_width if config.tokens == "numbers" else 0
        self.query_TD = None if self.numbers else nn.Parameter(torch.randn(self.fold.tokens, width) * 0.5)
        self.roster_axes = {} if self.numbers else {"query_TD": ("T", None)}
        self.closing_1D = nn.Parameter(torch.randn(1, width) * 0.5) if config.whole else None
        self.out = config.head.build(width, roster, max(self.numbers, 1))

    @property
    def draws(self) -> bool:
        return False

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"l1": target.label_BTA.sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        error_BTA = (self._predict(backbone, prefix, target.spec) - target.action_BTA).abs()
        return make_loss({"l1": (error_BTA, target.label_BTA)}, {"l1": 1.0})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        return (self._predict(backbone, prefix, like) * like.mask_BTA).float()

    def _predict(self, backbone: Backbone, prefix: Tokens, like: ActionSpec) -> Tensor:
        B, _, D = prefix.x_BSD.shape
        if self.query_TD is None:
            x_BSD, valid_BS = prefix.x_BSD.new_zeros(B, like.mask_BTA[0].numel(), D), like.mask_BTA.flatten(1)
        else:
            x_BSD, valid_BS = self.query_TD.expand(B, -1, -1).to(prefix.x_BSD.dtype), self.fold.valid(like.mask_BTA)
        if self.closing_1D is None:
            suffix = suffix_tokens(prefix, x_BSD, causal=False, valid_BS=valid_BS)
            state_BSD = backbone(prefix.cat(suffix)).last(len(suffix))
        else:
            state_BSD = one_ahead(backbone, prefix, x_BSD, valid_BS, self.closing_1D)
        step_BTD = self.fold.unfold(state_BSD) if not self.numbers else state_BSD.unflatten(1, (-1, self.numbers))
        return self.out(step_BTD, like)
