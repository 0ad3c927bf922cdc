"""Where in space a patch lies, added to what it shows (SpatialVLA, Qu et al. 2025, section III-B: egocentric 3-D position encoding).

`points` x `points` points of a patch, back-projected from their depth by the camera's intrinsics into its frame (x right, y down, z ahead,
metres), then (x, sin 2^k x, cos 2^k x) of each coordinate, centred on 2 m ahead and halved, and an MLP. Depth is the observation's where it
has some; else that of a frozen estimator, if there is one; else the patch shows what it shows, and no more.
Facts: `model/modeling_spatialvla.py` there. Deviation: pixels without a depth are left out, where theirs are always estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.parse import library_config
from vla.errors import UserError
from vla.types import Geometry, Observation

CENTRE_M = (0.0, 0.0, 2.0)
SCALE_M = 2.0
BORDER, ESTIMATOR_SIDE = 31, 384
"""Of images before the estimator: reflected pixels on each side, and the size they are then brought to."""


@dataclass(frozen=True)
class Ego3D:
    """`points`: a side of the grid of points in a patch; `frequencies`: of each coordinate (SpatialVLA: 2 and 8).

    `estimator`: a configuration of the library's ZoeDepth by value, or None. `assumed`: intrinsics (fx / width, fy / height, cx / width,
    cy / height) of a camera that does not say its own; None: such a camera has no 3-D positions.
    """

    kind: ClassVar[str] = "ego3d"
    points: int = 2
    frequencies: int = 8
    estimator: Mapping[str, Any] | None = None
    assumed: tuple[float, float, float, float] | None = None

    def build(self, side: int, width: int) -> Positions3D:
        """`side`: patches along a side of the tower's grid. `width`: of its features."""
        return Positions3D(self, side, width)

    def collate(self, observations: Sequence[Observation], roles: Sequence[Sequence[str]], side: int) -> dict[str, Tensor]:
        """`depth_BVFGG` metres over the grid of points, NaN where unknown; `camera_BV4` like `assumed`, NaN where unknown."""
        frames, views = len(observations[0].offsets_s), max(1, *(len(row) for row in roles))
        grid = side * self.points
        depth = torch.full((len(observations), views, frames, grid, grid), torch.nan)
        camera = torch.full((len(observations), views, 4), torch.nan)
        for row, (obs, mine) in enumerate(zip(observations, roles, strict=True)):
            for view, role in enumerate(mine):
                known = obs.geometry.get(role, Geometry())
                height, width = obs.images[role].shape[1:3]
                if known.intrinsics is not None:
                    camera[row, view] = _relative(known.intrinsics, height, width)
                elif self.assumed is not None:
                    camera[row, view] = torch.tensor(self.assumed)
                if known.depth is not None:
                    depth[row, view] = _mean_known(torch.from_numpy(np.asarray(known.depth, dtype=np.float32)), grid)
        return {"depth_BVFGG": depth, "camera_BV4": camera}


