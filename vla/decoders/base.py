"""The interface of every action decoder.

A decoder drives the backbone it is given: it may run it on the prefix alone, on prefix and suffix together, or on a suffix after a
cached prefix. So nothing elsewhere knows which decoder it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vla.backbones.base import Backbone, Tokens
from vla.backbones.remembered import Reads
from vla.diffusion.base import Denoiser
from vla.errors import UserError
from vla.noise import Noise
from vla.types import ActionSpec, Loss, Prior, Target, WeightedSum


class ActionDecoder(nn.Module, ABC):
    """Learns and samples normalised action chunks, float32 (B, T, A), T and A as in the roster.

    `latent_codes`: how many latent-action codes per sample it learns from, beside actions. `fits`: chunks that `fit` wants to see
    before the first step of training (a codec's edges or codebook), 0 for none. `takes_state`: it reads proprioception itself, from
    what the prefix is `given` (`state_BFP`, `state_valid_BF`), which then has no tokens of it. `text_tokens`: of reasoning, which it says
    before it acts. `shares_prefix`: it leaves the prefix's states as they are without it, so that others may use them too. `reads`: what it
    looks at of the prefix's `Hidden`, where less than all: so much less has to be kept of a pass over the prefix.
    """

    latent_codes: int = 0
    text_tokens: int = 0
    fits: int = 0
    takes_state: bool = False
    shares_prefix: bool = True
    reads: Reads = Reads()

    @property
    def draws(self) -> bool:
        """Whether other noise may give another chunk of the same observation."""
        return True

    def bind(self, backbone: Backbone) -> None:
        """Builds what needs more of the backbone's sizes than its width; called once, before any weight is loaded."""
        return

    def fit(self, target: Target) -> None:
        """Fits what is not learned by gradients; the result lies in buffers. Known robots of a checkpoint keep theirs."""

    def facts(self) -> dict[str, int]:
        """Counts of what sampling has met so far, which a result should state: `chunks` sampled, and those `repaired`; {} for nothing."""
        return {}

    def adopt(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of a checkpoint's decoder that a run starts from, under the names that they have here."""
        return weights

    @abstractmethod
    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        """The weight of each part of the loss: scalar tensors, the same that `loss` will return for this noise.

        Known before any forward pass, so that the loop can sum them over ranks and accumulation steps first.
        """

    @abstractmethod
    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Runs every trainable module, also when no sample has a label (weights 0): a skipped module hangs ZeRO."""

    @abstractmethod
    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        """float32 (B, T, A) normalised actions, 0 where `like.mask_BTA` is False."""

    def resume(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior) -> Tensor:
        """A sample that continues `prior`: equal to it where its weight is 1, unmoved by it where the weight is 0.

        Here, for decoders that give one chunk an observation: what is sampled and the prior, mixed by weight. A decoder that can sample
        given a part of the chunk does so instead.
        """
        return join(self.sample(backbone, prefix, like, noise), like, prior, soft=True)

    def denoiser(self, backbone: Backbone, prefix: Tokens, like: ActionSpec) -> Denoiser:
        """What `sample` asks again and again, for those who combine several (vla/execute/compose.py). UserError where nothing denoises."""
        raise UserError(f"{type(self).__name__} does not denoise, so its score cannot be combined with another's; take a `dit` decoder")


def with_evaluations(decoder: Any, count: int) -> Any:
    """A decoder's settings with `count` evaluations of the network for a chunk. UserError where its field `evaluations` is missing: a chunk
    is made in one pass, or code by code. Settings that hold another decoder's have a method of this name instead, and pass it on."""
    if hasattr(decoder, "with_evaluations"):
        return decoder.with_evaluations(count)
    if "evaluations" not in {field.name for field in fields(decoder)}:
        raise UserError(f"{decoder.kind} has no number of evaluations to choose; leave it out")
    return replace(decoder, evaluations=count)


def join(action_BTA: Tensor, like: ActionSpec, prior: Prior, soft: bool) -> Tensor:
    """`prior` where it is certain; elsewhere `action_BTA`, or (`soft`) the two mixed by the prior's weight."""
    weight_BT1 = prior.weight_BT[..., None] if soft else (prior.weight_BT[..., None] == 1).float()
    return torch.where(weight_BT1 > 0, torch.lerp(action_BTA, prior.action_BTA, weight_BT1), action_BTA) * like.mask_BTA


def make_loss(parts: Mapping[str, tuple[Tensor, Tensor]], scale: Mapping[str, float]) -> Loss:
    """{name: (error, weight)} of equal shapes (B, ...) -> Loss. Entries of weight 0 add nothing, whatever their error."""
    sums, first = {}, None
    for name, (error, weight) in parts.items():
        weight = weight.to(error.dtype)
        weighted = error.masked_fill(weight == 0, 0) * weight  # infinity times 0 would be NaN
        first = first or (weighted.detach(), weight.detach())
        sums[name] = WeightedSum(weighted.sum(), weight.sum())
    assert first is not None
    error_BN, weight_BN = (t.flatten(1) if t.dim() > 1 else t[:, None] for t in first)
    return Loss(sums, scale, error_BN.sum(1), weight_BN.sum(1))


def summed(losses: Sequence[Loss], rows_B: Tensor) -> Loss:
    """The loss of a batch from those of its parts; `rows_B`: which of the batch's rows theirs are, one part after another."""
    parts = {
        name: WeightedSum(
            torch.stack([loss.parts[name].sum for loss in losses]).sum(), torch.stack([loss.parts[name].weight for loss in losses]).sum()
        )
        for name in losses[0].parts
    }
    back_B = rows_B.argsort()
    sums_B, weights_B = (torch.cat([getattr(loss, name) for loss in losses])[back_B] for name in ("sample_sum_B", "sample_weight_B"))
    return Loss(parts, losses[0].scale, sums_B, weights_B)


def total_loss(loss: Loss, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """The scalar to differentiate: sum of `scale * sum / weight`, with `weights` (summed over ranks) if given."""
    total = torch.zeros((), device=loss.sample_sum_B.device)
    if weights is not None and set(weights) != set(loss.parts):
        raise UserError(f"the decoder's loss() has the parts {sorted(loss.parts)}, its weights() say {sorted(weights)}; name the same ones")
    for name, part in loss.parts.items():
        weight = part.weight if weights is None else weights[name]
        total = total + loss.scale[name] * part.sum / weight.clamp(min=1e-12)
    return total
