"""A policy that draws several chunks for each observation: which one is executed, and how far.

Which: the first, or the one of which a value expects most (`vla.execute.value`). How far: all of it, or as far as the samples agree, so
that the robot looks again where its policy is not sure. Adaptive Action Chunking (2026, arXiv 2604.04161) takes the entropy of sampled
actions for that; So et al. 2025 ("Improving Generative Behavior Cloning via Self-Guidance and Adaptive Chunking") how far a new chunk
points elsewhere than the old one, which costs a call every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla.backbones.base import Tokens
from vla.errors import UserError
from vla.noise import Noise
from vla.policy import Policy
from vla.types import ActionSpec, Chunk, Observation, Prior

if TYPE_CHECKING:
    from vla.execute.value import Value


MOST_ROWS = 64
"""Of one pass over all samples: more hardly make it faster, and each holds the keys and values of a prefix."""


@dataclass(frozen=True)
class Agreement:
    """A chunk is cut before the first step at which samples spread by more than `most`: the root mean square, over the numbers of a step,
    of their standard deviation, in normalised units (1: half of what the demonstrations span). At least `least` commands are kept."""

    most: float
    least: int = 1

    def __post_init__(self) -> None:
        if not self.most > 0 or self.least < 1:
            raise UserError(f"samples agree within a spread above 0, for at least 1 command; not {self.most} and {self.least}")

    def steps(self, drawn_NBTA: Tensor, mask_BTA: Tensor) -> Tensor:
        """Samples (N, B, T, A), and which of the numbers exist -> int64 (B,): commands to execute, 1..T."""
        variance_BT = (drawn_NBTA.var(0, correction=0) * mask_BTA).sum(-1) / mask_BTA.sum(-1).clamp(min=1)
        agreed_BT = variance_BT.sqrt() <= self.most
        return agreed_BT.long().cumprod(1).sum(1).clamp(min=min(self.least, drawn_NBTA.shape[2]))


class Several(Policy):
    """A policy that samples so many chunks for each observation. The first is the one that the policy alone would have given.

    UserError where its decoder has one answer (`ActionDecoder.draws`), or where nothing is asked of them.
    """

    def __init__(self, policy: Policy, samples: int, value: Value | None = None, agreement: Agreement | None = None) -> None:
        if samples < 2:
            raise UserError(f"a choice among samples takes at least 2 of them, not {samples}; give --samples 8")
        if value is None and agreement is None:
            raise UserError("several samples are drawn for a value to choose one, or to see how far they agree; give one of them")
        if not policy.model.decoder.draws:
            raise UserError("this checkpoint gives one chunk an observation, so that there is nothing to choose; leave out --samples")
        super().__init__(policy.contents, policy.model, policy.seed)
        self.samples, self.agreement = samples, agreement
        self.value = value.to(next(policy.model.parameters()).device) if value is not None else None

    def _decided(self, observations: Sequence[Observation], keys: Sequence[int], prior: Prior | None = None) -> list[Chunk | UserError]:
        batch, noise = self.prepared(observations, keys)
        prefix = self.model.prefix(batch)  # once for all samples
        drawn_NBTA = self._drawn(prefix, batch.spec, noise, keys, prior)
        outcomes = self._outcomes(observations, self._chosen(drawn_NBTA, prefix))
        if self.agreement is None:
            return outcomes
        steps = self.agreement.steps(drawn_NBTA, batch.spec.mask_BTA).tolist()
        return [each if isinstance(each, UserError) else _cut(each, count) for each, count in zip(outcomes, steps, strict=True)]

    def _drawn(self, prefix: Tokens, spec: ActionSpec, noise: Noise, keys: Sequence[int], prior: Prior | None) -> Tensor:
        """Normalised actions, float32 (N, B, T, A), of as many rows at a time as `MOST_ROWS`."""
        backbone, decoder, B = self.model.backbone, self.model.decoder, len(keys)
        drawn, device = [], noise.key_B.device
        for start in range(0, self.samples, max(1, MOST_ROWS // B)):
            draws = range(self.samples)[start : start + max(1, MOST_ROWS // B)]
            N = len(draws)
            row_X = torch.arange(B, device=device).repeat_interleave(N)
            of_draws = replace(noise, key_B=torch.tensor([_key(key, draw) for key in keys for draw in draws], device=device))
            asked = (backbone, prefix.repeat(N), spec[row_X], of_draws)
            action_XTA = decoder.sample(*asked) if prior is None else decoder.resume(*asked, prior.to(device)[row_X])
            drawn.append(action_XTA.unflatten(0, (B, N)).transpose(0, 1))
        return torch.cat(drawn)

    def _chosen(self, drawn_NBTA: Tensor, prefix: Tokens) -> Tensor:
        if self.value is None:
            return drawn_NBTA[0]
        from vla.execute.value import pooled

        state_BD = pooled(self.model, prefix)
        value_NB = torch.stack([self.value(state_BD, drawn_BTA) for drawn_BTA in drawn_NBTA])
        return drawn_NBTA[value_NB.argmax(0), torch.arange(drawn_NBTA.shape[1], device=drawn_NBTA.device)]


def _key(key: int, draw: int) -> int:
    """Of a sample; those beside the first are far from any that are in use."""
    return (key + draw * 0x9E3779B97F4A7C15) % 2**63


def _cut(chunk: Chunk, steps: int) -> Chunk:
    return replace(chunk, action_TA=chunk.action_TA[:steps])
