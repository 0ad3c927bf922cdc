"""uint8 images -> what a vision tower takes, in torch: on the device, the same in training and serving.

Numbers are those of the library's image processors: uint8 is resized with antialiasing to uint8, then scaled and normalised. On a CPU torch
does so in whole numbers; elsewhere in floats, which differs by one level of 255 in some pixels, there and here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla.backbones.base import one_of_few
from vla.errors import SchemaError, UnknownName
from vla.types import Observation

FITS = ("stretch", "letterbox", "pad")
FILTERS = ("bicubic", "bilinear", "lanczos")


@dataclass(frozen=True)
class Pixels:
    """How a tower wants its images: `mean` and `std` on the 0..1 scale, the resizing filter, and what happens to other proportions.

    `fit`: `stretch`; `letterbox` makes the image square by a border of the mean's colour, then resizes it; `pad` resizes it, then makes it
    square by a black border (openpi).
    `longest`: first bring the longer side to this length (SmolVLM), 0 for not. `least_pixels`, `most_pixels`: bounds of the area
    where a family keeps proportions (Qwen-VL).
    """

    kind: ClassVar[str] = "pixels"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    filter: str = "bicubic"
    fit: str = "stretch"
    longest: int = 0
    least_pixels: int = 0
    most_pixels: int = 0

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise UnknownName("resizing filter", self.filter, FILTERS)
        if self.fit not in FITS:
            raise UnknownName("fit", self.fit, FITS)


def stack_images(observations: Sequence[Observation], cameras: tuple[str, ...]) -> tuple[dict[str, Tensor], list[list[str]]]:
    """`image_BVFHW3` uint8 at the sizes they came in, and the role of each view, row by row.

    Views stand in the order of the roster `cameras`, in which an unknown role is an error; without a roster, in that of the observation.
    Rows with fewer views are filled up with empty ones at the end. There is always one view: a rank without images must run the tower too.
    Where sizes differ, images stand in the upper left corner and `image_size_BV2` says how large they are. Where rows lack views,
    `image_valid_BV` says which are there.
    """
    frames = len(observations[0].offsets_s)
    for obs in observations:
        if len(obs.offsets_s) != frames:
            raise SchemaError("observations of one batch must have the same number of history frames")
        for role, pixels in obs.images.items():
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or len(pixels) != frames:
                raise SchemaError(f"camera '{role}': images must be uint8 ({frames}, height, width, 3), not {pixels.dtype} {pixels.shape}")
            if cameras and role not in cameras:
                raise UnknownName("camera", role, cameras, "The backbone's roster (`cameras`) lists those it was trained with.")
    roles = [sorted(obs.images, key=cameras.index) if cameras else list(obs.images) for obs in observations]
    sizes = {pixels.shape[1:3] for obs in observations for pixels in obs.images.values()}
    views = max(1, *(len(row) for row in roles))
    height, width = (max((size[axis] for size in sizes), default=32) for axis in (0, 1))
    image = np.zeros((len(observations), views, frames, height, width, 3), dtype=np.uint8)
    size_BV2 = np.full((len(observations), views, 2), (height, width), dtype=np.int64)
    for row, obs in enumerate(observations):
        for view, role in enumerate(roles[row]):
            pixels = obs.images[role]
            image[row, view, :, : pixels.shape[1], : pixels.shape[2]] = pixels
            size_BV2[row, view] = pixels.shape[1:3]
    found = {"image_BVFHW3": torch.from_numpy(image)}
    counts = [len(row) for row in roles]
    if min(counts) < views:
        found["image_valid_BV"] = torch.arange(views) < torch.tensor(counts)[:, None]
    return found | ({"image_size_BV2": torch.from_numpy(size_BV2)} if len(sizes) > 1 else {}), roles


@dataclass(frozen=True)
class Shown:
    """Inputs of a tower with a row for each view that is there, instead of one for each sample: an empty view costs as much as another.

    `inputs`: what has a view axis, as its name says, is (N, 1, ...), all else (N, ...) of the view's sample. `at_N`: which of the B x V
    views they are; None where all are there and `inputs` are as they came. After `at_N` there may be more rows, which stand for nothing.
    """

    inputs: Mapping[str, Tensor]
    at_N: Tensor | None
    views: tuple[int, int]

    @staticmethod
    def of(inputs: Mapping[str, Tensor], few_sizes: bool = False) -> Shown:
        """By `image_valid_BV`, without which all are taken to be there; on a GPU it waits for that. One view at least is there, so that a
        rank without images runs the tower too. `few_sizes`: as many rows as `one_of_few` says."""
        there_BV = inputs.get("image_valid_BV")
        B, V = inputs["image_BVFHW3"].shape[:2]
        if there_BV is None or there_BV.is_meta or bool(there_BV.all()):  # what has no numbers is counted as if all were there
            return Shown(inputs, None, (B, V))
        at_N = there_BV.flatten().nonzero()[:, 0]
        at_N = at_N if len(at_N) else at_N.new_zeros(1)
        wanted = min(one_of_few(len(at_N)), B * V) if few_sizes else len(at_N)
        all_N = F.pad(at_N, (0, wanted - len(at_N)))
        sample_N, view_N = all_N // V, all_N % V
        pick = lambda name, t: t[sample_N, view_N, None] if name.rpartition("_")[2].startswith("BV") else t[sample_N]  # noqa: E731
        return Shown({name: pick(name, tensor) for name, tensor in inputs.items()}, at_N, (B, V))

    def placed(self, features: Tensor) -> Tensor:
        """What a tower made of the rows, (N, ...), in the places of all B V views, (B V, ...); zero where there is none."""
        if self.at_N is None:
            return features
        empty = features.new_zeros(self.views[0] * self.views[1], *features.shape[1:])
        return empty.index_copy(0, self.at_N, features[: len(self.at_N)])


def by_size(inputs: Mapping[str, Tensor], prepare: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`prepare`s each image alone or with others of its size: uint8 (n, 3, H, W) -> (n, ...). Returns one tensor per image, in order."""
    images = inputs["image_BVFHW3"].flatten(0, 2).permute(0, 3, 1, 2)
    if "image_size_BV2" not in inputs:
        return list(prepare(images).unbind(0))
    frames = inputs["image_BVFHW3"].shape[2]
    sizes = [tuple(size) for size in inputs["image_size_BV2"].flatten(0, 1).tolist() for _ in range(frames)]
    found: dict[int, Tensor] = {}
    for height, width in sorted(set(sizes)):
        rows = [index for index, size in enumerate(sizes) if size == (height, width)]
        found |= dict(zip(rows, prepare(images[rows, :, :height, :width]).unbind(0), strict=True))
    return [found[index] for index in range(len(sizes))]


