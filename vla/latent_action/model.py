"""The latent-action model: a frame pair -> codes for what changed, such that first frame and codes predict the second frame."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.codecs.quantizer import Quantized, ResidualVQ
from vla.config import to_json
from vla.errors import SchemaError, UnknownName, UserError
from vla.latent_action.decoder import ForwardConv
from vla.latent_action.encoder import StateDifference
from vla.latent_action.features import TinyConv, fit, side_by_side
from vla.latent_action.proprio import ProprioBatch
from vla.noise import Noise
from vla.types import Loss, Sample, WeightedSum

NOISE_FLOOR = 1e-4
"""Mean square change, per number of the target, that counts as none: JPEG noise in pixels of -1..1. Keeps still pairs harmless."""


@dataclass(frozen=True)
class LatentActionConfig:
    """`camera`: the role whose frames are paired. `gap_s`: shortest and longest time between the frames of a pair, seconds.
    `beside`: roles of a second view, for motion that the first sees end-on; the first of them that a source has is put beside its
    picture, both then half as wide. A source that has none shows `camera` alone.

    `language`: the forward decoder is told the instruction, so that codes need not say it: what is left to them is task-irrelevant
    (UniVLA, stage 1). `first_stage`: the configuration of such a model, whose encoder and codes are frozen; this model's own codes
    are what they leave over, the task-centric ones (stage 2). `history_s`: times of frames before now, seconds < 0, rising, for an
    encoder of a window. `proprio`: a forward model of the robot's own numbers beside the visual one (villa-X).
    `spans`: a label holds the codes of so many pairs that follow each other, each a gap long, instead of one's: what happens when, within
    a chunk of actions.
    """

    kind: ClassVar[str] = "latent_action.model"
    camera: str = "third_person"
    gap_s: tuple[float, float] = (0.15, 0.25)
    features: Any = field(default_factory=TinyConv)
    encoder: Any = field(default_factory=StateDifference)
    quantizer: Any = field(default_factory=ResidualVQ)
    decoder: Any = field(default_factory=ForwardConv)
    language: Any = None
    first_stage: LatentActionConfig | None = None
    history_s: tuple[float, ...] | None = None
    proprio: Any = None
    beside: tuple[str, ...] | None = None
    spans: int | None = None

    def __post_init__(self) -> None:
        if self.spans is not None and self.spans < 1:
            raise UserError(f"spans {self.spans}: a label holds the codes of at least one pair")
        if len(self.gap_s) != 2 or not 0 < self.gap_s[0] <= self.gap_s[1] < float("inf"):
            raise UserError(f"gap_s {self.gap_s}: give (low, high) in seconds with 0 < low <= high")
        history_s = self.history_s or ()
        if list(history_s) != sorted(set(history_s)) or any(not time_s < 0 for time_s in history_s):
            raise UserError(f"history_s {history_s}: give times before now in seconds, rising, such as (-0.4, -0.2)")
        if self.first_stage is not None:
            if self.first_stage.language is None or self.language is not None:
                raise UserError("two stages: `first_stage` is trained with `language`, and the second without")
            if (self.first_stage.camera, self.first_stage.beside) != (self.camera, self.beside) or self.first_stage.gap_s != self.gap_s:
                raise UserError("two stages: both need the same `camera`, `beside` and `gap_s`")
            if self.first_stage.history_s:
                raise UserError("two stages: the first takes no `history_s`")

    @property
    def offsets_s(self) -> tuple[float, ...]:
        """Times of the frames that an observation shows, for a pipeline's `history_s`: those before now, then now."""
        return (*(self.history_s or ()), 0.0)

    def views(self, roles: Collection[str]) -> tuple[str, ...]:
        """The roles that are shown of a source with these: one, or two beside each other."""
        return (self.camera, *[role for role in self.beside or () if role in roles][:1])

    def build(self) -> LatentActionModel:
        return LatentActionModel(self)


