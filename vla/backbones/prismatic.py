"""Prismatic (Karamcheti et al. 2024): one or two timm towers, an MLP, Llama-2. The backbone of OpenVLA, CogACT, UniVLA.

Facts of openvla/openvla, prismatic/extern/hf/{modeling,configuration}_prismatic.py: features of the second-to-last block without norm,
those of two towers side by side; the projector has two layers for one tower, three for two (the first four times as wide); patches stand
right after the beginning-of-sequence token. What the towers have after that block is unused, and removed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.film import FiLM, modulated, modulations
from vla.backbones.images import Pixels, by_size, fit_square
from vla.backbones.library import LibraryBackbone, LibraryConfig, Origin
from vla.backbones.parse import by_value, library_config
from vla.backbones.prompts import Prompt
from vla.errors import UnknownName, UserError
from vla.torchvision_cpu import prepare_torchvision

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENVLA_PROMPT = Prompt("<s>{images}In: What action should the robot take to {instruction}?\nOut:", lower=True, append=(29871,))
"""29871 is Llama's empty piece: training prompts have it before the first action token, so acting ones must."""

TOWERS = {
    "dinov2-vit-l": ("vit_large_patch14_reg4_dinov2.lvd142m",),
    "siglip-vit-so400m": ("vit_so400m_patch14_siglip_224",),
    "siglip-vit-so400m-384px": ("vit_so400m_patch14_siglip_384",),
    "dinosiglip-vit-so-224px": ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"),
    "dinosiglip-vit-so-384px": ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"),
}
"""`vision_backbone_id` of published configurations -> timm models."""
FITS = {"resize-naive": "stretch", "letterbox": "letterbox"}
"""`image_resize_strategy` of published configurations -> `Pixels.fit`."""


