"""Learned codes: a chunk's features, quantized by residual codebooks over one or several time scales.

`scales=(1, 1)`: two codes a chunk, the second for what the first left over (VQ-BeT, Lee et al. 2024, section 3.2; give the decoder
`offset=True` for its continuous correction). `scales=(1, 2, 4, 8)`: scale by scale, each code of a finer scale for what the coarser
ones left over at its place, all codes of a scale predicted at once (CARP, Gong et al. 2024, after VAR, Tian et al. 2024).

Before a run trains, `fit` trains the autoencoder on its chunks; from then on it is frozen. Round-trip error: what `fit` reaches,
reported by `benchmarks/codecs.py`; there is no bound.

Deviations: time goes into feature places by learned pooling that starts as the lowest frequencies, so that robots of any horizon and width
share a codebook; entries follow moving averages with revival of dead ones instead of k-means restarts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.bank import Bank
from vla.codecs.base import Codec, need_fitted
from vla.codecs.fast import dct_matrix
from vla.codecs.quantizer import VQ
from vla.errors import UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec

FIT_CHUNKS = 4096
MODES = 8


@dataclass(frozen=True)
class VQCodes:
    """`scales`: codes of each level, coarse to fine. `vocabulary`: entries of each level's codebook. `latent`: width of an entry.
    `fit_steps` of `fit_batch` chunks train the autoencoder, at `fit_lr`."""

    kind: ClassVar[str] = "codec.vq"
    scales: tuple[int, ...] = (1, 1)
    vocabulary: int = 16
    latent: int = 8
    width: int = 64
    fit_steps: int = 1000
    fit_batch: int = 128
    fit_lr: float = 2e-3

    def build(self, roster: Roster) -> VQCodec:
        if not self.scales or min(self.scales) < 1 or list(self.scales) != sorted(self.scales) or self.vocabulary < 2:
            raise UserError(f"scales {self.scales} must be positive and not fall, with a vocabulary of at least 2")
        return VQCodec(self, roster)


class VQCodec(Codec):
    """Frozen once fitted: no gradient of a policy reaches it."""

    fits = FIT_CHUNKS
    whole = True
    slot_axes = (None, None)

    def __init__(self, config: VQCodes, roster: Roster) -> None:
        super().__init__()
        self.config, self.vocabulary = config, config.vocabulary
        self.places, D = config.scales[-1], config.width
        self.step_in = Bank(len(roster), roster.action_width, D, axes=("A", None))
        modes = max(self.places, MODES)  # the same for every roster, so that weights carry over
        self.encoder = _mlp(modes * D, 4 * D, self.places * config.latent)
        self.decoder = _mlp(self.places * config.latent, 4 * D, modes * D)
        self.step_out = Bank(len(roster), D, roster.action_width, axes=(None, "A"))
        self.time_MT = nn.Parameter(_low_frequencies(modes, roster.horizon))
        self.levels = nn.ModuleList(VQ(codes=1, vocabulary=config.vocabulary, width=config.latent).build() for _ in config.scales)
        self._fits_robots(roster)
        self.roster_axes = {"fitted_E": ("E",), "time_MT": (None, "T")}
        self.requires_grad_(False)

    def length(self, horizon: int, width: int) -> int:
        return sum(self.config.scales)

    def blocks(self, horizon: int, width: int) -> Tensor:
        return torch.arange(len(self.config.scales)).repeat_interleave(torch.tensor(self.config.scales))

    def parents(self, horizon: int, width: int) -> Tensor:
        starts, found = np.cumsum([0, *self.config.scales]), [-1] * self.config.scales[0]
        for level, (before, size) in enumerate(zip(self.config.scales, self.config.scales[1:], strict=False)):
            found += [int(starts[level]) + place * before // size for place in range(size)]
        return torch.tensor(found)

    def encode(self, action_BTA: Tensor, spec: ActionSpec) -> Tensor:
        need_fitted(any(self._fitted_now()), "the VQ codec")
        with torch.no_grad():
            return self._quantize(self._features(action_BTA.float(), spec), None)[1]

    def decode(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        self.require(spec)
        with torch.no_grad():
            sum_BKL = torch.zeros(len(code_BN), self.places, self.config.latent, device=code_BN.device)
            for level, code_Bs in zip(self.levels, code_BN.split(list(self.config.scales), dim=1), strict=True):
                entry_BsL = level.embed(code_Bs.reshape(-1, 1)).view(*code_Bs.shape, -1)
                sum_BKL = sum_BKL + _resize(entry_BsL, self.places)
            return self._actions(sum_BKL, spec)

    def exists(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        return spec.mask_BTA.flatten(1).any(1, keepdim=True).expand(-1, self.length(0, 0))

    def fit(self, action_BTA: Tensor, spec: ActionSpec) -> None:
        """The autoencoder whole, where nothing is fitted; the maps in and out of new robots alone, where something is."""
        new_B = (self.fitted_E[spec.embodiment_B] == 0) & spec.mask_BTA.flatten(1).any(1)
        if not new_B.any():
            return
        first = not bool(self.fitted_E.any())
        action_BTA, spec = action_BTA[new_B].float(), spec[new_B]
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            if not first:  # a robot's maps start as those of a robot that is known, or all its chunks would share a code
                known, new = (self.fitted_E > 0).nonzero()[0, 0], spec.embodiment_B.unique()
                for bank in (self.step_in, self.step_out):
                    bank.weight_EIO[new], bank.bias_EO[new] = bank.weight_EIO[known].clone(), bank.bias_EO[known].clone()
            new_maps = [*self.step_in.parameters(), *self.step_out.parameters()]
            self._train(action_BTA, spec, list(self.parameters()) if first else new_maps, first)
        self.fitted_E[spec.embodiment_B.unique()] = 1

    def _train(self, action_BTA: Tensor, spec: ActionSpec, parameters: list[nn.Parameter], codebooks: bool) -> None:
        config = self.config
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=config.fit_lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.fit_steps)
        self.levels.train(codebooks)
        keys_N = torch.arange(len(action_BTA), device=action_BTA.device)
        for step in range(config.fit_steps):
            rows_B = Noise(keys_N[:1], step).integers("rows", len(action_BTA), min(config.fit_batch, len(action_BTA)))[0]
            part = spec[rows_B]
            feature_BKL = self._features(action_BTA[rows_B], part)
            said_BKL, _, commitment = self._quantize(feature_BKL, step if codebooks else None)
            error_BTA = (self._actions(said_BKL, part) - action_BTA[rows_B]).abs() * part.mask_BTA
            optimizer.zero_grad()
            (error_BTA.sum() / part.mask_BTA.sum() + commitment).backward()
            optimizer.step(), schedule.step()
        self.levels.eval()
        for parameter in parameters:
            parameter.grad = None
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> VQCodec:
        return super().train(False)  # codebooks move in `fit` alone

    def _features(self, action_BTA: Tensor, spec: ActionSpec) -> Tensor:
        """(B, T, A) -> (B, K, L): time pooled into K places."""
        x_BTD = self.step_in(action_BTA * spec.mask_BTA, spec.embodiment_B) * spec.mask_BTA.any(2, keepdim=True)
        x_BMD = torch.einsum("mt,btd->bmd", self.time_MT, x_BTD)
        return self.encoder(x_BMD.flatten(1)).unflatten(1, (self.places, -1))

    def _actions(self, x_BKL: Tensor, spec: ActionSpec) -> Tensor:
        x_BMD = self.decoder(x_BKL.flatten(1)).unflatten(1, (len(self.time_MT), -1))
        x_BTD = torch.einsum("mt,bmd->btd", self.time_MT, x_BMD)
        return self.step_out(x_BTD, spec.embodiment_B) * spec.mask_BTA

    def _quantize(self, feature_BKL: Tensor, step: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """-> what the codes say (B, K, L) with a gradient to the features, codes (B, N), commitment. `step`: of fitting."""
        left_BKL, said_BKL, codes = feature_BKL.detach(), torch.zeros_like(feature_BKL), []
        for number, (level, size) in enumerate(zip(self.levels, self.config.scales, strict=True)):
            part_RL = _resize(left_BKL, size).reshape(-1, self.config.latent)
            noise = None if step is None else Noise(torch.arange(len(part_RL), device=part_RL.device), step * len(self.levels) + number)
            found = level(part_RL, noise)
            entry_BKL = _resize(level.embed(found.code_BN).view(len(feature_BKL), size, -1), self.places).detach()
            left_BKL, said_BKL = left_BKL - entry_BKL, said_BKL + entry_BKL
            codes.append(found.code_BN.view(len(feature_BKL), size))
        commitment = 0.25 * (feature_BKL - said_BKL).square().mean()
        return feature_BKL + (said_BKL - feature_BKL).detach(), torch.cat(codes, dim=1), commitment


def _mlp(inward: int, inner: int, outward: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inward, inner), nn.GELU(), nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, outward))


def _resize(x_BKL: Tensor, size: int) -> Tensor:
    """Places -> `size` places: means where there are fewer, linear between middles where there are more."""
    if x_BKL.shape[1] == size:
        return x_BKL
    x_BLK = x_BKL.transpose(1, 2)
    smaller = size < x_BKL.shape[1]
    resized = F.adaptive_avg_pool1d(x_BLK, size) if smaller else F.interpolate(x_BLK, size, mode="linear", align_corners=False)
    return resized.transpose(1, 2)


def _low_frequencies(modes: int, horizon: int) -> Tensor:
    """float32 (modes, horizon): the lowest frequencies of the orthonormal DCT, zeros where a short chunk has no more."""
    found_MT = np.zeros((modes, horizon))
    found_MT[: min(modes, horizon)] = dct_matrix(horizon)[:modes]
    return torch.from_numpy(found_MT).float()
