"""Several action steps per token: shorter suffixes where neighbouring steps say nearly the same."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class StepFold(nn.Module):
    """T steps <-> ceil(T / n) tokens of width D, by linear maps; n = 1 is the identity and has no parameters.

    `reads`: whether `fold` is used (a decoder that is given noisy actions), beside `unfold`.
    """

    def __init__(self, horizon: int, steps_per_token: int, width: int, reads: bool = False) -> None:
        super().__init__()
        self.horizon, self.steps = horizon, steps_per_token
        self.tokens = -(-horizon // steps_per_token)
        self.inward = nn.Identity() if steps_per_token == 1 or not reads else nn.Linear(steps_per_token * width, width)
        self.outward = nn.Identity() if steps_per_token == 1 else nn.Linear(width, steps_per_token * width)

    def fold(self, x: Tensor) -> Tensor:
        """(..., T, D) -> (..., tokens, D); a last incomplete token is filled with zeros."""
        x = F.pad(x, (0, 0, 0, self.tokens * self.steps - self.horizon))
        return self.inward(x.unflatten(-2, (self.tokens, self.steps)).flatten(-2))

    def unfold(self, x: Tensor) -> Tensor:
        """(..., tokens, D) -> (..., T, D)."""
        return self.outward(x).unflatten(-1, (self.steps, -1)).flatten(-3, -2)[..., : self.horizon, :]

    def valid(self, mask_BTA: Tensor) -> Tensor:
        """bool (B, T, A) -> (B, tokens): tokens with at least one real number."""
        steps_BT = F.pad(mask_BTA.any(-1), (0, self.tokens * self.steps - self.horizon))
        return steps_BT.unflatten(1, (self.tokens, self.steps)).any(-1)