@dataclass(frozen=True)
class FramePairs:
    """B pairs: `now_BHW3` and `later_BHW3` uint8, `gap_B` float32 seconds between them, `key_B` int64 for their noise.

    What only some models take: `before_BFHW3`, frames before now, oldest first; `word_BL`, ids of the instruction; `proprio`.
    """

    now_BHW3: Tensor
    later_BHW3: Tensor
    gap_B: Tensor
    key_B: Tensor
    before_BFHW3: Tensor | None = None
    word_BL: Tensor | None = None
    proprio: ProprioBatch | None = None

    def to(self, device: str | torch.device) -> FramePairs:
        tensors = (self.now_BHW3, self.later_BHW3, self.gap_B, self.key_B, self.before_BFHW3, self.word_BL)
        proprio = None if self.proprio is None else ProprioBatch(*(tensor.to(device) for tensor in self.proprio))
        return FramePairs(*(None if tensor is None else tensor.to(device) for tensor in tensors), proprio)


class LatentActionModel(nn.Module):
    """Frame pairs -> loss (`forward`) or codes (`encode`)."""

    def __init__(self, config: LatentActionConfig) -> None:
        super().__init__()
        self.config = config
        self.features = config.features.build()
        self.quantizer = config.quantizer.build()
        self.encoder = config.encoder.build(self.features, self.quantizer.latent)
        told = self.quantizer.latent
        self.language = config.language.build() if config.language is not None else None
        self.first = config.first_stage.build() if config.first_stage is not None else None
        if self.language is not None:
            told += self.language.width
        if self.first is not None:
            del self.first.decoder, self.first.language  # what made its codes what they are; no code needs them any more
            self.first.requires_grad_(False)
            if self._one_tower:
                self.first.features = self.features
            told += self.first.quantizer.latent
        self.decoder = config.decoder.build(self.features, told)
        self.proprio = config.proprio.build(self.quantizer.latent) if config.proprio is not None else None
        frames = len(config.history_s or ())
        if self.encoder.frames_before != frames:
            raise SchemaError(f"the encoder takes {self.encoder.frames_before} frames before now; `history_s` names {frames}")

    def train(self, mode: bool = True) -> LatentActionModel:
        super().train(mode)
        if self.first is not None:
            self.first.train(False)  # its codes stay those of its checkpoint: no revival, no moving averages
        return self

    def adopt_first(self, first: LatentActionModel) -> None:
        """Takes over a trained first stage: its features, encoder and codes. UserError where it is not the one that was declared."""
        if self.first is None:
            raise UserError("this model has no `first_stage` to start from")
        if first.config != self.config.first_stage:
            raise UserError("the first stage's checkpoint was trained with other settings than `first_stage` says")
        own = self.first.state_dict()
        self.first.load_state_dict({name: tensor for name, tensor in first.state_dict().items() if name in own})

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
        views = [self.config.views(sample.observation.images) for sample in samples]
        pictures = [[sample.observation.images[role] for role in roles] for sample, roles in zip(samples, views, strict=True)]
        now = [side_by_side([frames[-1] for frames in shown]) for shown in pictures]
        later = [side_by_side([(sample.future or {})[role] for role in roles]) for sample, roles in zip(samples, views, strict=True)]
        gap_B = torch.tensor([sample.gap_s for sample in samples], dtype=torch.float32)
        key_B = torch.tensor([sample.position for sample in samples])
        side = self.features.image_side
        before, frames = None, len(self.config.history_s or ())
        if frames:
            if any(len(sample.observation.offsets_s) != frames + 1 for sample in samples):
                raise SchemaError(f"samples do not show {frames} frames before now; ask the pipeline for `history_s`")
            images = [side_by_side(list(shot)) for shown in pictures for shot in zip(*(seen[:-1] for seen in shown), strict=True)]
            before = fit(images, side).unflatten(0, (len(samples), frames))
        words = None if self.language is None else self.language.ids([sample.observation.instruction for sample in samples])
        proprio = None if self.proprio is None else self.proprio.collate(samples)
        return FramePairs(fit(now, side), fit(later, side), gap_B, key_B, before, words, proprio)

    def forward(self, pairs: FramePairs, noise: Noise) -> tuple[Loss, Tensor]:
        """Loss and codes (B, N).

        `prediction` is the squared error over the square of the change from first to second frame: the share of the change that is
        left unexplained, 1 for predicting none, whatever the features' scale. `commitment` is a mean over pairs; `proprio` one over
        pairs with labels, if the model has that part.
        """
        now, later = self._maps(pairs)
        gap_B1 = self._gap(pairs)
        quantized: Quantized = self.quantizer(self._latent(pairs, now, later), noise)
        with torch.no_grad():
            if self.features.predicts_itself:
                change = later - now
            else:
                change = self.features.target(pairs.later_BHW3) - self.features.target(pairs.now_BHW3)
            change_B = change.square().flatten(1).sum(1) + NOISE_FLOOR * change[0].numel()
        told_BZ = torch.cat([quantized.action_BZ, *self._told(pairs, now, later)], dim=1)
        error_B = (self.decoder(now, told_BZ, gap_B1) - change).square().flatten(1).sum(1)
        pairs_weight = change_B.new_tensor(float(len(change_B)))
        parts = {
            "prediction": WeightedSum(error_B.sum(), change_B.sum()),
            "commitment": WeightedSum(quantized.commitment_B.sum(), pairs_weight),
        }
        scale = {"prediction": 1.0, "commitment": 1.0}
        if self.proprio is not None:
            assert pairs.proprio is not None
            parts["proprio"] = self.proprio(pairs.proprio, quantized.action_BZ, gap_B1)
            scale["proprio"] = self.config.proprio.scale
        return Loss(parts, scale, error_B.detach(), change_B), quantized.code_BN

    @torch.no_grad()
    def encode(self, pairs: FramePairs) -> Tensor:
        """int64 codes (B, N); the model must be in evaluation mode, where a pair's codes do not depend on its neighbours."""
        assert not self.training
        return self.quantizer(self._latent(pairs, *self._maps(pairs))).code_BN

    @torch.no_grad()
    def predict(self, pairs: FramePairs, code_BN: Tensor) -> Tensor:
        """The change of the target that codes stand for, from the pairs' first frames; the later ones only enter a first stage."""
        assert not self.training
        now, later = self._maps(pairs)
        told_BZ = torch.cat([self.quantizer.embed(code_BN), *self._told(pairs, now, later)], dim=1)
        return self.decoder(now, told_BZ, self._gap(pairs))

    def check_gap(self, gap_s: float | None) -> float:
        """The gap to label with: by default the middle of those trained on; one outside of them is refused."""
        low, high = self.config.gap_s
        gap_s = (low + high) / 2 if gap_s is None else gap_s
        if not low <= gap_s <= high:
            raise UserError(f"gap of {gap_s:g} s: this model was trained on gaps from {low:g} to {high:g} s")
        return gap_s

    def hash(self) -> str:
        """sha256 of configuration and weights, 64 hex digits: which model made a code."""
        digest = hashlib.sha256(json.dumps(_stated(to_json(self.config)), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _latent(self, pairs: FramePairs, now: Tensor, later: Tensor) -> Tensor:
        if not self.encoder.frames_before:
            return self.encoder(now, later, self._gap(pairs))
        if pairs.before_BFHW3 is None:
            raise SchemaError("these pairs lack the frames before now that the encoder takes")
        before = self.features(pairs.before_BFHW3.flatten(0, 1)).unflatten(0, pairs.before_BFHW3.shape[:2])
        return self.encoder(now, later, self._gap(pairs), before)

    @property
    def _one_tower(self) -> bool:
        """Whether both stages see through the same frozen features, which are then computed once."""
        return self.first is not None and self.features.predicts_itself and self.config.features == self.first.config.features

    def _told(self, pairs: FramePairs, now: Tensor, later: Tensor) -> list[Tensor]:
        """What the forward decoder knows beside this model's own codes."""
        told = []
        if self.language is not None:
            if pairs.word_BL is None:
                raise SchemaError("these pairs lack the instruction that the forward decoder is told")
            told.append(self.language(pairs.word_BL))
        if self.first is not None:
            with torch.no_grad():
                maps = (now, later) if self._one_tower else self.first._maps(pairs)
                told.append(self.first.quantizer(self.first._latent(pairs, *maps)).action_BZ)
        return told

    def _maps(self, pairs: FramePairs) -> tuple[Tensor, Tensor]:
        both = self.features(torch.cat([pairs.now_BHW3, pairs.later_BHW3]))
        return both[: len(pairs.gap_B)], both[len(pairs.gap_B) :]

    def _gap(self, pairs: FramePairs) -> Tensor:
        low, high = self.config.gap_s
        return ((pairs.gap_B - (low + high) / 2) / max((high - low) / 2, 0.1 * low))[:, None]


def _stated(data: Any) -> Any:
    """Without settings that are None: a part that came later does not rename the models that do without it."""
    if isinstance(data, dict):
        return {name: _stated(value) for name, value in data.items() if value is not None}
    return [_stated(value) for value in data] if isinstance(data, list) else data
