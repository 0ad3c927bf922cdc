"""SmolVLM2 (Marafioti et al. 2025): SigLIP with shuffled pixels, a linear map, SmolLM2 (a Llama). The backbone of SmolVLA.

One square per image, without splitting into crops: a policy acts on small images, many times a second. Causal blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vla.backbones.images import Pixels, by_size, fit_square
from vla.backbones.library import LibraryBackbone, LibraryConfig
from vla.backbones.parse import library_model, own_head
from vla.backbones.prompts import Prompt

PROMPT = Prompt(
    "<|im_start|>User:{images}{instruction}<end_of_utterance>\nAssistant:",
    image="<fake_token_around_image><global-img>{patches}<fake_token_around_image>",
)


@dataclass(frozen=True)
class SmolVLM(LibraryConfig):
    """See `LibraryConfig`. The prompt is the library's chat template with one turn of the user."""

    kind: ClassVar[str] = "backbone.smolvlm"
    model_types: ClassVar[tuple[str, ...]] = ("smolvlm",)
    library_class: ClassVar[str] = "SmolVLMModel"
    prompt: Prompt = PROMPT
    pixels: Pixels = field(default_factory=lambda: Pixels(filter="lanczos", longest=2048))

    def build(self) -> SmolVLMBackbone:
        return SmolVLMBackbone(self)


class SmolVLMBackbone(LibraryBackbone):
    """SigLIP, patches folded into fewer tokens by the connector, SmolLM2."""

    projector: Any
    library_parts: ClassVar[Mapping[str, str]] = {"vision": "vision_model", "projector": "connector", "language": "text_model"}
    published: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("model.vision_model.",),
        "projector": ("model.connector.",),
        "language": ("model.text_model.",),
    }

    def _make(self) -> None:
        whole = library_model(self.config)
        self.vision, self.projector, self.language = whole.vision_model, whole.connector, whole.text_model
        self.head = own_head(self.config, whole.config)

    def patches(self, height: int, width: int) -> int:
        """The tower's grid, `scale_factor` squared of its patches to a token."""
        side = self.vision.config.image_size // self.vision.config.patch_size
        return side**2 // self.projector.scale_factor**2

    def _see(self, inputs: Mapping[str, Tensor], longest: int) -> tuple[Tensor, dict[str, Tensor]]:
        side, pixels = self.vision.config.image_size, self.config.pixels
        images = torch.stack(by_size(inputs, lambda each: fit_square(each, side, pixels, self.dtype)))
        return self.projector(self._placed(self._tower(images), images, pixels, inputs)), {}

    def _tower(self, images_N3HW: Tensor) -> Tensor:
        """The library's `get_image_features` drops images that are all zero, and its tower asks whether every patch is there. Of whole
        images they are: the tower's parts are called themselves, and nothing is looked at."""
        side = self.vision.config.image_size // self.vision.config.patch_size
        there_NHW = torch.ones(len(images_N3HW), side, side, dtype=torch.bool, device=images_N3HW.device)
        patches_NPD = self.vision.embeddings(pixel_values=images_N3HW, patch_attention_mask=there_NHW)
        return self.vision.post_layernorm(self.vision.encoder(inputs_embeds=patches_NPD).last_hidden_state)

    def _grid3d(self) -> tuple[int, int]:
        return self.vision.config.image_size // self.vision.config.patch_size, self.vision.config.hidden_size
