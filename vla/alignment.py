"""Words and goal images that ask for the same thing are pulled together (MDT, Reuss et al. 2024: contrastive latent alignment).

A sample is seen twice: told by words, and by an image of how the scene looks a while later (vla/goals.py). The mean states of both
prefixes, through one map, are each other's positives, and those of the batch's other pairs the negatives: CLIP's symmetric cross-entropy
over cosines (`mdt/models/mdt_agent.py`, `clip_auxiliary_loss`; weight 1, temperature 0.07, learned). Deviation: states are averaged, where
MDT takes a token of its own or pools by attention. Unlike every other part of a loss, a sample's share depends on its neighbours, and so on
how a batch is cut into micro-batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Hidden
from vla.types import WeightedSum


@dataclass(frozen=True)
class Align:
    """`scale`: of this part of the loss. `width`: of the latents that are compared. `temperature`: at the start."""

    kind: ClassVar[str] = "align.contrastive"
    scale: float = 1.0
    width: int = 512
    temperature: float = 0.07

    def build(self, width: int) -> Alignment:
        return Alignment(self, width)


class Alignment(nn.Module):
    """One map for both prefixes and a learned temperature; its output is the loss."""

    def __init__(self, config: Align, width: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(width, config.width)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1 / config.temperature)))

    def forward(self, told: Hidden, otherwise: Hidden, by_goal_B: Tensor, paired_B: Tensor) -> WeightedSum:
        """Two prefixes of each row, the first told by words, or by its goal where `by_goal_B`. Rows without a pair take no part."""
        told_BC, other_BC = (F.normalize(self.project(_mean(hidden)).float(), dim=-1) for hidden in (told, otherwise))
        goal_BC, word_BC = (torch.where(way_B[:, None], told_BC, other_BC) for way_B in (by_goal_B, ~by_goal_B))
        logit_BB = goal_BC @ word_BC.T * self.log_scale.exp()
        row_B = torch.arange(len(logit_BB), device=logit_BB.device)
        # A column without a pair is no negative; on the diagonal it stays, or its own row would be empty.
        left_out_BB = ~paired_B[None, :] & (row_B[:, None] != row_B[None, :])
        both = [F.cross_entropy(logits.masked_fill(left_out_BB, -torch.inf), row_B, reduction="none") for logits in (logit_BB, logit_BB.T)]
        return WeightedSum(((both[0] + both[1]) / 2 * paired_B).sum(), paired_B.sum().float())


def _mean(hidden: Hidden) -> Tensor:
    valid_BS1 = hidden.tokens.valid_BS[..., None].to(hidden.x_BSD.dtype)
    return (hidden.x_BSD * valid_BS1).sum(1) / valid_BS1.sum(1).clamp(min=1)