class Positions3D(nn.Module):
    """`head`: encoding -> features. `estimator`: frozen."""

    frequency_K: Tensor

    def __init__(self, config: Ego3D, side: int, width: int) -> None:
        super().__init__()
        self.config, self.side = config, side
        self.register_buffer("frequency_K", 2.0 ** torch.arange(config.frequencies), persistent=False)
        encoded = 3 * config.points**2 * (1 + 2 * config.frequencies)
        self.head = nn.Sequential(nn.Linear(encoded, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
        for linear in (self.head[0], self.head[3]):
            nn.init.xavier_uniform_(linear.weight, gain=0.01)  # a pretrained tower starts nearly as it was
            nn.init.zeros_(linear.bias)
        self.estimator = None if config.estimator is None else _estimator(config.estimator)

    def train(self, mode: bool = True) -> Positions3D:
        """The estimator stays as it acts: it is frozen, and its dropout would move the points."""
        super().train(mode)
        if self.estimator is not None:
            self.estimator.eval()
        return self

    def forward(self, inputs: Mapping[str, Tensor], images_N3HW: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, patches, width) to add to the features of N = B V F images, square and on the scale 0..1; 0 where nothing is known."""
        depth_NGG = inputs["depth_BVFGG"].flatten(0, 2)
        camera_N4 = inputs["camera_BV4"].flatten(0, 1).repeat_interleave(inputs["depth_BVFGG"].shape[2], dim=0)
        if self.estimator is not None:
            given_N11 = depth_NGG.isfinite().flatten(1).any(1)[:, None, None]
            depth_NGG = torch.where(given_N11, depth_NGG, self._estimate(images_N3HW, dtype))
        point_NPJ3, known_NP = back_project(depth_NGG, camera_N4, self.config.points)
        encoded = self.encode(point_NPJ3.flatten(2)).to(dtype)
        return self.head(encoded) * known_NP[..., None]

    def encode(self, xyz_NPC: Tensor) -> Tensor:
        """Coordinates (x, y, z, x, y, z, ...) -> for each: itself, its sines, its cosines."""
        centre_C = xyz_NPC.new_tensor(CENTRE_M).repeat(xyz_NPC.shape[-1] // 3)
        normal = ((xyz_NPC - centre_C) / SCALE_M)[..., None]
        waves = normal * self.frequency_K.to(normal.dtype)
        return torch.cat([normal, waves.sin(), waves.cos()], dim=-1).flatten(-2)

    @torch.no_grad()
    def _estimate(self, images_N3HW: Tensor, dtype: torch.dtype) -> Tensor:
        """By the library's ZoeDepth, on images with a reflected border, which is cut off again."""
        assert self.estimator is not None
        height, width = images_N3HW.shape[-2:]
        border = min(BORDER, height - 1, width - 1)
        pixels = F.pad(images_N3HW.float(), (border,) * 4, mode="reflect")
        pixels = F.interpolate(pixels, size=(ESTIMATOR_SIDE, ESTIMATOR_SIDE), mode="bicubic", align_corners=True)
        # One by one: its heads for indoors and outdoors are chosen by a vote over the batch.
        each = ((pixels - 0.5) / 0.5).to(dtype).split(1)
        depth = torch.cat([self.estimator(pixel_values=image).predicted_depth for image in each]).float()[:, None]
        size = (height + 2 * border, width + 2 * border)
        depth = F.interpolate(depth, size=size, mode="bicubic", align_corners=True)[..., border:-border, border:-border]
        return F.adaptive_avg_pool2d(depth, self.side * self.config.points)[:, 0]


def back_project(depth_NGG: Tensor, camera_N4: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Metres over a grid of points, `points` x `points` in a patch -> (points of each patch (N, P, J, 3), which patches are known (N, P)).

    A point without a depth lies where its patch does on average; a patch without any, or an image without intrinsics, is unknown.
    """
    N, G, _ = depth_NGG.shape
    centre_G = (torch.arange(G, device=depth_NGG.device) + 0.5) / G
    fx, fy, cx, cy = camera_N4.float().nan_to_num(1.0)[:, :, None, None].unbind(1)
    patches = lambda grid: grid.view(N, G // points, points, G // points, points).transpose(2, 3).reshape(N, -1, points**2)  # noqa: E731
    depth_NPJ = patches(depth_NGG.float())
    seen_NPJ = depth_NPJ.isfinite() & (depth_NPJ > 0)
    count_NP = seen_NPJ.sum(-1)
    mean_NP = torch.where(seen_NPJ, depth_NPJ, 0).sum(-1) / count_NP.clamp(min=1)
    z_NPJ = torch.where(seen_NPJ, depth_NPJ, mean_NP[..., None])
    right = patches(((centre_G[None, None, :] - cx) / fx).expand(N, G, G))
    down = patches(((centre_G[None, :, None] - cy) / fy).expand(N, G, G))
    known_NP = (count_NP > 0) & camera_N4.isfinite().all(1, keepdim=True)
    return torch.stack([right * z_NPJ, down * z_NPJ, z_NPJ], dim=-1), known_NP


def _mean_known(depth_FHW: Tensor, grid: int) -> Tensor:
    """(F, H, W) -> (F, G, G): the mean of the known depths in each cell, NaN where there is none."""
    known = depth_FHW.isfinite() & (depth_FHW > 0)
    total = F.adaptive_avg_pool2d(torch.where(known, depth_FHW, 0)[:, None], grid)[:, 0]
    share = F.adaptive_avg_pool2d(known.float()[:, None], grid)[:, 0]
    return torch.where(share > 0, total / share.clamp(min=1e-6), torch.nan)


def _relative(intrinsics: np.ndarray, height: int, width: int) -> Tensor:
    fx, fy, cx, cy = (float(intrinsics[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return torch.tensor([fx / width, fy / height, cx / width, cy / height])


def _estimator(library: Mapping[str, Any]) -> Any:
    config = library_config(library)
    if config.model_type != "zoedepth":
        raise UserError(f"depth is estimated by the library's zoedepth, not by '{config.model_type}'")
    from transformers import ZoeDepthForDepthEstimation

    return ZoeDepthForDepthEstimation(config).eval().requires_grad_(False)