def resize(images_N3HW: Tensor, height: int, width: int, pixels: Pixels) -> Tensor:
    """uint8 -> uint8 of that size."""
    if images_N3HW.shape[-2:] == (height, width):
        return images_N3HW
    on_cpu = images_N3HW.device.type == "cpu"
    mode = pixels.filter
    if mode == "lanczos" and not (on_cpu and _has_lanczos()):
        mode = "bicubic"  # as the library does where there is no Lanczos
    if on_cpu:
        return F.interpolate(images_N3HW, size=(height, width), mode=mode, antialias=True)
    return F.interpolate(images_N3HW.float(), size=(height, width), mode=mode, antialias=True).round().clamp(0, 255).byte()


def normalize(images_N3HW: Tensor, pixels: Pixels, dtype: torch.dtype) -> Tensor:
    """uint8 -> (x / 255 - mean) / std."""
    mean, std = (per_channel(of, images_N3HW.device) for of in (pixels.mean, pixels.std))
    return ((images_N3HW / 255 - mean) / std).to(dtype)


def per_channel(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(3, 1, 1), written on the device number by number: a copy from here would make it wait, and a captured call (vla/capture.py)
    impossible."""
    return torch.stack([torch.full((1, 1), value, device=device, dtype=dtype) for value in values])


def fit_square(images_N3HW: Tensor, side: int, pixels: Pixels, dtype: torch.dtype) -> Tensor:
    """uint8 (N, 3, H, W) -> normalised (N, 3, side, side)."""
    images = images_N3HW
    if pixels.fit == "pad":
        return normalize(resize_and_pad(images, side, pixels), pixels, dtype)
    if pixels.fit == "letterbox":
        images = letterbox(images, pixels)
    if pixels.longest:
        height, width = images.shape[-2:]
        images = resize(images, *longest_edge(height, width, pixels.longest), pixels)
    return normalize(resize(images, side, side, pixels), pixels, dtype)


def letterbox(images_N3HW: Tensor, pixels: Pixels) -> Tensor:
    """A symmetric border of the mean's colour makes the image square (one pixel short where the difference is odd, as Prismatic does)."""
    height, width = images_N3HW.shape[-2:]
    side = max(height, width)
    down, right = (side - height) // 2, (side - width) // 2
    colour = per_channel([int(255 * level) for level in pixels.mean], images_N3HW.device, torch.uint8)
    canvas = colour[None].repeat(len(images_N3HW), 1, height + 2 * down, width + 2 * right)
    canvas[:, :, down : down + height, right : right + width] = images_N3HW
    return canvas


def resize_and_pad(images_N3HW: Tensor, side: int, pixels: Pixels) -> Tensor:
    """The longer side becomes `side`, the rest is black; where the border is odd, its larger half is below or at the right."""
    height, width = images_N3HW.shape[-2:]
    ratio = max(height, width) / side
    new_height, new_width = int(height / ratio), int(width / ratio)
    down, right = (side - new_height) // 2, (side - new_width) // 2
    canvas = images_N3HW.new_zeros(len(images_N3HW), 3, side, side)
    canvas[:, :, down : down + new_height, right : right + new_width] = resize(images_N3HW, new_height, new_width, pixels)
    return canvas


def longest_edge(height: int, width: int, longest: int) -> tuple[int, int]:
    """The size whose longer side is `longest`, even numbers, proportions kept (SmolVLM's processor)."""
    ratio = width / height
    if width >= height:
        new_width, new_height = longest, int(longest / ratio)
        new_height += new_height % 2
    else:
        new_height, new_width = longest, int(longest * ratio)
        new_width += new_width % 2
    return max(new_height, 1), max(new_width, 1)


def area_within(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """Multiples of `factor` near the size, with an area within bounds and proportions as close as that allows (Qwen2-VL, section 2.1)."""
    if max(height, width) > 200 * min(height, width):
        raise SchemaError(f"an image of {height} x {width} is too narrow: proportions over 200 are not supported")
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
    elif rows * columns * factor**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor


def _has_lanczos() -> bool:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 12)
