"""Forward dynamics: the first frame and a latent action -> the second frame, as its change from the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import prefix_tokens
from vla.backbones.transformer import Transformer
from vla.errors import SchemaError
from vla.latent_action.encoder import Patches
from vla.latent_action.features import Features


class ForwardDynamics(nn.Module):
    """`forward(now_BCHW, action_BZ, gap_B1) -> (B, target_channels, target_side, target_side)`, zero at initialisation: the
    prediction of no change."""


@dataclass(frozen=True)
class ForwardConv:
    """Convolutions of the first frame's map, with the latent action spread evenly over it and modulating it (FiLM, Perez 2018).

    The action enters alike at every place, so a code that means a motion in the image is the easiest to use. That is what makes
    codes line up with displacements: an MLP decoder predicts as well, by codes that mean something else in every scene.
    """

    kind: ClassVar[str] = "latent_action.decoder.conv"
    width: int = 32

    def build(self, features: Features, latent: int) -> ForwardDynamics:
        return _ForwardConv(self, features, latent)


@dataclass(frozen=True)
class ForwardTransformer:
    """A transformer over the first frame's patches and the latent action as one token (LAPA, UniVLA)."""

    kind: ClassVar[str] = "latent_action.decoder.transformer"
    patch: int = 4
    width: int = 128
    depth: int = 2
    heads: int = 4

    def build(self, features: Features, latent: int) -> ForwardDynamics:
        return _ForwardTransformer(self, features, latent)


class _ForwardConv(ForwardDynamics):
    def __init__(self, config: ForwardConv, features: Features, latent: int) -> None:
        super().__init__()
        if features.side % features.target_side:
            raise SchemaError(f"the feature map's side {features.side} must be a multiple of the target's, {features.target_side}")
        half, width = config.width // 2, config.width
        self.stem = nn.Conv2d(features.channels, half, 3, stride=features.side // features.target_side, padding=1)
        self.shift1, self.shift2, self.scale2 = (nn.Linear(latent + 1, n) for n in (half, width, width))
        self.conv2 = nn.Conv2d(half, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.out = _zero(nn.Conv2d(width, features.target_channels, 3, padding=1))

    def forward(self, now_BCHW: Tensor, action_BZ: Tensor, gap_B1: Tensor) -> Tensor:
        action = torch.cat([action_BZ, gap_B1], dim=1)
        shift1, shift2, scale2 = (linear(action)[:, :, None, None] for linear in (self.shift1, self.shift2, self.scale2))
        x = F.relu(self.stem(now_BCHW) + shift1)
        x = F.relu((self.conv2(x) + shift2) * (1 + scale2))
        return self.out(F.relu(self.conv3(x)))


class _ForwardTransformer(ForwardDynamics):
    def __init__(self, config: ForwardTransformer, features: Features, latent: int) -> None:
        super().__init__()
        self.grid = features.side // config.patch
        if features.target_side % self.grid:
            raise SchemaError(f"a grid of {self.grid} patches does not divide the target's side, {features.target_side}")
        self.factor = features.target_side // self.grid
        self.patches = Patches(features.channels, features.side, config.patch, config.width)
        self.action = nn.Linear(latent + 1, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.out = _zero(nn.Linear(config.width, features.target_channels * self.factor**2))

    def forward(self, now_BCHW: Tensor, action_BZ: Tensor, gap_B1: Tensor) -> Tensor:
        action_B1D = self.action(torch.cat([action_BZ, gap_B1], dim=1))[:, None]
        x_BSD = torch.cat([action_B1D, self.patches(now_BCHW)], dim=1)
        hidden = self.transformer(prefix_tokens(x_BSD, torch.ones(x_BSD.shape[:2], dtype=torch.bool, device=x_BSD.device)))
        squares = self.out(hidden.x_BSD[:, 1:]).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return F.pixel_shuffle(squares, self.factor)


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
