"""MLPs of which the noise level chooses a few (MoDE: Mixture-of-Denoising-Experts, Reuss et al. 2024).

The router sees the condition alone, so that all tokens of a noise sample go the same way, and its choice per denoising step is known
before a rollout. A load-balancing loss (Shazeer et al. 2017; Fedus et al. 2021) keeps every expert in use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.errors import UserError


class ExpertMixture(nn.Module):
    """`count` modules made by `make`, of which each group of tokens uses `top_k`, weighted by the router's probabilities."""

    def __init__(self, make: Callable[[], nn.Module], count: int, top_k: int, condition_width: int) -> None:
        super().__init__()
        if not 1 <= top_k <= count:
            raise UserError(f"top_k of a mixture of {count} experts must be in 1..{count}, not {top_k}")
        self.top_k = top_k
        self.experts = nn.ModuleList(make() for _ in range(count))
        self.router = nn.Linear(condition_width, count, bias=False)

    def forward(self, x_BSD: Tensor, condition_BKD: Tensor) -> Tensor:
        """Tokens stand in K equal groups, each with its condition."""
        B, K, _ = condition_BKD.shape
        groups_NSD = x_BSD.reshape(B * K, -1, x_BSD.shape[-1])
        weight_NE = self.weights(condition_BKD).flatten(0, 1).to(x_BSD.dtype)
        out_NSD = torch.zeros_like(groups_NSD)
        for index, expert in enumerate(self.experts):
            rows = weight_NE[:, index].nonzero()[:, 0]  # maybe none: the expert runs all the same, or ZeRO would hang
            out_NSD = out_NSD.index_add(0, rows, expert(groups_NSD[rows]) * weight_NE[rows, index, None, None])
        return out_NSD.view_as(x_BSD)

    def weights(self, condition: Tensor) -> Tensor:
        """(..., D) -> (..., experts): probabilities, zero but for the `top_k` largest, which sum to one if there are several."""
        probability = self._probabilities(condition)
        best, index = probability.topk(self.top_k, dim=-1)
        if self.top_k > 1:  # a single one keeps its probability: divided by itself, the router would learn nothing
            best = best / best.sum(-1, keepdim=True)
        return torch.zeros_like(probability).scatter(-1, index, best)

    def balance(self, condition_ND: Tensor) -> Tensor:
        """experts * sum over experts of (share of the choices) * (mean probability): 1 when balanced, up to `experts`."""
        share_E = (self.weights(condition_ND) > 0).float().mean(0) / self.top_k
        return len(self.experts) * (share_E * self._probabilities(condition_ND).mean(0)).sum()

    def _probabilities(self, condition: Tensor) -> Tensor:
        return F.softmax(self.router(F.silu(condition)).float(), dim=-1)
