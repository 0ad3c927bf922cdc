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

    `readout_width`: of the attention pooling, 0 for the backbone's own (UniVLA: 512 beside 4096). `readout_mlp`: whether an MLP follows
    each pooling; beside a small backbone it costs more than it gives. `taught_scale`: where there are few labels, they teach what codes
    mean for a robot, and that teaches the readout wherever a robot's video has codes alone; 0 does without.
    """

    kind: ClassVar[str] = "decoder.latent"
    codes: int = 4
    vocabulary: int = 16
    heads: int = 4
    readout_depth: int = 2
    latent_scale: float = 0.1
    readout_width: int = 0
    readout_mlp: bool = True
    taught_scale: float = 0.0

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
        self.readout = nn.ModuleList(_Pool(inner, width, config.heads, config.readout_mlp) for _ in range(config.readout_depth))
        self.norm = nn.RMSNorm(inner, eps=1e-6)
        self.out = Bank(len(roster), inner, roster.action_width, axes=(None, "A"))
        self.meaning = _Meaning(config, inner, roster) if config.taught_scale else None

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        found = {"l1": target.label_BTA.sum().float(), "latent": target.has_latent_B.sum().float() * self.config.codes}
        if self.meaning is not None:
            found |= {name: mask_BTA.sum().float() for name, mask_BTA in _taught(target).items()}
        return found

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
        scale = {"l1": 1.0, "latent": self.config.latent_scale}
        if self.meaning is not None:
            masks = _taught(target)
            meant_BTA, trust_BTA, lesson_BTA = self.meaning(target)
            parts |= {"meaning": (lesson_BTA, masks["meaning"]), "taught": (trust_BTA * (pred_BTA - meant_BTA).abs(), masks["taught"])}
            scale |= {"meaning": 1.0, "taught": self.config.taught_scale}
        return make_loss(parts, scale)

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


def _taught(target: Target) -> dict[str, Tensor]:
    """Where labels teach the meaning of codes, and where codes are all there is; bool (B, T, A)."""
    coded_B11 = target.has_latent_B[:, None, None]
    video_B11 = ~target.label_BTA.any(-1).any(-1)[:, None, None]
    return {"meaning": target.label_BTA & coded_B11, "taught": target.spec.mask_BTA & coded_B11 & video_B11}


class _Meaning(nn.Module):
    """Codes -> the actions that go with them (LAPO's decoder of latent actions), and how far to trust that in each number of an action.

    Trust is the share of the mean absolute deviation that codes explain: a gripper that no code tells of teaches nothing.
    """

    STEP = 10.0
    """The deviations are this times a parameter, so that they follow within a hundred optimizer steps."""

    def __init__(self, config: LatentActions, width: int, roster: Roster) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(config.codes, config.vocabulary, width) * 0.3)
        self.roster_axes = {"step_TD": ("T", None), "alone_EA": ("E", "A"), "left_EA": ("E", "A"), "usual_EA": ("E", "A")}
        self.step_TD = nn.Parameter(torch.randn(roster.horizon, width) * 0.3)
        self.hidden = nn.Linear(width, width)
        self.out = Bank(len(roster), width, roster.action_width, axes=(None, "A"))
        self.usual_EA = nn.Parameter(torch.zeros(len(roster), roster.action_width))
        self.alone_EA = nn.Parameter(torch.full((len(roster), roster.action_width), 0.5 / self.STEP))
        self.left_EA = nn.Parameter(torch.full((len(roster), roster.action_width), 0.5 / self.STEP))

    def forward(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """The meant actions, the trust in them (both without gradient), and the error to learn from; each (B, T, A)."""
        robot_B = target.spec.embodiment_B
        code_BD = sum(self.codes[n][target.latent_BN[:, n]] for n in range(len(self.codes)))
        x_BTD = F.gelu(self.hidden(F.gelu(code_BD[:, None] + self.step_TD)))
        meant_BTA = self.out(x_BTD, robot_B)
        error_BTA = (meant_BTA - target.action_BTA).abs()
        plain_BTA = (self.STEP * self.usual_EA[robot_B][:, None] - target.action_BTA).abs()
        left_BA, alone_BA = (self.STEP * deviation[robot_B] for deviation in (self.left_EA, self.alone_EA))
        fit_BTA = (left_BA[:, None] - error_BTA.detach()).square() + (alone_BA[:, None] - plain_BTA.detach()).square()
        trust_BA = (1 - left_BA / alone_BA.clamp(min=1e-3)).clamp(0, 1).detach()
        return meant_BTA.detach(), trust_BA[:, None].expand_as(meant_BTA), error_BTA + plain_BTA + fit_BTA


class _Pool(nn.Module):
    """Steps attend to the hidden states, then an MLP; pre-norm, residual."""

    def __init__(self, width: int, context_width: int, heads: int, mlp: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(context_width, 2 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-6) if mlp else None
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) if mlp else None

    def forward(self, x_BTD: Tensor, context_BSD: Tensor, valid_BS: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        k, v = self.kv(context_BSD).chunk(2, dim=-1)
        mask = valid_BS[:, None, None, :]
        pooled = F.scaled_dot_product_attention(split(self.q(self.norm1(x_BTD))), split(k), split(v), attn_mask=mask)
        x_BTD = x_BTD + self.o(pooled.transpose(1, 2).flatten(2))
        return x_BTD if self.mlp is None or self.norm2 is None else x_BTD + self.mlp(self.norm2(x_BTD))
