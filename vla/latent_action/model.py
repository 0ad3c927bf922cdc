"""The latent-action model: a frame pair -> codes for what changed, such that first frame and codes predict the second frame."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.codecs.quantizer import Quantized, ResidualVQ
from vla.config import to_json
from vla.errors import SchemaError, UnknownName, UserError
from vla.latent_action.decoder import ForwardConv
from vla.latent_action.encoder import StateDifference
from vla.latent_action.features import TinyConv, fit
from vla.noise import Noise
from vla.types import Loss, Sample, WeightedSum

NOISE_FLOOR = 1e-4
"""Mean square change, per number of the target, that counts as none: JPEG noise in pixels of -1..1. Keeps still pairs harmless."""


@dataclass(frozen=True)
class LatentActionConfig:
    """`camera`: the role whose frames are paired. `gap_s`: shortest and longest time between the frames of a pair, seconds."""

    kind: ClassVar[str] = "latent_action.model"
    camera: str = "third_person"
    gap_s: tuple[float, float] = (0.15, 0.25)
    features: Any = field(default_factory=TinyConv)
    encoder: Any = field(default_factory=StateDifference)
    quantizer: Any = field(default_factory=ResidualVQ)
    decoder: Any = field(default_factory=ForwardConv)

    def __post_init__(self) -> None:
        if len(self.gap_s) != 2 or not 0 < self.gap_s[0] <= self.gap_s[1] < float("inf"):
            raise UserError(f"gap_s {self.gap_s}: give (low, high) in seconds with 0 < low <= high")

    def build(self) -> LatentActionModel:
        return LatentActionModel(self)


@dataclass(frozen=True)
class FramePairs:
    """B pairs: `now_BHW3` and `later_BHW3` uint8, `gap_B` float32 seconds between them, `key_B` int64 for their noise."""

    now_BHW3: Tensor
    later_BHW3: Tensor
    gap_B: Tensor
    key_B: Tensor

    def to(self, device: str | torch.device) -> FramePairs:
        return FramePairs(*(tensor.to(device) for tensor in (self.now_BHW3, self.later_BHW3, self.gap_B, self.key_B)))


class LatentActionModel(nn.Module):
    """Frame pairs -> loss (`forward`) or codes (`encode`)."""

    def __init__(self, config: LatentActionConfig) -> None:
        super().__init__()
        self.config = config
        self.features = config.features.build()
        self.quantizer = config.quantizer.build()
        self.encoder = config.encoder.build(self.features, self.quantizer.latent)
        self.decoder = config.decoder.build(self.features, self.quantizer.latent)

    @property
    def codes(self) -> int:
        return self.quantizer.codes

    @property
    def vocabulary(self) -> int:
        return self.quantizer.vocabulary

    def collate(self, samples: Sequence[Sample]) -> FramePairs:
        """Samples of a pipeline with frame pairs (`future_gap_s`) -> pairs of this model's camera, keyed by position."""
        camera = self.config.camera
        for sample in samples:
            if sample.future is None:
                raise SchemaError(f"{sample.episode}: a sample without a future frame; ask the pipeline for `future_gap_s`")
            if camera not in sample.future:
                raise UnknownName("camera role", camera, sample.future, f"Source '{sample.source}' does not have it.")
        now = [sample.observation.images[camera][-1] for sample in samples]
        later = [sample.future[camera] for sample in samples if sample.future is not None]
        gap_B = torch.tensor([sample.gap_s for sample in samples], dtype=torch.float32)
        key_B = torch.tensor([sample.position for sample in samples])
        side = self.features.image_side
        return FramePairs(fit(now, side), fit(later, side), gap_B, key_B)

    def forward(self, pairs: FramePairs, noise: Noise) -> tuple[Loss, Tensor]:
        """Loss and codes (B, N).

        `prediction` is the squared error over the square of the change from first to second frame: the share of the change that is
        left unexplained, 1 for predicting none, whatever the features' scale. `commitment` is a mean over pairs.
        """
        now, later = self._maps(pairs)
        gap_B1 = self._gap(pairs)
        quantized: Quantized = self.quantizer(self.encoder(now, later, gap_B1), noise)
        with torch.no_grad():
            change = self.features.target(pairs.later_BHW3) - self.features.target(pairs.now_BHW3)
            change_B = change.square().flatten(1).sum(1) + NOISE_FLOOR * change[0].numel()
        error_B = (self.decoder(now, quantized.action_BZ, gap_B1) - change).square().flatten(1).sum(1)
        pairs_weight = change_B.new_tensor(float(len(change_B)))
        parts = {
            "prediction": WeightedSum(error_B.sum(), change_B.sum()),
            "commitment": WeightedSum(quantized.commitment_B.sum(), pairs_weight),
        }
        return Loss(parts, {"prediction": 1.0, "commitment": 1.0}, error_B.detach(), change_B), quantized.code_BN

    @torch.no_grad()
    def encode(self, pairs: FramePairs) -> Tensor:
        """int64 codes (B, N); the model must be in evaluation mode, where a pair's codes do not depend on its neighbours."""
        assert not self.training
        return self.quantizer(self.encoder(*self._maps(pairs), self._gap(pairs))).code_BN

    def check_gap(self, gap_s: float | None) -> float:
        """The gap to label with: by default the middle of those trained on; one outside of them is refused."""
        low, high = self.config.gap_s
        gap_s = (low + high) / 2 if gap_s is None else gap_s
        if not low <= gap_s <= high:
            raise UserError(f"gap of {gap_s:g} s: this model was trained on gaps from {low:g} to {high:g} s")
        return gap_s

    def hash(self) -> str:
        """sha256 of configuration and weights, 64 hex digits: which model made a code."""
        digest = hashlib.sha256(json.dumps(to_json(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _maps(self, pairs: FramePairs) -> tuple[Tensor, Tensor]:
        both = self.features(torch.cat([pairs.now_BHW3, pairs.later_BHW3]))
        return both[: len(pairs.gap_B)], both[len(pairs.gap_B) :]

    def _gap(self, pairs: FramePairs) -> Tensor:
        low, high = self.config.gap_s
        return ((pairs.gap_B - (low + high) / 2) / max((high - low) / 2, 0.1 * low))[:, None]
