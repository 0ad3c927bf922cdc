"""Sampling that is pulled towards known actions (Real-Time Chunking, Black et al. 2025, equations 2 to 4).

The denoiser's estimate of the data moves against its error on what is known, through its own derivative (pseudoinverse guidance, Song et
al. 2023), so that the rest of the chunk follows and not only the known part. Their formula is for flows; a noisy sample s data + d eps of
any path, over s + d, is a flow's at time s / (s + d), so that one formula serves all paths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla.diffusion.base import Path, Predict, spread

MOST = 5.0
"""The most that guidance may weigh: the reference code's; near pure noise the formula grows without bound."""


def guided(path: Path, predict: Predict, want_BTA: Tensor, weight_BTA: Tensor, most: float = MOST) -> Predict:
    """`predict`, pulled to `want_BTA` by weights 0..1. The denoiser is differentiated once an evaluation."""

    def pulled(x_BTA: Tensor, t_B: Tensor) -> Tensor:
        with torch.enable_grad():
            x_BTA = x_BTA.detach().requires_grad_()
            data_BTA = path.data(x_BTA, predict(x_BTA, t_B), t_B)
            error_BTA = ((want_BTA - data_BTA) * weight_BTA).detach()
            (slope_BTA,) = torch.autograd.grad((error_BTA * data_BTA).sum(), x_BTA)
        x_BTA, data_BTA = x_BTA.detach(), data_BTA.detach()
        signal, disturbance = (spread(scale, x_BTA) for scale in path.scales(t_B))
        tau = signal / (signal + disturbance)
        # (1 - tau) / (tau r^2) with r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2), their equation 4
        strength = ((tau**2 + (1 - tau) ** 2) / (tau * (1 - tau)).clamp(min=1e-8)).clamp(max=most)
        return path.output(x_BTA, data_BTA + (1 - tau) * strength * (signal + disturbance) * slope_BTA, t_B)

    return pulled
