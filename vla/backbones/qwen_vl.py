"""Qwen2.5-VL (Bai et al. 2025) and Qwen3-VL (2025): a tower for any size of image, multi-axis rotary positions, a Qwen language model.

An image keeps its proportions and becomes as many tokens as its area asks for (`Pixels.least_pixels`, `most_pixels`). Each token has
three positions (time, height, width), equal for words; `position_BS` is the largest of them and `axis_offset_BS3` what to add to it for
each axis, so that a token without extras is a word. Qwen3-VL adds features of earlier tower layers to the first language layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from vla.backbones.base import Tokens
from vla.backbones.images import Pixels, area_within, by_size, normalize, resize
from vla.backbones.library import LibraryBackbone, LibraryConfig
from vla.backbones.parse import library_model, own_head
from vla.backbones.prompts import Prompt
from vla.errors import UserError
from vla.kept import Kept

IMAGE = "<|vision_start|>{patches}<|vision_end|>"
TURN = "<|im_start|>user\n{images}{instruction}<|im_end|>\n<|im_start|>assistant\n"
PROMPT = Prompt(TURN, image=IMAGE)
SYSTEM_PROMPT = Prompt(f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{TURN}", image=IMAGE)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Qwen25VL(LibraryConfig):
    """See `LibraryConfig`. The prompt is the library's chat template with its default system line; normalised as CLIP does."""

    kind: ClassVar[str] = "backbone.qwen2_5_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    library_class: ClassVar[str] = "Qwen2_5_VLModel"
    prompt: Prompt = SYSTEM_PROMPT
    pixels: Pixels = field(default_factory=lambda: Pixels(CLIP_MEAN, CLIP_STD, least_pixels=56 * 56, most_pixels=28 * 28 * 1280))

    def build(self) -> QwenVLBackbone:
        return QwenVLBackbone(self)


@dataclass(frozen=True)
class Qwen3VL(LibraryConfig):
    """See `LibraryConfig`. The prompt is the library's chat template, which has no system line."""

    kind: ClassVar[str] = "backbone.qwen3_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    library_class: ClassVar[str] = "Qwen3VLModel"
    prompt: Prompt = PROMPT
    pixels: Pixels = field(default_factory=lambda: Pixels(least_pixels=256 * 256, most_pixels=4096 * 4096))

    def build(self) -> QwenVLBackbone:
        return QwenVLBackbone(self)


