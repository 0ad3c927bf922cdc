"""PaliGemma 1 and 2 (Beyer et al. 2024; Steiner et al. 2024): SigLIP, a linear map, Gemma. The backbone of pi0 and SpatialVLA.

Images first, then the beginning-of-sequence token and the text; the prefix sees all of itself (block 0). Positions start at 1. Gemma's
embedding module scales words by sqrt(D); image features are used as they are. Gemma 2 caps its attention scores: eager, not sdpa.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vla.backbones.images import by_size, fit_square
from vla.backbones.library import LibraryBackbone, LibraryConfig
from vla.backbones.parse import library_model
from vla.backbones.prompts import Prompt


@dataclass(frozen=True)
class PaliGemma(LibraryConfig):
    """See `LibraryConfig`. The prompt is that of the library's processor."""

    kind: ClassVar[str] = "backbone.paligemma"
    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    library_class: ClassVar[str] = "PaliGemmaModel"
    prompt: Prompt = field(default_factory=lambda: Prompt("{images}<bos>{instruction}\n"))

    def build(self) -> PaliGemmaBackbone:
        return PaliGemmaBackbone(self)


class PaliGemmaBackbone(LibraryBackbone):
    """SigLIP, one linear map, Gemma 1 or 2. The prefix sees itself whole, and positions count from 1."""

    projector: Any

    causal = False
    first_position = 1
    library_parts: ClassVar[Mapping[str, str]] = {
        "vision": "vision_tower",
        "projector": "multi_modal_projector",
        "language": "language_model",
    }
    published: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("vision_tower.vision_model.", "model.vision_tower.vision_model.", "model.vision_tower."),
        "projector": ("multi_modal_projector.", "model.multi_modal_projector."),
        "language": ("language_model.model.", "model.language_model."),
    }

    def _make(self) -> None:
        whole = library_model(self.config)
        self.vision, self.projector, self.language = whole.vision_tower, whole.multi_modal_projector, whole.language_model
        self.head = None  # tied to the embeddings

    def patches(self, height: int, width: int) -> int:
        """The tower's square grid, whatever the image."""
        return (self.vision.config.image_size // self.vision.config.patch_size) ** 2

    def _see(self, inputs: Mapping[str, Tensor], longest: int) -> tuple[Tensor, dict[str, Tensor]]:
        side, pixels = self.vision.config.image_size, self.config.pixels
        images = torch.stack(by_size(inputs, lambda each: fit_square(each, side, pixels, self.dtype)))
        return self.projector(self._placed(self.vision(pixel_values=images).last_hidden_state, images, pixels, inputs)), {}

    def _grid3d(self) -> tuple[int, int]:
        return self.vision.config.image_size // self.vision.config.patch_size, self.vision.config.hidden_size