@dataclass(frozen=True)
class Prismatic(LibraryConfig):
    """See `LibraryConfig`. `library`: `timm_model_ids`, `image_sizes`, `text_config`, and optionally `timm_overrides` (sizes of towers that
    timm has no name for). `tower_pixels`: one for each tower; (): ImageNet's statistics for DINOv2, 0.5 for others. `film`: language in the
    towers (OFT)."""

    kind: ClassVar[str] = "backbone.prismatic"
    model_types: ClassVar[tuple[str, ...]] = ("prismatic", "openvla")
    prompt: Prompt = OPENVLA_PROMPT
    tower_pixels: tuple[Pixels, ...] = field(default=())
    film: FiLM | None = None

    @classmethod
    def library_of(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Towers by their names in timm, or by Prismatic's one name for them (TOWERS)."""
        towers = data.get("timm_model_ids") or TOWERS.get(str(data.get("vision_backbone_id")))
        if not towers:
            raise UnknownName("Prismatic tower", data.get("vision_backbone_id"), TOWERS)
        text = library_config({"model_type": "llama", **(data.get("text_config") or {})})
        sides = data.get("image_sizes") or [224] * len(towers)
        made = {"model_type": data["model_type"], "timm_model_ids": list(towers), "image_sizes": sides, "text_config": by_value(text)}
        return {**made, "timm_overrides": data["timm_overrides"]} if "timm_overrides" in data else made

    @classmethod
    def pixels_of(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """One for each tower."""
        strategy, default = str(data.get("image_resize_strategy", "letterbox")), cls.default_pixels()
        if strategy not in FITS:
            raise UnknownName("image_resize_strategy", strategy, FITS)
        pairs = zip(data["means"], data["stds"], strict=True)
        return {"tower_pixels": tuple(replace(default, mean=tuple(mean), std=tuple(std), fit=FITS[strategy]) for mean, std in pairs)}

    def build(self) -> PrismaticBackbone:
        return PrismaticBackbone(self)


class PrismaticBackbone(LibraryBackbone):
    """One or two towers of timm whose patches are joined feature by feature, an MLP, Llama 2."""

    config: Prismatic
    projector: _Projector
    published: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("vision_backbone.",),
        "projector": ("projector.",),
        "language": ("language_model.model.",),
    }

    def published_weights(self, origin: Origin) -> dict[str, Tensor]:
        """OpenVLA's layout: names as ours, save for the LayerScale and what was cut away."""
        from safetensors.torch import load_file

        from vla.backbones.pretrained import weights_folder

        found = {}
        renames = {theirs: f"{ours}." for ours, names in self.published.items() for theirs in names} | {"language_model.lm_head.": "head."}
        for file in sorted(weights_folder(origin).glob("*.safetensors")):
            for key, tensor in load_file(file).items():
                for theirs, ours in renames.items():
                    key = key.replace(theirs, ours, 1) if key.startswith(theirs) else key
                found[key.replace(".scale_factor", ".gamma")] = tensor
        return {key: tensor for key, tensor in found.items() if not self._cut_away(key)}

    def _cut_away(self, key: str) -> bool:
        """Whether a published tensor, under our name, belongs to what is unused here."""
        if key.startswith("head."):
            return self.head is None
        match = re.match(r"vision\.(\w+)\.(blocks\.(\d+)|norm|fc_norm|attn_pool)\.", key)
        if not match:
            return False
        tower = getattr(self.vision, match[1], None)
        return tower is not None and (match[3] is None or int(match[3]) == len(tower.blocks))

    def _make(self) -> None:
        prepare_torchvision()
        from transformers import AutoModel

        library = self.config.library
        text = library_config({"model_type": "llama", **library["text_config"]})
        self.vision = _Towers(library)
        towers = zip(TOWER_NAMES, self.vision.towers(), strict=False)
        film = self.config.film
        self.film = None if film is None else nn.ModuleDict({name: modulations(tower, text.hidden_size) for name, tower in towers})
        self.projector = _Projector(self.vision.width, text.hidden_size, fused=len(self.vision.towers()) == 2)
        self.language = AutoModel.from_config(text)
        self.head = None
        if self.config.head:
            self.head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
            nn.init.normal_(self.head.weight, std=text.initializer_range)

    def published_names(self, name: str) -> tuple[str, ...]:
        """LayerScale's `gamma` is a `scale_factor` there: the library renamed what was called so."""
        return tuple(each.replace(".gamma", ".scale_factor") for each in super().published_names(name))

    def cut(self) -> tuple[str, ...]:
        """Each tower's last block and what comes after it: features are those of the block before."""
        towers = zip(TOWER_NAMES, self.vision.towers(), strict=False)
        behind = ((name, (f"blocks.{len(tower.blocks)}.", "norm.", "fc_norm.", "attn_pool.")) for name, tower in towers)
        return tuple(f"vision.{name}.{part}" for name, parts in behind for part in parts)

    def patches(self, height: int, width: int) -> int:
        """The towers' square grid, whatever the image."""
        return self.vision.patches

    def _see(self, inputs: Mapping[str, Tensor], longest: int) -> tuple[Tensor, dict[str, Tensor]]:
        def images(side: int, pixels: Pixels) -> Tensor:
            return torch.stack(by_size(inputs, lambda each: fit_square(each, side, pixels, self.dtype)))

        seen = [images(*each) for each in zip(self.vision.sides, self._tower_pixels(), strict=True)]
        return self.projector(self._placed(self._features(seen, inputs), seen[0], self._tower_pixels()[0], inputs)), {}

    def _features(self, images: list[Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        if self.film is None:
            return self.vision(images)
        words_BD = self._asked(inputs)
        words_ND = words_BD.repeat_interleave(len(images[0]) // len(words_BD), dim=0)
        triples = zip(self.vision.towers(), self.film.values(), images, strict=True)
        return torch.cat([modulated(*triple, words_ND) for triple in triples], dim=-1)

    def _grid3d(self) -> tuple[int, int]:
        return math.isqrt(self.vision.patches), self.vision.width

    def _asked(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, D): the mean embedding of each prompt's words."""
        words_BS = inputs["token_valid_BS"] & (inputs["patch_BS"] < 0)
        assert self.config.film is not None
        also = self.config.film.also
        sum_BD = (self.language.embed_tokens(inputs["token_BS"]) * words_BS[..., None]).sum(1)
        if also:
            sum_BD = sum_BD + self.language.embed_tokens(words_BS.new_tensor(also, dtype=torch.int64)).sum(0)
        return sum_BD / (words_BS.sum(1, keepdim=True) + len(also))

    def _tower_pixels(self) -> tuple[Pixels, ...]:
        if self.config.tower_pixels:
            return self.config.tower_pixels
        fit = self.config.pixels.fit
        names = self.config.library["timm_model_ids"]
        return tuple(Pixels(IMAGENET_MEAN, IMAGENET_STD, fit=fit) if "dinov2" in name else Pixels(fit=fit) for name in names)


TOWER_NAMES = ("featurizer", "fused_featurizer")


class _Towers(nn.Module):
    """Images for each tower -> features of its second-to-last block, side by side: (N, patches, width)."""

    def __init__(self, library: Mapping[str, Any]) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise UserError("Prismatic's towers need timm: pip install 'vla[train]'") from error
        names = library["timm_model_ids"]
        overrides = library.get("timm_overrides") or [{}] * len(names)
        if len(names) not in (1, 2):
            raise UserError(f"a Prismatic model has one or two towers, not {len(names)}")
        self.sides = tuple(library["image_sizes"])
        for attribute, name, side, more in zip(TOWER_NAMES, names, self.sides, overrides, strict=False):
            tower = timm.create_model(name, pretrained=False, num_classes=0, img_size=side, **more)
            setattr(self, attribute, _cut(tower))
        self.width = sum(tower.embed_dim for tower in self.towers())
        counts = {tower.patch_embed.num_patches for tower in self.towers()}
        if len(counts) != 1:
            raise UserError(f"towers of {sorted(counts)} patches cannot stand side by side")
        self.patches = counts.pop()
        self._checkpointing = False

    def towers(self) -> list[Any]:
        return [getattr(self, name) for name in TOWER_NAMES if hasattr(self, name)]

    def forward(self, images: list[Tensor]) -> Tensor:
        # A list of indices: an int would mean "the last n". Class and register tokens are stripped inside.
        pairs = zip(self.towers(), images, strict=True)
        return torch.cat([tower.get_intermediate_layers(each, n=[len(tower.blocks) - 1])[0] for tower, each in pairs], dim=-1)

    @property
    def gradient_checkpointing(self) -> bool:
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        for tower in self.towers():
            tower.set_grad_checkpointing(on)


def _cut(tower: Any) -> Any:
    """Removes the last block and all behind it: parameters that are never used still decay under ZeRO."""
    tower.blocks = tower.blocks[:-1]
    tower.norm, tower.fc_norm, tower.attn_pool, tower.head = nn.Identity(), nn.Identity(), None, nn.Identity()
    return tower


class _Projector(nn.Module):
    def __init__(self, vision_width: int, width: int, fused: bool) -> None:
        super().__init__()
        first = 4 * vision_width if fused else width
        self.fc1 = nn.Linear(vision_width, first)
        self.fc2 = nn.Linear(first, width)
        self.fc3 = nn.Linear(width, width) if fused else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.gelu(self.fc1(x)))
        return x if self.fc3 is None else self.fc3(F.gelu(x))