class QwenVLBackbone(LibraryBackbone):
    """The tower, which holds its projector, and the language model of either version; what differs is read from the configuration."""

    library_parts: ClassVar[Mapping[str, str]] = {"vision": "visual", "language": "language_model"}
    published: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("visual.", "model.visual."),
        "language": ("model.language_model.", "model."),
    }

    def _make(self) -> None:
        whole = library_model(self.config)
        self.vision, self.projector, self.language = whole.visual, None, whole.language_model
        self._kept = Kept()
        self.head = own_head(self.config, whole.config)
        tower = self.vision.config
        self.factor = tower.patch_size * tower.spatial_merge_size
        self.deep = len(getattr(tower, "deepstack_visual_indexes", ()))
        if self.deep >= len(self.language.layers):
            raise UserError(f"{self.deep} deep visual features need more than the {len(self.language.layers)} language layers there are")

    def part(self, name: str) -> tuple[nn.Module, ...]:
        """The projector stands inside the tower: the merger, and those of the deep features."""
        if name == "projector":
            return (self.vision.merger, *getattr(self.vision, "deepstack_merger_list", ()))
        return super().part(name)

    def patches(self, height: int, width: int) -> int:
        """One token for `spatial_merge_size` squared patches."""
        rows, columns = self._grid(height, width)
        return rows * columns

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image."""
        pixels = self.config.pixels
        fitted = area_within(height, width, self.factor, pixels.least_pixels, pixels.most_pixels)
        return fitted[0] // self.factor, fitted[1] // self.factor

    def _see(self, inputs: Mapping[str, Tensor], longest: int) -> tuple[Tensor, dict[str, Tensor]]:
        merge = self.vision.config.spatial_merge_size

        def prepare(images: Tensor) -> Tensor:
            rows, columns = self._grid(*images.shape[-2:])
            fitted = resize(images, rows * self.factor, columns * self.factor, self.config.pixels)
            return self._patchify(normalize(fitted, self.config.pixels, self.dtype))

        patches = by_size(inputs, prepare)
        sizes = self._sizes(inputs, len(patches))
        grids = [(1, rows * merge, columns * merge) for rows, columns in (self._grid(*size) for size in sizes)]
        laid_out = self._kept.on(patches[0].device, tuple(grids), lambda: self._laid_out(grids), here=("cu_seqlens", "cu_window_seqlens"))
        out = self.vision(torch.cat(patches), **laid_out)
        counts = [rows * columns // merge**2 for _, rows, columns in grids]
        deep = {"deep_BSE": _filled_up(torch.cat(out.deepstack_features, dim=-1), counts, longest)} if self.deep else {}
        return _filled_up(out.pooler_output, counts, longest), deep

    def _laid_out(self, grids: Sequence[tuple[int, int, int]]) -> dict[str, Tensor]:
        """What the tower computes from the sizes of the images alone, by the library's own functions: else it would do so in every call,
        and in each layer wait for a GPU to say how long the images are. An older library has no such functions, and does."""
        grid_thw = torch.tensor(grids)
        found = {"grid_thw": grid_thw}
        try:
            from transformers import vision_utils as library
        except ImportError:
            return found
        tower, merge = self.vision, self.vision.config.spatial_merge_size
        found["cu_seqlens"] = library.get_vision_cu_seqlens(grid_thw)
        found["position_ids"] = library.get_vision_position_ids(grid_thw, merge)
        if hasattr(tower, "window_size"):
            index, ends = library.get_vision_window_index(grid_thw, merge, tower.window_size, tower.patch_size)
            found |= {"window_index": index, "cu_window_seqlens": ends}
        if hasattr(tower, "num_grid_per_side"):
            side, mode, corners = tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners
            index, weight = library.get_vision_interpolation_indices_and_weights(grid_thw, side, mode, corners, merge)
            found |= {"interp_indices": index, "interp_weights": weight}
        return found

    def _sizes(self, inputs: Mapping[str, Tensor], count: int) -> list[tuple[int, int]]:
        if "image_size_BV2" not in inputs:
            return [tuple(inputs["image_BVFHW3"].shape[3:5])] * count
        frames = inputs["image_BVFHW3"].shape[2]
        return [tuple(size) for size in inputs["image_size_BV2"].flatten(0, 1).tolist() for _ in range(frames)]

    def _patchify(self, images_N3HW: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, patches, 3 * time * patch * patch), neighbours that will be merged next to one another, a still image
        repeated over the time of a patch."""
        tower = self.vision.config
        merge, side, time = tower.spatial_merge_size, tower.patch_size, tower.temporal_patch_size
        N, C, H, W = images_N3HW.shape
        grid = images_N3HW.reshape(N, C, H // side // merge, merge, side, W // side // merge, merge, side)
        grid = grid.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, time, -1, -1)
        return grid.reshape(N, (H // side) * (W // side), C * time * side * side)

    def _place(self, ids: Sequence[int], images: Sequence[tuple[int, int]]) -> dict[str, list]:
        """Words count on along all axes; an image starts at one position and takes as many as its longer side has tokens."""
        axes: list[tuple[int, int, int]] = []
        at = token = 0
        while token < len(ids):
            if ids[token] >= 0:
                axes.append((at, at, at))
                at, token = at + 1, token + 1
                continue
            rows, columns = self._grid(*images[-1 - ids[token]])
            axes += [(at, at + row, at + column) for row in range(rows) for column in range(columns)]
            at, token = at + max(rows, columns), token + rows * columns
        largest = [max(three) for three in axes]
        offset = [[axis - top for axis in three] for three, top in zip(axes, largest, strict=True)]
        return {"position_BS": largest, "axis_offset_BS3": offset}

    def _positions(self, tokens: Tokens) -> Tensor:
        offset = tokens.extras.get("axis_offset_BS3")
        position_3BS = tokens.position_BS[None].expand(3, -1, -1)
        return position_3BS if offset is None else position_3BS + offset.permute(2, 0, 1)

    def _added(self, tokens: Tokens) -> Sequence[Tensor]:
        """Zero where there is no image."""
        deep = tokens.extras.get("deep_BSE")
        return () if deep is None else deep.chunk(self.deep, dim=-1)


def _filled_up(features_ND: Tensor, counts: list[int], longest: int) -> Tensor:
    """Features of all images one after the other -> (images, longest, D)."""
    if set(counts) == {longest}:
        return features_ND.view(len(counts), longest, -1)
    return nn.utils.rnn.pad_sequence(list(features_ND.split(counts)) + [features_ND.new_zeros(longest, features_ND.shape[-1])], True)[:-1]
