"""Latent actions as the policy's language, and a light readout per robot (UniVLA, Bu et al. 2025; LAPA, Ye et al. 2024).

N queries after the prefix predict the codes that a latent-action model gave to the change of view (cross-entropy; any video has such
labels). The readout pools prefix and latent states by attention, one query per action step, into a robot's actions (L1); only
samples with action labels train it. Or it has queries of its own inside the backbone, which see prefix and codes and are seen by neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Backbone, Hidden, Tokens, suffix_tokens
from vla.backbones.remembered import Reads
from vla.bank import Bank
from vla.decoders.base import ActionDecoder, make_loss
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target


@dataclass(frozen=True)
class LatentActions:
    """`codes`: latent actions per chunk, `vocabulary`: entries of the codebook; as in the model that labelled the data.

    `readout_width`: of the attention pooling, 0 for the backbone's own (UniVLA: 512 beside 4096). `taught_scale`: where there are
    few labels, they teach what codes mean for a robot, and that teaches the readout wherever video of it has codes alone; 0 does without.
    `steps_per_query`: 0 pools by attention. Otherwise each of the readout's own queries stands for so many action steps: a token or a few
    more in operations that run anyway, where pooling is operations of its own.
    """

    kind: ClassVar[str] = "decoder.latent"
    codes: int = 4
    vocabulary: int = 16
    heads: int = 4
    readout_depth: int = 2
    latent_scale: float = 0.1
    readout_width: int = 0
    taught_scale: float = 0.0
    steps_per_query: int = 0

    def build(self, width: int, roster: Roster) -> LatentDecoder:
        return LatentDecoder(self, width, roster)


class LatentDecoder(ActionDecoder):
    """Queries for codes inside the backbone; attention pooling to actions after it, or queries for them as well."""

    reads = Reads(layers=())

    def __init__(self, config: LatentActions, width: int, roster: Roster) -> None:
        super().__init__()
        self.config, self.latent_codes = config, config.codes
        self.latent_ND = nn.Parameter(torch.randn(config.codes, width) * 0.5)
        self.head = nn.Linear(width, config.vocabulary)
        self.roster_axes = {} if config.steps_per_query else {"step_TD": ("T", None)}
        inner, pooled = config.readout_width or width, not config.steps_per_query
        self.step_TD = nn.Parameter(torch.randn(roster.horizon, inner) * 0.5) if pooled else None
        self.readout = nn.ModuleList(_Pool(inner, width, config.heads) for _ in range(config.readout_depth if pooled else 0))
        self.norm = nn.RMSNorm(inner, eps=1e-6) if pooled else None  # the backbone's own states are normalised
        self.out = Bank(len(roster), inner, roster.action_width, axes=(None, "A")) if pooled else None
        self.queries = None if pooled else _Queries(config, width, roster)
        self.meaning = _Meaning(config, roster) if config.taught_scale else None
        self.fits = 6144 if self.meaning is not None else 0

    @property
    def draws(self) -> bool:
        return False

    def fit(self, target: Target) -> None:
        if self.meaning is not None:
            self.meaning.fit(target)

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        found = {"l1": target.label_BTA.sum().float(), "latent": target.has_latent_B.sum().float() * self.config.codes}
        if self.meaning is not None:
            found["taught"] = _taught(target).sum().float()
        return found

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Codes by cross-entropy wherever there are some, actions by L1 wherever they are labelled."""
        hidden = self.think(backbone, prefix, target.spec)
        pred_BTA, logits_BNC = self.read(hidden, target.spec), self.head(self.states(hidden, len(prefix)))
        error_BTA = (pred_BTA - target.action_BTA).abs()
        surprise_BN = F.cross_entropy(logits_BNC.float().transpose(1, 2), target.latent_BN, reduction="none")
        parts = {
            "l1": (error_BTA, target.label_BTA),
            "latent": (surprise_BN, target.has_latent_B[:, None].expand_as(surprise_BN)),
        }
        scale = {"l1": 1.0, "latent": self.config.latent_scale}
        if self.meaning is not None:
            meant_BTA, trust_B1A = self.meaning(target)
            parts["taught"] = (trust_B1A * (pred_BTA - meant_BTA).abs(), _taught(target))
            scale["taught"] = self.config.taught_scale
        return make_loss(parts, scale)

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        return (self.read(self.think(backbone, prefix, like), like) * like.mask_BTA).float()

    def think(self, backbone: Backbone, prefix: Tokens, like: ActionSpec | None = None) -> Hidden:
        """The states of the prefix, of the queries for codes behind it, and, of actions `like` these, of the readout's own behind those.
        The former are the same with the latter and without."""
        queries = None if like is None else self.queries
        asked_SD = self.latent_ND if queries is None else torch.cat([self.latent_ND, queries.query_SD])
        suffix = suffix_tokens(prefix, asked_SD.expand(len(prefix.x_BSD), -1, -1).to(prefix.x_BSD.dtype), causal=False)
        if queries is not None:  # which codes do not see
            behind_S = torch.arange(len(asked_SD), device=asked_SD.device) >= self.config.codes
            suffix = replace(suffix, block_BS=suffix.block_BS + behind_S)
        return backbone(prefix.cat(suffix))

    def states(self, hidden: Hidden, prefix: int) -> Tensor:
        """Of the queries for codes, behind a prefix of so many tokens: (B, N, D)."""
        return hidden.x_BSD[:, prefix : prefix + self.config.codes]

    def read(self, hidden: Hidden, like: ActionSpec) -> Tensor:
        """The readout: float (B, T, A), not yet masked."""
        if self.queries is not None:
            return self.queries(hidden, like.embodiment_B)
        assert self.step_TD is not None and self.norm is not None and self.out is not None
        x_BTD = self.step_TD.expand(len(hidden.x_BSD), -1, -1).to(hidden.x_BSD.dtype)
        for pool in self.readout:
            x_BTD = pool(x_BTD, hidden.x_BSD, hidden.tokens.valid_BS)
        return self.out(self.norm(x_BTD), like.embodiment_B)


