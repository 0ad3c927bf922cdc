"""A vision-language backbone from scratch, for a CPU: light convolutions, one keypoint token per camera, hashed words.

Spatial softmax (vla/backbones/stems.py) turns each feature map into one image coordinate: what a manipulation policy needs most, at one
token per camera. No normalisation layers between convolutions: they cost as much as those on a CPU, and steps per second decide what is
learned; only the maps of keypoints, which are few and small, are standardised (docs/design.md). `stem=ResNet18()` sees as ACT and
Diffusion Policy do.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.adapters import LoRA, inject
from vla.backbones.base import AttentionShape, Backbone, Hidden, Tokens, prefix_tokens
from vla.backbones.images import Shown
from vla.backbones.stems import LightStem, ResNet18
from vla.backbones.transformer import Transformer
from vla.errors import SchemaError, UnknownName
from vla.types import Observation

ROLE_BUCKETS = 64
"""Camera roles are hashed, so that a role no one has named yet has an embedding."""


@dataclass(frozen=True)
class Tiny:
    """Sizes of the tiny backbone. `image_size` is the side it sees; other sizes are resized, square or not. `lora`: adapters on its
    transformer, whose own weights are then frozen (what it sees by is not). `stem`: sees instead of the light convolutions, whose sizes
    are `channels` and `keypoints`. `depth` 0: no transformer, for decoders with one of their own.

    `sharpness`: the map of each keypoint has mean 0 and deviation 1 before its softmax, times this number at first, each map its own.
    None: as it comes, which starts nearly even over the image, so that what is small in it is not found (docs/design.md).
    `stride`: pixels of the image that a cell of those maps is wide; each doubling is one more convolution, of twice as many channels."""

    kind: ClassVar[str] = "backbone.tiny"
    older_files: ClassVar[Mapping[str, object]] = {"sharpness": None}
    width: int = 192
    depth: int = 4
    heads: int = 4
    image_size: int = 64
    channels: int = 32
    keypoints: int = 64
    words: int = 4096
    max_words: int = 24
    lora: LoRA | None = None
    mlp_ratio: float = 4.0
    stem: ResNet18 | None = None
    sharpness: float | None = 2.0
    stride: int = 4

    def build(self) -> TinyBackbone:
        return TinyBackbone(self)


class TinyBackbone(Backbone):
    """Prefix: one token per word, then those of each view and history frame; all see each other (block 0)."""

    def __init__(self, config: Tiny) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.stem = (
            LightStem(config.channels, config.keypoints, config.sharpness, config.stride) if config.stem is None else config.stem.build()
        )
        self.image_in = nn.Linear(self.stem.width, config.width)
        self.word_in = nn.Embedding(config.words, config.width)
        self.role_in = nn.Embedding(ROLE_BUCKETS, config.width)
        self.age_in = nn.Linear(1, config.width, bias=False)
        self.transformer = Transformer(config.width, config.depth, config.heads, config.mlp_ratio)
        for embedding in (self.word_in, self.role_in):
            nn.init.normal_(embedding.weight, std=0.5)
        if config.lora is not None:
            inject(self, config.lora)

    @property
    def dtype(self) -> torch.dtype:
        return self.word_in.weight.dtype

    def part(self, name: str) -> tuple[nn.Module, ...]:
        """The modules of a part that adapters may stand on: what sees has convolutions, and no map of its own."""
        parts = {"vision": (), "projector": (), "language": (self.transformer,)}
        if name not in parts:
            raise UnknownName("part of the tiny backbone", name, parts)
        return parts[name]

    def collate(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """`image_BVFHW3` uint8, `role_BV`, `age_BF` (seconds, <= 0), `word_BL`, `word_valid_BL`; `image_valid_BV` where rows lack views."""
        views = max(len(obs.images) for obs in observations)
        frames = max(len(obs.offsets_s) for obs in observations)
        side = self.config.image_size
        image = np.zeros((len(observations), views, frames, side, side, 3), dtype=np.uint8)
        valid = np.zeros((len(observations), views), dtype=bool)
        role = np.zeros((len(observations), views), dtype=np.int64)
        age = np.zeros((len(observations), frames), dtype=np.float32)
        word = np.zeros((len(observations), self.config.max_words), dtype=np.int64)
        for row, obs in enumerate(observations):
            if len(obs.offsets_s) != frames:
                raise SchemaError("observations of one batch must have the same number of history frames")
            age[row] = obs.offsets_s
            for view, (name, pixels) in enumerate(obs.images.items()):
                image[row, view] = _fit(pixels, side, name)
                valid[row, view], role[row, view] = True, zlib.crc32(name.encode()) % ROLE_BUCKETS
            ids = self.words(obs.instruction)
            word[row, : len(ids)] = ids
        longest = max(1, int((word > 0).sum(1).max(initial=1)))
        word = word[:, :longest]
        return {
            "image_BVFHW3": torch.from_numpy(image),
            **({} if valid.all() else {"image_valid_BV": torch.from_numpy(valid)}),
            "role_BV": torch.from_numpy(role),
            "age_BF": torch.from_numpy(age),
            "word_BL": torch.from_numpy(word),
            "word_valid_BL": torch.from_numpy(word > 0),
        }

    def words(self, text: str) -> list[int]:
        """Ids 1..words-1 of the lower-cased words: hashed, so that there is no vocabulary to ship."""
        found = re.findall(r"[a-z0-9]+", text.lower())[: self.config.max_words]
        return [zlib.crc32(word.encode()) % (self.config.words - 1) + 1 for word in found]

    def embed(self, inputs: Mapping[str, Tensor]) -> Tokens:
        (B, V, Fr), shown = inputs["image_BVFHW3"].shape[:3], Shown.of(inputs)
        image = shown.inputs["image_BVFHW3"]
        pixels = self.stem.laid_out(image.flatten(0, 2).permute(0, 3, 1, 2)).to(self.image_in.weight.dtype).div_(127.5).sub_(1)
        seen = shown.placed(self.image_in(self.stem(pixels)).unflatten(0, (-1, Fr))).unflatten(0, (B, V))
        age_BFD = self.age_in(inputs["age_BF"].to(seen.dtype)[..., None])
        seen = (seen + self.role_in(inputs["role_BV"])[:, :, None, None] + age_BFD[:, None, :, None]).flatten(1, 3)
        there_BV = inputs.get("image_valid_BV", torch.ones_like(inputs["role_BV"], dtype=torch.bool))
        seen_valid = there_BV.repeat_interleave(seen.shape[1] // V, dim=1)
        text = self.word_in(inputs["word_BL"])
        x_BSD = torch.cat([text, seen], dim=1)
        prefix = prefix_tokens(x_BSD, torch.cat([inputs["word_valid_BL"], seen_valid], dim=1))
        image_BS = torch.cat([torch.zeros_like(inputs["word_valid_BL"]), torch.ones_like(seen_valid)], dim=1)
        return replace(prefix, extras={"image_BS": image_BS})

    def forward(self, tokens: Tokens, cache: Hidden | None = None) -> Hidden:
        return self.transformer(tokens, cache)

    def load_pretrained(self) -> list[str]:
        return self.stem.load_pretrained()

    @property
    def attention(self) -> AttentionShape:
        c = self.config
        return AttentionShape(c.depth, c.heads, c.heads, c.width // c.heads, self.transformer.rope_theta)


def _fit(pixels: np.ndarray, side: int, role: str) -> np.ndarray:
    """uint8 (F, H, W, 3) -> (F, side, side, 3). The same code in training and serving, so both see the same tensors."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise SchemaError(f"camera '{role}': images must be uint8 (frames, height, width, 3), not {pixels.dtype} {pixels.shape}")
    if pixels.shape[1:3] == (side, side):
        return pixels
    if not pixels.flags.writeable:  # as shards are read; torch would warn of writing, which nobody does
        pixels = pixels.copy()
    resized = F.interpolate(torch.from_numpy(pixels).permute(0, 3, 1, 2), size=(side, side), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).numpy()
