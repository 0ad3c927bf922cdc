"""Latent actions as the policy's language, and a light readout per robot (UniVLA, Bu et al. 2025; LAPA, Ye et al. 2024).

N queries after the prefix predict the codes that a latent-action model gave to the change of view (cross-entropy; any video has such
labels). The readout pools prefix and latent states by attention, one query per action step, into a robot's actions (L1); only
samples with action labels train it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Backbone, Hidden, Tokens, suffix_tokens
from vla.bank import Bank
from vla.decoders.base import ActionDecoder, make_loss
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target


@dataclass(frozen=True)
class LatentActions:
    """`codes`: latent actions per chunk, `vocabulary`: entries of the codebook; as in the model that labelled the data.
    `readout_width`: of the attention pooling, 0 for the backbone's own (UniVLA: 512 beside 4096)."""

    kind: ClassVar[str] = "decoder.latent"
    codes: int = 4
    vocabulary: int = 16
    heads: int = 4
    readout_depth: int = 2
    latent_scale: float = 0.1
    readout_width: int = 0

    def build(self, width: int, roster: Roster) -> LatentDecoder:
        return LatentDecoder(self, width, roster)


class LatentDecoder(ActionDecoder):
    """Queries for codes inside the backbone; attention pooling to actions after it."""

    def __init__(self, config: LatentActions, width: int, roster: Roster) -> None:
        super().__init__()
        self.config, self.latent_codes = config, config.codes
        self.latent_ND = nn.Parameter(torch.randn(config.codes, width) * 0.5)
        self.head = nn.Linear(width, config.vocabulary)
        self.roster_axes = {"step_TD": ("T", None)}
        inner = config.readout_width or width
        self.step_TD = nn.Parameter(torch.randn(roster.horizon, inner) * 0.5)
        self.readout = nn.ModuleList(_Pool(inner, width, config.heads) for _ in range(config.readout_depth))
        self.norm = nn.RMSNorm(inner, eps=1e-6)
        self.out = Bank(len(roster), inner, roster.action_width, axes=(None, "A"))

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {
            "l1": target.label_BTA.sum().float(),
            "latent": target.has_latent_B.sum().float() * self.config.codes,
        }

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Codes by cross-entropy wherever there are some, actions by L1 wherever they are labelled."""
        hidden = self.think(backbone, prefix)
        pred_BTA, logits_BNC = self.read(hidden, target.spec), self.head(hidden.last(self.config.codes))
        error_BTA = (pred_BTA - target.action_BTA).abs()
        surprise_BN = F.cross_entropy(logits_BNC.float().transpose(1, 2), target.latent_BN, reduction="none")
        parts = {
            "l1": (error_BTA, target.label_BTA),
            "latent": (surprise_BN, target.has_latent_B[:, None].expand_as(surprise_BN)),
        }
        return make_loss(parts, {"l1": 1.0, "latent": self.config.latent_scale})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        return (self.read(self.think(backbone, prefix), like) * like.mask_BTA).float()

    def think(self, backbone: Backbone, prefix: Tokens) -> Hidden:
        """The states of the prefix and, behind it, of the queries for codes."""
        x_BND = self.latent_ND.expand(len(prefix.x_BSD), -1, -1).to(prefix.x_BSD.dtype)
        return backbone(prefix.cat(suffix_tokens(prefix, x_BND, causal=False)))

    def read(self, hidden: Hidden, like: ActionSpec) -> Tensor:
        """The readout: float (B, T, A), not yet masked."""
        x_BTD = self.step_TD.expand(len(hidden.x_BSD), -1, -1).to(hidden.x_BSD.dtype)
        for pool in self.readout:
            x_BTD = pool(x_BTD, hidden.x_BSD, hidden.tokens.valid_BS)
        return self.out(self.norm(x_BTD), like.embodiment_B)


class _Pool(nn.Module):
    """Steps attend to the hidden states, then an MLP; pre-norm, residual."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(context_width, 2 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BTD: Tensor, context_BSD: Tensor, valid_BS: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        k, v = self.kv(context_BSD).chunk(2, dim=-1)
        mask = valid_BS[:, None, None, :]
        pooled = F.scaled_dot_product_attention(split(self.q(self.norm1(x_BTD))), split(k), split(v), attn_mask=mask)
        x_BTD = x_BTD + self.o(pooled.transpose(1, 2).flatten(2))
        return x_BTD + self.mlp(self.norm2(x_BTD))