class _Queries(nn.Module):
    """The readout's own queries, and the steps that each stands for, by one linear map of the robot's: one product in all."""

    def __init__(self, config: LatentActions, width: int, roster: Roster) -> None:
        super().__init__()
        self.horizon, each = roster.horizon, config.steps_per_query
        self.count = -(-roster.horizon // each)
        self.roster_axes = {"query_SD": ("T", None), "weight_EDKA": ("E", None, None, "A"), "bias_EKA": ("E", None, "A")}
        self.query_SD = nn.Parameter(torch.randn(self.count, width) * 0.5)
        self.weight_EDKA = nn.Parameter(torch.empty(len(roster), width, each, roster.action_width).uniform_(-1, 1) / width**0.5)
        self.bias_EKA = nn.Parameter(torch.zeros(len(roster), each, roster.action_width))

    def forward(self, hidden: Hidden, robot_B: Tensor) -> Tensor:
        """float (B, T, A)."""
        x_BSD = hidden.last(self.count)
        weight_BDO, bias_B1O = self.weight_EDKA[robot_B].flatten(2), self.bias_EKA[robot_B].flatten(1)[:, None]
        found_BSO = torch.baddbmm(bias_B1O.to(x_BSD.dtype), x_BSD, weight_BDO.to(x_BSD.dtype))
        return found_BSO.view(len(x_BSD), -1, self.bias_EKA.shape[-1])[:, : self.horizon]


def _taught(target: Target) -> Tensor:
    """Where codes are all there is: video of a robot, bool (B, T, A)."""
    video_B11 = ~target.label_BTA.any(-1).any(-1)[:, None, None]
    return target.spec.mask_BTA & target.has_latent_B[:, None, None] & video_B11


class _Meaning(nn.Module):
    """Codes -> the actions that go with them (LAPO's decoder of latent actions), and how far to trust that in each number of an action.

    A ridge regression from one-hot codes, robot by robot, on the run's first samples that have codes and labels: it is what it will be
    before the first step, where one that is learned beside the policy teaches it nonsense until then. Trust is the share of the mean
    absolute deviation that codes explain in samples it was not fitted on: a gripper that no code tells of teaches nothing.
    """

    RIDGE, FEWEST = 1.0, 32
    weight_EXTA: Tensor
    usual_ETA: Tensor
    low_EA: Tensor
    high_EA: Tensor
    trust_EA: Tensor

    def __init__(self, config: LatentActions, roster: Roster) -> None:
        super().__init__()
        self.vocabulary, inputs, (E, T, A) = config.vocabulary, config.codes * config.vocabulary, _sizes(roster)
        self.roster_axes = {"weight_EXTA": ("E", None, "T", "A"), "usual_ETA": ("E", "T", "A")}
        self.register_buffer("weight_EXTA", torch.zeros(E, inputs, T, A))
        self.register_buffer("usual_ETA", torch.zeros(E, T, A))
        for name in ("low_EA", "high_EA", "trust_EA"):
            self.register_buffer(name, torch.zeros(E, A))
            self.roster_axes[name] = ("E", "A")

    def fit(self, target: Target) -> None:
        """A robot with fewer samples than `FEWEST` keeps what it has: at first, no trust."""
        for robot in range(len(self.trust_EA)):
            both_B = target.label_BTA.any(-1).any(-1) & target.has_latent_B & (target.spec.embodiment_B == robot)
            if int(both_B.sum()) < self.FEWEST:
                continue
            code_BX, action_BTA = self._onehot(target.latent_BN[both_B]), target.action_BTA[both_B].double()
            exists_BT, label_BTA = target.label_BTA[both_B].any(-1), target.label_BTA[both_B]
            half_B = torch.arange(len(code_BX)) % 2 == 0
            error_BTA = torch.zeros_like(action_BTA)
            for fit_B in (half_B, ~half_B):
                weight_XTA, usual_TA = _ridge(code_BX[fit_B], action_BTA[fit_B], exists_BT[fit_B], self.RIDGE)
                error_BTA[~fit_B] = torch.einsum("bx,xta->bta", code_BX[~fit_B], weight_XTA) + usual_TA - action_BTA[~fit_B]
            weight_XTA, usual_TA = _ridge(code_BX, action_BTA, exists_BT, self.RIDGE)
            labelled_BTA = torch.where(label_BTA, action_BTA, torch.nan)
            plain_BTA = labelled_BTA - labelled_BTA.nanmedian(0).values
            left_A, alone_A = ((x_BTA.abs() * label_BTA).nansum((0, 1)) for x_BTA in (error_BTA, plain_BTA))
            self.weight_EXTA[robot], self.usual_ETA[robot] = weight_XTA.float(), usual_TA.float()
            self.low_EA[robot] = torch.where(label_BTA, action_BTA, 0).amin((0, 1)).float()
            self.high_EA[robot] = torch.where(label_BTA, action_BTA, 0).amax((0, 1)).float()
            self.trust_EA[robot] = (1 - left_A / alone_A.clamp(min=1e-6)).clamp(0, 1).float()

    def forward(self, target: Target) -> tuple[Tensor, Tensor]:
        """The meant actions (B, T, A), within what labels have shown, and the trust in them (B, 1, A)."""
        robot_B = target.spec.embodiment_B
        place_BN = target.latent_BN + self.vocabulary * torch.arange(target.latent_BN.shape[1], device=robot_B.device)
        meant_BTA = self.weight_EXTA[robot_B[:, None], place_BN].sum(1) + self.usual_ETA[robot_B]
        low_B1A, high_B1A, trust_B1A = (bound_EA[robot_B][:, None] for bound_EA in (self.low_EA, self.high_EA, self.trust_EA))
        return meant_BTA.clamp(low_B1A, high_B1A), trust_B1A

    def _onehot(self, code_BN: Tensor) -> Tensor:
        return F.one_hot(code_BN, self.vocabulary).flatten(1).double()


def _sizes(roster: Roster) -> tuple[int, int, int]:
    return len(roster), roster.horizon, roster.action_width


def _ridge(x_BX: Tensor, y_BTA: Tensor, exists_BT: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights (X, T, A) and intercepts (T, A), each step from the rows that have it; zero for a step that none has."""
    X, (_, T, A) = x_BX.shape[1], y_BTA.shape
    weight_XTA, usual_TA = x_BX.new_zeros(X, T, A), x_BX.new_zeros(T, A)
    for step in range(T):
        x_NX, y_NA = x_BX[exists_BT[:, step]], y_BTA[exists_BT[:, step], step]
        if len(x_NX):
            mean_X, mean_A = x_NX.mean(0), y_NA.mean(0)
            centred_NX = x_NX - mean_X
            gram_XX = centred_NX.T @ centred_NX + ridge * torch.eye(X, dtype=x_BX.dtype)
            weight_XA = torch.linalg.solve(gram_XX, centred_NX.T @ (y_NA - mean_A))
            weight_XTA[:, step], usual_TA[step] = weight_XA, mean_A - mean_X @ weight_XA
    return weight_XTA, usual_TA


class _Pool(nn.Module):
    """Steps attend to the hidden states, then an MLP; pre-norm, residual."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(context_width, 2 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BTD: Tensor, context_BSD: Tensor, valid_BS: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        k, v = self.kv(context_BSD).chunk(2, dim=-1)
        mask = valid_BS[:, None, None, :]
        pooled = F.scaled_dot_product_attention(split(self.q(self.norm1(x_BTD))), split(k), split(v), attn_mask=mask)
        x_BTD = x_BTD + self.o(pooled.transpose(1, 2).flatten(2))
        return x_BTD + self.mlp(self.norm2(x_BTD))
