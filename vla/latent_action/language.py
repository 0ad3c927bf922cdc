"""The instruction as a vector, for the first of UniVLA's two stages."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Words:
    """Mean of learned embeddings of hashed words; an instruction without words is the zero vector.

    UniVLA takes a frozen T5. What matters here is only which instruction it is, and that the forward decoder is told: then no code
    has to say what the instruction says already.
    """

    kind: ClassVar[str] = "latent_action.language.words"
    width: int = 32
    buckets: int = 4096
    max_words: int = 24

    def build(self) -> Instruction:
        return Instruction(self)


class Instruction(nn.Module):
    """`ids(text)` on the loader's side; `forward(word_BL)` -> (B, width), 0 pads."""

    def __init__(self, config: Words) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.embedding = nn.Embedding(config.buckets, config.width, padding_idx=0)

    def ids(self, texts: list[str]) -> Tensor:
        """int64 (B, max_words): hashed, so that there is no vocabulary to ship."""
        word_BL = torch.zeros(len(texts), self.config.max_words, dtype=torch.int64)
        for row, text in enumerate(texts):
            found = re.findall(r"[a-z0-9]+", text.lower())[: self.config.max_words]
            ids = [zlib.crc32(word.encode()) % (self.config.buckets - 1) + 1 for word in found]
            word_BL[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return word_BL

    def forward(self, word_BL: Tensor) -> Tensor:
        return self.embedding(word_BL).sum(1) / (word_BL > 0).sum(1, keepdim=True).clamp(min=1)
