"""Parallel decoding with L1 (OpenVLA-OFT, Kim et al. 2025): one learned query per action step, all at once, regressed.

Deviation: OFT gives each action number its own (zeroed) token and an MLP-ResNet head; here a step is a token and a robot's numbers are
read by one linear map of its own (`Bank`).
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
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target


@dataclass(frozen=True)
class Parallel:
    """No settings: sizes come from the backbone and the roster."""

    kind: ClassVar[str] = "decoder.parallel"

    def build(self, width: int, roster: Roster) -> ParallelDecoder:
        return ParallelDecoder(width, roster)


class ParallelDecoder(ActionDecoder):
    """A bidirectional suffix of T queries, then a linear map per robot. Deterministic: the noise is unused."""

    def __init__(self, width: int, roster: Roster) -> None:
        super().__init__()
        self.roster_axes = {"query_TD": ("T", None)}
        self.query_TD = nn.Parameter(torch.randn(roster.horizon, width) * 0.5)
        self.out = Bank(len(roster), width, roster.action_width, axes=(None, "A"))

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"l1": target.label_BTA.sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        error_BTA = (self._predict(backbone, prefix, target.spec) - target.action_BTA).abs()
        return make_loss({"l1": (error_BTA, target.label_BTA)}, {"l1": 1.0})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        return (self._predict(backbone, prefix, like) * like.mask_BTA).float()

    def _predict(self, backbone: Backbone, prefix: Tokens, like: ActionSpec) -> Tensor:
        x_BTD = self.query_TD.expand(len(prefix.x_BSD), -1, -1).to(prefix.x_BSD.dtype)
        suffix = suffix_tokens(prefix, x_BTD, causal=False, valid_BS=like.mask_BTA.any(-1))
        hidden = backbone(prefix.cat(suffix))
        return self.out(hidden.last(len(suffix)), like.embodiment_B)
