"""Features of a pretrained tower, frozen: what a frame shows rather than its pixels (UniVLA: DINOv2). They are also the target.

A configuration builds the tower with fresh weights and no network; `load_pretrained` fetches the published ones once, when training
starts. They are then part of the checkpoint like every other weight.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla.errors import SchemaError, UserError
from vla.latent_action.features import Features
from vla.torchvision_cpu import prepare_torchvision
from vla.types import Observation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TimmTower:
    """Patch features of a vision transformer of timm: DINOv2 ViT-B/14 with registers by default (UniVLA).

    `size`: pixels, a multiple of the patch. `settings`: further arguments of `timm.create_model` (sizes of a tiny one).
    `pretrained`: whether training starts from timm's weights.
    """

    kind: ClassVar[str] = "latent_action.features.timm"
    name: str = "vit_base_patch14_reg4_dinov2.lvd142m"
    size: int = 224
    pretrained: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Features:
        return _TimmTower(self)


@dataclass(frozen=True)
class TransformersTower:
    """Patch features of a vision model of transformers (`Dinov2Model`, `Dinov2WithRegistersModel`, `SiglipVisionModel`, ...).

    `library`: its configuration by value, with `model_type`. `source`: hub id or folder whose weights training starts from, at a
    `revision`; '': fresh ones.
    """

    kind: ClassVar[str] = "latent_action.features.transformers"
    library: Mapping[str, Any]
    source: str = ""
    revision: str = ""
    size: int = 224

    def build(self) -> Features:
        return _TransformersTower(self)


@dataclass(frozen=True)
class PolicyVision:
    """What a policy's backbone makes of an image before its language model: the tokens that it marks as seen.

    `backbone`: its configuration. `source`: folder of a policy's checkpoint whose weights training starts from; '': fresh ones.
    """

    kind: ClassVar[str] = "latent_action.features.policy"
    backbone: Any
    size: int = 64
    camera: str = "third_person"
    source: str = ""

    def build(self) -> Features:
        return _PolicyVision(self)


class FrozenFeatures(Features):
    """A tower in evaluation mode without gradients; features scaled to unit variance over channels, which keeps losses comparable."""

    predicts_itself = True

    def train(self, mode: bool = True) -> FrozenFeatures:
        return super().train(False)

    @torch.no_grad()
    def forward(self, image_BHW3: Tensor) -> Tensor:
        tokens_BSD = self.tokens(image_BHW3)
        tokens_BSD = F.layer_norm(tokens_BSD.float(), tokens_BSD.shape[-1:])
        return tokens_BSD.transpose(1, 2).unflatten(2, (self.side, self.side))

    def target(self, image_BHW3: Tensor) -> Tensor:
        return self(image_BHW3)

    @abstractmethod
    def tokens(self, image_BHW3: Tensor) -> Tensor:
        """uint8 frames -> float (B, side * side, channels), row by row."""

    def _measure(self, image_side: int) -> None:
        """Sizes, from one black image; called last, by the constructors."""
        self.image_side = image_side
        self.requires_grad_(False).train(False)
        _, count, self.channels = self.tokens(torch.zeros(1, image_side, image_side, 3, dtype=torch.uint8)).shape
        self.side = math.isqrt(count)
        if self.side**2 != count:
            raise SchemaError(f"features: {count} patches of an image are no square grid")
        self.target_channels, self.target_side = self.channels, self.side


class _TimmTower(FrozenFeatures):
    def __init__(self, config: TimmTower) -> None:
        super().__init__()
        self.config = config
        self.tower = self._create(pretrained=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self._measure(config.size)

    def load_pretrained(self) -> None:
        if self.config.pretrained:
            self.tower.load_state_dict(self._create(pretrained=True).state_dict())

    def tokens(self, image_BHW3: Tensor) -> Tensor:
        image = (image_BHW3.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.tower.get_intermediate_layers(image, n=1, norm=True)[0]  # class and register tokens are stripped inside

    def _create(self, pretrained: bool) -> Any:
        prepare_torchvision()
        try:
            import timm
        except ImportError as error:
            raise UserError("these features need timm: pip install 'vla[train]'") from error
        return timm.create_model(self.config.name, pretrained=pretrained, num_classes=0, img_size=self.config.size, **self.config.settings)


class _TransformersTower(FrozenFeatures):
    def __init__(self, config: TransformersTower) -> None:
        super().__init__()
        prepare_torchvision()
        from transformers import AutoConfig, AutoModel

        self.config = config
        settings = dict(config.library)
        if "model_type" not in settings:
            raise UserError("features: `library` needs a `model_type`, such as dinov2")
        self.tower = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self._measure(config.size)

    def load_pretrained(self) -> None:
        if self.config.source:
            from transformers import AutoModel

            found = AutoModel.from_pretrained(self.config.source, revision=self.config.revision or None, use_safetensors=True)
            self.tower.load_state_dict(found.state_dict())

    def tokens(self, image_BHW3: Tensor) -> Tensor:
        image = (image_BHW3.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        hidden = self.tower(pixel_values=image).last_hidden_state
        patches = (self.config.size // self.tower.config.patch_size) ** 2
        return hidden[:, hidden.shape[1] - patches :]  # class and register tokens come first


class _PolicyVision(FrozenFeatures):
    def __init__(self, config: PolicyVision) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self._measure(config.size)

    def load_pretrained(self) -> None:
        if not self.config.source:
            return
        from vla.checkpoint import load_checkpoint

        contents, weights = load_checkpoint(self.config.source)
        if contents.model.backbone != self.config.backbone:
            raise UserError(f"{self.config.source} has another backbone than `features.backbone` says: {contents.model.backbone}")
        self.backbone.load_state_dict({k.removeprefix("backbone."): t for k, t in weights.items() if k.startswith("backbone.")})

    def tokens(self, image_BHW3: Tensor) -> Tensor:
        device = next(self.backbone.parameters()).device
        seen = [Observation({self.config.camera: each[None].cpu().numpy()}, np.zeros((1, 0)), "", "") for each in image_BHW3]
        inputs = {name: tensor.to(device) for name, tensor in self.backbone.collate(seen).items()}
        tokens = self.backbone.embed(inputs)
        if "image_BS" not in tokens.extras:
            raise SchemaError(f"the backbone {type(self.backbone).__name__} does not mark its image tokens (`image_BS`)")
        marked_BS = tokens.extras["image_BS"].bool()
        return tokens.x_BSD[marked_BS].unflatten(0, (len(image_BHW3), -1))
