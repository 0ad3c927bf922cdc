"""What a frame is to the latent-action model: a map of features that the encoder reads, and a map that the forward decoder predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.errors import SchemaError


class Features(nn.Module, ABC):
    """Square maps of a frame. `image_side`: pixels that `forward` takes.

    `channels`, `side`: of the map that `forward` returns. `target_channels`, `target_side`: of the map that `target` returns.
    `predicts_itself`: nothing in them is learned and the target is the map itself, which is then computed once.
    """

    predicts_itself: bool = False

    image_side: int
    channels: int
    side: int
    target_channels: int
    target_side: int

    @abstractmethod
    def forward(self, image_BHW3: Tensor) -> Tensor:
        """uint8 frames of `image_side` -> float (B, channels, side, side)."""

    @abstractmethod
    def target(self, image_BHW3: Tensor) -> Tensor:
        """What the forward decoder predicts: float (B, target_channels, target_side, target_side), constant with respect to every
        parameter. A target that can be learned collapses to a constant, which is easy to predict."""

    def load_pretrained(self) -> None:
        """Puts published weights in, where the configuration names some; called once, when training starts."""


@dataclass(frozen=True)
class Pixels:
    """The pixels themselves, -1..1 (LAPA, Ye et al. 2024). Nothing to learn; also the target, averaged to `target_size`."""

    kind: ClassVar[str] = "latent_action.features.pixels"
    size: int = 32
    target_size: int = 16

    def build(self) -> Features:
        return _Pixels(self.size, self.target_size)


@dataclass(frozen=True)
class TinyConv:
    """One strided convolution, shared by both frames and by encoder and decoder; learned. The target is pixels.

    The stem that learns most per second on a CPU: at 32 px and stride 2, 0.3 million multiply-adds a frame.
    """

    kind: ClassVar[str] = "latent_action.features.tiny_conv"
    size: int = 32
    channels: int = 16
    target_size: int = 16

    def build(self) -> Features:
        return _TinyConv(self.size, self.channels, self.target_size)


class _Pixels(Features):
    def __init__(self, size: int, target_size: int) -> None:
        super().__init__()
        if size % target_size:
            raise SchemaError(f"features: size {size} must be a multiple of target_size {target_size}")
        self.image_side = self.side = size
        self.channels = self.target_channels = 3
        self.target_side = target_size

    def forward(self, image_BHW3: Tensor) -> Tensor:
        return scaled(image_BHW3)

    def target(self, image_BHW3: Tensor) -> Tensor:
        return F.avg_pool2d(scaled(image_BHW3), self.image_side // self.target_side)


class _TinyConv(_Pixels):
    def __init__(self, size: int, channels: int, target_size: int) -> None:
        super().__init__(size, target_size)
        self.channels, self.side = channels, (size + 1) // 2
        self.conv = nn.Conv2d(3, channels, 5, stride=2, padding=2)

    def forward(self, image_BHW3: Tensor) -> Tensor:
        return self.conv(scaled(image_BHW3).contiguous(memory_format=torch.channels_last))


def scaled(image_BHW3: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in -1..1."""
    return image_BHW3.permute(0, 3, 1, 2).float() / 127.5 - 1


def side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """One image as it is; two of one height beside each other."""
    if len({image.shape[0] for image in images}) > 1:
        raise SchemaError(f"views of {' and '.join(str(image.shape[:2]) for image in images)} pixels cannot stand beside each other")
    return images[0] if len(images) == 1 else np.concatenate(images, axis=1)


def fit(images: Sequence[np.ndarray], side: int) -> Tensor:
    """uint8 (H, W, 3) images of any sizes -> uint8 (B, side, side, 3), each independent of its neighbours."""
    out = torch.empty(len(images), side, side, 3, dtype=torch.uint8)
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise SchemaError(f"images must be uint8 (height, width, 3), not {image.dtype} {image.shape}")
        rows_of.setdefault(image.shape, []).append(row)
    for shape, rows in rows_of.items():
        stacked = torch.from_numpy(np.stack([images[row] for row in rows]))
        if shape[:2] != (side, side):
            channels_first = stacked.permute(0, 3, 1, 2)
            stacked = F.interpolate(channels_first, size=(side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        out[rows] = stacked
    return out
