"""Inverse dynamics: what happened between two frames, as one continuous latent vector (B, Z)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Tokens, prefix_tokens
from vla.backbones.transformer import Transformer
from vla.errors import SchemaError
from vla.latent_action.features import Features


class InverseDynamics(nn.Module):
    """`forward(now_BCHW, later_BCHW, gap_B1) -> latent_BZ`; the maps are `Features`', the gap is scaled to about -1..1.

    One with `frames_before` > 0 takes as many earlier maps as a fourth argument, `before_BFCHW`, oldest first.
    """

    frames_before: int = 0


@dataclass(frozen=True)
class StateDifference:
    """A latent state of each frame by convolutions, and the difference of the two. Not from a paper.

    So latent actions add up over time: a -> b and b -> c make a -> c, and going back is the negative. A free function of both
    frames may give one motion another code at every place; a difference cannot, unless the whole state space is bent.
    """

    kind: ClassVar[str] = "latent_action.encoder.state_difference"
    width: int = 32
    grid: int = 4

    def build(self, features: Features, latent: int) -> InverseDynamics:
        return _StateDifference(self, features, latent)


@dataclass(frozen=True)
class SpatioTemporal:
    """Latent queries that attend to the patches of both frames (LAPA, UniVLA); for deep features and long training.

    With two frames, attention over all patches of both replaces UniVLA's alternation of spatial and temporal blocks.
    """

    kind: ClassVar[str] = "latent_action.encoder.spatio_temporal"
    patch: int = 4
    width: int = 128
    depth: int = 2
    heads: int = 4
    queries: int = 4

    def build(self, features: Features, latent: int) -> InverseDynamics:
        return _SpatioTemporal(self, features, latent)


@dataclass(frozen=True)
class PatchDifference:
    """A transformer over the patches of each frame alone, pooled to `grid` x `grid` tokens; the difference of the two (LAPA).

    LAPA quantizes the difference of later and first tokens (`NSVQ`, `laq_model/nsvq.py`); there, the later frame's also attend to
    the first's. Going back is exactly the negative here.
    """

    kind: ClassVar[str] = "latent_action.encoder.patch_difference"
    patch: int = 32
    width: int = 128
    depth: int = 2
    heads: int = 4
    grid: int = 2

    def build(self, features: Features, latent: int) -> InverseDynamics:
        return _PatchDifference(self, features, latent)


@dataclass(frozen=True)
class WindowTransformer:
    """Latent queries over a window of frames: `before` earlier ones, now and later, by alternating blocks that attend within a frame
    and, place by place, over time (UniVLA, villa-X). Every frame has its queries; those of the later frame are the latent action.

    `depth`: pairs of a spatial and a temporal block. Time is causal, so that frames before say nothing of the later one by themselves.
    """

    kind: ClassVar[str] = "latent_action.encoder.window"
    before: int = 6
    patch: int = 4
    width: int = 128
    depth: int = 2
    heads: int = 4
    queries: int = 4

    def build(self, features: Features, latent: int) -> InverseDynamics:
        return _WindowTransformer(self, features, latent)


class _StateDifference(InverseDynamics):
    def __init__(self, config: StateDifference, features: Features, latent: int) -> None:
        super().__init__()
        self.grid = config.grid
        self.conv1 = nn.Conv2d(features.channels, config.width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.width, config.width, 3, stride=2, padding=1)
        self.out = nn.Linear(config.width * config.grid**2, latent, bias=False)

    def forward(self, now_BCHW: Tensor, later_BCHW: Tensor, gap_B1: Tensor) -> Tensor:
        now_BZ, later_BZ = self._state(torch.cat([now_BCHW, later_BCHW])).chunk(2)
        return later_BZ - now_BZ  # the gap is no part of a state; the forward decoder knows it

    def _state(self, map_BCHW: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(F.relu(map_BCHW)))))
        return self.out(F.adaptive_avg_pool2d(x, self.grid).flatten(1))


class _SpatioTemporal(InverseDynamics):
    def __init__(self, config: SpatioTemporal, features: Features, latent: int) -> None:
        super().__init__()
        if latent % config.queries:
            raise SchemaError(f"{config.queries} latent queries do not divide a latent of width {latent}")
        self.patches = Patches(features.channels, features.side, config.patch, config.width)
        self.frame = nn.Parameter(torch.randn(2, config.width) * 0.5)
        self.query_ND = nn.Parameter(torch.randn(config.queries, config.width) * 0.5)
        self.gap = nn.Linear(1, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.out = nn.Linear(config.width, latent // config.queries)

    def forward(self, now_BCHW: Tensor, later_BCHW: Tensor, gap_B1: Tensor) -> Tensor:
        frames = [self.patches(x) + self.frame[i] for i, x in enumerate((now_BCHW, later_BCHW))]
        x_BSD = torch.cat([*frames, self.query_ND + self.gap(gap_B1)[:, None]], dim=1)
        hidden = self.transformer(prefix_tokens(x_BSD, torch.ones(x_BSD.shape[:2], dtype=torch.bool, device=x_BSD.device)))
        return self.out(hidden.last(len(self.query_ND))).flatten(1)


class _PatchDifference(InverseDynamics):
    def __init__(self, config: PatchDifference, features: Features, latent: int) -> None:
        super().__init__()
        self.grid, self.side = config.grid, features.side // config.patch
        if latent % config.grid**2:
            raise SchemaError(f"{config.grid**2} tokens do not divide a latent of width {latent}")
        self.patches = Patches(features.channels, features.side, config.patch, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.out = nn.Linear(config.width, latent // config.grid**2, bias=False)

    def forward(self, now_BCHW: Tensor, later_BCHW: Tensor, gap_B1: Tensor) -> Tensor:
        now_BZ, later_BZ = self._state(torch.cat([now_BCHW, later_BCHW])).chunk(2)
        return later_BZ - now_BZ

    def _state(self, map_BCHW: Tensor) -> Tensor:
        x_BSD = self.transformer(_all_valid(self.patches(map_BCHW))).x_BSD
        tokens = F.adaptive_avg_pool2d(x_BSD.transpose(1, 2).unflatten(2, (self.side, self.side)), self.grid)
        return self.out(tokens.flatten(2).transpose(1, 2)).flatten(1)


class _WindowTransformer(InverseDynamics):
    def __init__(self, config: WindowTransformer, features: Features, latent: int) -> None:
        super().__init__()
        if latent % config.queries:
            raise SchemaError(f"{config.queries} latent queries do not divide a latent of width {latent}")
        self.frames_before = config.before
        self.patches = Patches(features.channels, features.side, config.patch, config.width)
        self.query_ND = nn.Parameter(torch.randn(config.queries, config.width) * 0.5)
        self.gap = nn.Linear(1, config.width)
        self.spatial = nn.ModuleList(Transformer(config.width, 1, config.heads) for _ in range(config.depth))
        self.temporal = nn.ModuleList(Transformer(config.width, 1, config.heads) for _ in range(config.depth))
        self.out = nn.Linear(config.width, latent // config.queries)

    def forward(self, now_BCHW: Tensor, later_BCHW: Tensor, gap_B1: Tensor, before_BFCHW: Tensor | None = None) -> Tensor:
        maps_BFCHW = torch.stack([now_BCHW, later_BCHW], dim=1)
        if before_BFCHW is not None:
            maps_BFCHW = torch.cat([before_BFCHW, maps_BFCHW], dim=1)
        B, Fr, N = len(maps_BFCHW), maps_BFCHW.shape[1], len(self.query_ND)
        if Fr != self.frames_before + 2:
            raise SchemaError(f"an encoder of {self.frames_before} frames before now got {Fr - 2}; set the model's `history_s`")
        seen = self.patches(maps_BFCHW.flatten(0, 1))
        queries = self.query_ND + self.gap(gap_B1).repeat_interleave(Fr, 0)[:, None]
        x_XSD = torch.cat([queries, seen], dim=1)
        S = x_XSD.shape[1]
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            x_XSD = spatial(_all_valid(x_XSD)).x_BSD
            x_YFD = x_XSD.unflatten(0, (B, Fr)).transpose(1, 2).flatten(0, 1)
            x_YFD = temporal(_all_valid(x_YFD, causal=True)).x_BSD
            x_XSD = x_YFD.unflatten(0, (B, S)).transpose(1, 2).flatten(0, 1)
        return self.out(x_XSD.unflatten(0, (B, Fr))[:, -1, :N]).flatten(1)


def _all_valid(x_BSD: Tensor, causal: bool = False) -> Tokens:
    return prefix_tokens(x_BSD, torch.ones(x_BSD.shape[:2], dtype=torch.bool, device=x_BSD.device), causal)


class Patches(nn.Module):
    """A map (B, C, side, side) -> tokens (B, S, D) with learned positions, one per patch x patch square."""

    def __init__(self, channels: int, side: int, patch: int, width: int) -> None:
        super().__init__()
        if side % patch:
            raise SchemaError(f"patches of {patch} do not divide a map of side {side}")
        self.conv = nn.Conv2d(channels, width, patch, stride=patch)
        self.position_SD = nn.Parameter(torch.randn((side // patch) ** 2, width) * 0.5)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return self.conv(map_BCHW).flatten(2).transpose(1, 2) + self.position_SD
