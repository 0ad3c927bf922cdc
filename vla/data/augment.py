"""Images changed at random in training, on the device, as a function of a sample's position.

A sample's numbers come from its own noise (`vla/noise.py`), so a resumed run, another world size or another batch draws the same. Each
camera draws its own; all frames of a history are changed alike, since what moves between them is what a policy reads from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vla.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from vla.noise import Noise

Range = tuple[float, float]
_DRAWS = 10
_LUMA = (0.299, 0.587, 0.114)  # BT.601, as PIL and torchvision turn colours grey


@dataclass(frozen=True)
class Augment:
    """What may happen to an image, in this order; each range is drawn from evenly.

    `crop_area`: share of the image that is kept, and scaled to its size again; `crop_ratio`: width to height of it, against the image's;
    `rotate_deg`: to either side, about the middle. `brightness`: factor, and `brightness_shift`: to either side, on the scale 0..1;
    `contrast`: factor about the mean grey; `saturation`: factor about each pixel's grey; `hue`: share of the circle, to either side.
    `steady`: camera roles that are neither cropped nor rotated: what a wrist camera shows follows from where the hand is.

    Where a rotation reaches out of the image, its edge goes on (the published code shows black there).
    """

    crop_area: Range = (1.0, 1.0)
    crop_ratio: Range = (1.0, 1.0)
    rotate_deg: float = 0.0
    brightness: Range = (1.0, 1.0)
    brightness_shift: float = 0.0
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue: float = 0.0
    steady: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("crop_area", "crop_ratio", "brightness", "contrast", "saturation"):
            low, high = getattr(self, name)
            lowest = 0.0 if name in ("brightness", "contrast", "saturation") else 1e-3
            if not lowest <= low <= high < math.inf or (name == "crop_area" and high > 1):
                raise UserError(
                    f"augment: {name} {(low, high)} must be (low, high){', at most 1' if name == 'crop_area' else ', positive'}"
                )
        for name, most in (("rotate_deg", 180.0), ("brightness_shift", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"augment: {name} {getattr(self, name)} must be from 0 to {most:g}")

    @property
    def moves(self) -> bool:
        """Whether anything is cropped or rotated."""
        return (self.crop_area, self.crop_ratio, self.rotate_deg) != ((1.0, 1.0), (1.0, 1.0), 0.0)

    @property
    def colours(self) -> bool:
        factors = (self.brightness, self.contrast, self.saturation)
        return factors != ((1.0, 1.0),) * 3 or (self.brightness_shift, self.hue) != (0.0, 0.0)

    def moved(self, cameras: Sequence[tuple[str, ...]], views: int, slots: tuple[str, ...] = ()) -> Tensor:
        """bool (robots, views): which views may be cropped and rotated. `cameras`: each robot's roles in the order of its views; `slots`:
        the roles in their order where the backbone gives each a fixed place."""
        import torch

        rows = [slots or roles for roles in cameras]
        return torch.tensor([[view >= len(row) or row[view] not in self.steady for view in range(views)] for row in rows], dtype=torch.bool)

    def __call__(self, image_BVFHW3: Tensor, noise: Noise, moved_BV: Tensor | None = None, size_BV2: Tensor | None = None) -> Tensor:
        """uint8 -> uint8 of the same shape and device. `moved_BV`: bool, False where a view is neither cropped nor rotated; `size_BV2`:
        (height, width) of images that are smaller than the tensor and stand in its upper left corner."""
        import torch

        if not (self.moves or self.colours):
            return image_BVFHW3
        V = image_BVFHW3.shape[1]
        draw_BVN = noise.uniform("augment", V, _DRAWS)
        out = torch.empty_like(image_BVFHW3)
        for view in range(V):  # one at a time: in float32 the images of all views would take four times their memory at once
            moved_B = None if moved_BV is None else moved_BV[:, view]
            size_B2 = None if size_BV2 is None else size_BV2[:, view]
            out[:, view] = self._view(image_BVFHW3[:, view], draw_BVN[:, view], moved_B, size_B2)
        return out

    def _view(self, image_BFHW3: Tensor, draw_BN: Tensor, moved_B: Tensor | None, size_B2: Tensor | None) -> Tensor:
        import torch

        B, _, H, W, _ = image_BFHW3.shape
        size_B2 = torch.tensor([H, W], device=image_BFHW3.device).expand(B, 2) if size_B2 is None else size_B2.to(image_BFHW3.device)
        image = image_BFHW3.float() / 255
        if self.moves:
            image = self._move(image, draw_BN[:, :5], moved_B, size_B2.float())
        inside_BHW = _inside(size_B2, H, W)
        if self.colours:
            image = self._colour(image, draw_BN[:, 5:], inside_BHW)
        image = (image * 255).round().clamp(0, 255).byte()
        return torch.where(inside_BHW[:, None, :, :, None], image, image_BFHW3)

    def _move(self, image_BFHW3: Tensor, draw_B5: Tensor, moved_B: Tensor | None, size_B2: Tensor) -> Tensor:
        """Crop, scale and rotation as one map from where a pixel is shown to where it is taken from; in pixels: proportions hold."""
        import torch
        from torch.nn.functional import grid_sample

        B, F, H, W, _ = image_BFHW3.shape
        area_B, ratio_B = (_between(draw_B5[:, i], span) for i, span in enumerate((self.crop_area, self.crop_ratio)))
        share_B2 = torch.stack([(area_B / ratio_B).sqrt(), (area_B * ratio_B).sqrt()], -1).clamp(max=1.0)  # height, width
        angle_B = (2 * draw_B5[:, 4] - 1) * math.radians(self.rotate_deg)
        if moved_B is not None:
            still_B = ~moved_B.to(image_BFHW3.device)
            share_B2 = torch.where(still_B[:, None], torch.ones_like(share_B2), share_B2)
            angle_B = torch.where(still_B, torch.zeros_like(angle_B), angle_B)
        half_B2 = size_B2 / 2
        rows = torch.arange(H, device=image_BFHW3.device) + 0.5
        columns = torch.arange(W, device=image_BFHW3.device) + 0.5
        y_BHW = (rows[None, :, None] - half_B2[:, 0, None, None]).expand(B, H, W)
        x_BHW = (columns[None, None, :] - half_B2[:, 1, None, None]).expand(B, H, W)
        cos, sin = angle_B.cos()[:, None, None], angle_B.sin()[:, None, None]
        turned = (sin * x_BHW + cos * y_BHW, cos * x_BHW - sin * y_BHW)
        grid = []
        for axis, length in ((1, W), (0, H)):
            centre_B = half_B2[:, axis] * (1 + (1 - share_B2[:, axis]) * (2 * draw_B5[:, 2 + axis] - 1))
            at = turned[axis] * share_B2[:, axis, None, None] + centre_B[:, None, None]
            at = torch.minimum(at.clamp(min=0.5), size_B2[:, axis, None, None] - 0.5)  # beyond the image its edge goes on
            grid.append(at / length * 2 - 1)
        flat_B3FHW = image_BFHW3.permute(0, 1, 4, 2, 3).reshape(B, F * 3, H, W)
        moved = grid_sample(flat_B3FHW, torch.stack(grid, -1), mode="bilinear", padding_mode="border", align_corners=False)
        return moved.reshape(B, F, 3, H, W).permute(0, 1, 3, 4, 2)

    def _colour(self, image_BFHW3: Tensor, draw_B5: Tensor, inside_BHW: Tensor) -> Tensor:
        def per_image(value_B: Tensor) -> Tensor:
            return value_B[:, None, None, None, None]

        image = image_BFHW3 * per_image(_between(draw_B5[:, 0], self.brightness))
        image = (image + per_image((2 * draw_B5[:, 1] - 1) * self.brightness_shift)).clamp(0, 1)
        mask = inside_BHW[:, None, :, :, None]
        count_B = mask.sum((1, 2, 3, 4)) * image.shape[1]
        mean_B = (_grey(image) * mask).sum((1, 2, 3, 4)) / count_B  # over all frames: they are changed alike
        image = _blend(image, per_image(mean_B), per_image(_between(draw_B5[:, 2], self.contrast)))
        image = _blend(image, _grey(image), per_image(_between(draw_B5[:, 3], self.saturation)))
        return image if self.hue == 0 else _turn_hue(image, per_image((2 * draw_B5[:, 4] - 1) * self.hue))


WRISTS = ("wrist", "wrist_left", "wrist_right")
"""The camera roles that the published presets leave in place."""

PI0 = Augment(
    crop_area=(0.95**2, 0.95**2),
    rotate_deg=5.0,
    brightness=(0.7, 1.3),
    contrast=(0.6, 1.4),
    saturation=(0.5, 1.5),
    steady=WRISTS,
)
"""pi0: crop 0.95 of each side, +-5 degrees, jitter 0.3 / 0.4 / 0.5; wrist cameras are not moved. Physical-Intelligence/openpi,
src/openpi/models_pytorch/preprocessing_pytorch.py (there all samples of a batch share a draw; here each has its own)."""

OPENVLA = Augment(crop_area=(0.9, 0.9), brightness_shift=0.2, contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=0.05)
"""OpenVLA: openvla/openvla, prismatic/vla/datasets/datasets.py (`image_augment_kwargs`). TensorFlow's contrast is about the mean of each
colour, ours about the mean grey."""

OCTO = Augment(
    crop_area=(0.8, 1.0),
    crop_ratio=(0.9, 1.1),
    brightness_shift=0.1,
    contrast=(0.9, 1.1),
    saturation=(0.9, 1.1),
    hue=0.05,
    steady=WRISTS,
)
"""Octo: octo-models/octo, scripts/configs/octo_pretrain_config.py; wrist cameras are not cropped."""


def _between(draw_B: Tensor, span: Range) -> Tensor:
    return span[0] + (span[1] - span[0]) * draw_B


def _inside(size_B2: Tensor, H: int, W: int) -> Tensor:
    """bool (B, H, W): where the image is, in a tensor that may be larger."""
    import torch

    rows, columns = torch.arange(H, device=size_B2.device), torch.arange(W, device=size_B2.device)
    return (rows[None, :, None] < size_B2[:, 0, None, None]) & (columns[None, None, :] < size_B2[:, 1, None, None])


def _grey(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(-1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[..., None]


def _blend(image: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return (towards + (image - towards) * factor).clamp(0, 1)


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Through HSV and back, with the hue turned by a share of the circle (Smith 1978; colorsys)."""
    import torch

    high, low = image.amax(-1), image.amin(-1)
    spread = (high - low).clamp(min=1e-8)
    red, green, blue = image.unbind(-1)
    sector = torch.where(
        high == red, (green - blue) / spread, torch.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread)
    )
    hue = (sector / 6 + turn[..., 0]) % 1.0
    channels = []
    for offset in (5, 3, 1):  # red, green and blue as functions of the hue alone
        k = (offset + hue * 6) % 6
        channels.append(high - (high - low) * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, -1)
