"""Parallel decoding with L1 (OpenVLA-OFT, Kim et al. 2025): learned queries for all action steps at once, regressed.

Deviation: OFT gives each action number its own (zeroed) token and an MLP-ResNet head; here a token stands for one or several whole steps,
and a robot's numbers are read by one linear map of its own (`Bank`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vla.backbones.base import Backbone, Tokens, suffix_tokens
from vla.bank import Bank
from vla.decoders.base import ActionDecoder, make_loss
from vla.decoders.fold import StepFold
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target


@dataclass(frozen=True)
class Parallel:
    """`steps_per_token`: action steps that share one query; more is cheaper and hardly blunter (docs/design.md)."""

    kind: ClassVar[str] = "decoder.parallel"
    steps_per_token: int = 1

    def build(self, width: int, roster: Roster) -> ParallelDecoder:
        return ParallelDecoder(self, width, roster)


class ParallelDecoder(ActionDecoder):
    """A bidirectional suffix of queries, unfolded to T steps, then a linear map per robot. Deterministic: the noise is unused."""

    def __init__(self, config: Parallel, width: int, roster: Roster) -> None:
        super().__init__()
        self.fold = StepFold(roster.horizon, config.steps_per_token, width)
        self.query_TD = nn.Parameter(torch.randn(self.fold.tokens, width) * 0.5)
        self.roster_axes = {"query_TD": ("T", None)}
        self.out = Bank(len(roster), width, roster.action_width, axes=(None, "A"))

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"l1": target.label_BTA.sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        error_BTA = (self._predict(backbone, prefix, target.spec) - target.action_BTA).abs()
        return make_loss({"l1": (error_BTA, target.label_BTA)}, {"l1": 1.0})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        return (self._predict(backbone, prefix, like) * like.mask_BTA).float()

    def _predict(self, backbone: Backbone, prefix: Tokens, like: ActionSpec) -> Tensor:
        x_BSD = self.query_TD.expand(len(prefix.x_BSD), -1, -1).to(prefix.x_BSD.dtype)
        suffix = suffix_tokens(prefix, x_BSD, causal=False, valid_BS=self.fold.valid(like.mask_BTA))
        hidden = backbone(prefix.cat(suffix))
        return self.out(self.fold.unfold(hidden.last(len(suffix))), like.embodiment_B)
