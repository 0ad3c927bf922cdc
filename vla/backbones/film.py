"""FiLM in vision towers (Perez et al. 2018; OpenVLA-OFT, Kim et al. 2025): what is asked scales and shifts what is seen.

In each block of a timm tower, between attention and MLP, x becomes (1 + scale(words)) x + shift(words), every patch alike; `words` is
the mean embedding of the prompt's words (`prismatic/models/film_vit_wrapper.py` there). The towers themselves stay as they are.
Deviations: the maps start at zero, so that a pretrained tower starts as it was, where OFT's start as torch's linear maps do; padding in a
batch is not averaged in, where OFT's training does; the towers' last blocks are unused here and there, and only OFT's have maps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class FiLM:
    """`also`: ids averaged in beside the prompt's (OFT: 2, the end of the sequence, which follows its chunk)."""

    kind: ClassVar[str] = "film"
    also: tuple[int, ...] = ()


class Modulation(nn.Module):
    """A block's scale and shift."""

    def __init__(self, language_width: int, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Linear(language_width, width), nn.Linear(language_width, width)
        for linear in (self.scale, self.shift):
            nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)

    def forward(self, x_NPD: Tensor, words_ND: Tensor) -> Tensor:
        """Patches (N, P, D) of images and the mean state (N, D) of their instruction -> (N, P, D); at first as they came."""
        return x_NPD * (1 + self.scale(words_ND)[:, None]) + self.shift(words_ND)[:, None]


def modulations(tower: Any, language_width: int) -> nn.ModuleList:
    """One for each block of a timm tower."""
    return nn.ModuleList(Modulation(language_width, tower.embed_dim) for _ in tower.blocks)


def modulated(tower: Any, film: Iterable[nn.Module], images_N3HW: Tensor, words_ND: Tensor) -> Tensor:
    """Features after the last block, without class and register tokens: the tower's own steps, with FiLM inside each block."""
    x_NPD = tower.norm_pre(tower.patch_drop(tower._pos_embed(tower.patch_embed(images_N3HW))))
    for block, modulation in zip(tower.blocks, film, strict=True):
        run = partial(_block, block, modulation)
        x_NPD = checkpoint(run, x_NPD, words_ND, use_reentrant=False) if tower.grad_checkpointing else run(x_NPD, words_ND)
    return x_NPD[:, tower.num_prefix_tokens :]


def _block(block: Any, modulation: nn.Module, x_NPD: Tensor, words_ND: Tensor) -> Tensor:
    x_NPD = x_NPD + block.drop_path1(block.ls1(block.attn(block.norm1(x_NPD))))
    x_NPD = modulation(x_NPD, words_ND)
    return x_NPD + block.drop_path2(block.ls2(block.mlp(block.norm2(x_NPD))))
