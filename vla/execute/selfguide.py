"""Self-guidance: a policy that denoises, led away from what it would do if it still saw its last observation (So et al. 2025, "Improving
Generative Behavior Cloning via Self-Guidance and Adaptive Chunking").

    guided output = now + w (now - before)

at every evaluation, where `before` is the network's output for the same noisy chunk under the observation of the decision before: what
has changed since counts more. At one noise level an output is affine in the score, so this holds for any path and prediction. It doubles
the work. Deviation: their past observation is some steps old at a new chunk every step; this one is as old as the last decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vla.decoders.base import ActionDecoder
from vla.errors import UserError
from vla.execute.compose import denoised
from vla.policy import Policy, all_good
from vla.types import Chunk, Observation


class SelfGuided(Policy):
    """`SelfGuided(policy, 0.5).follow_batch([now], [key], [before])`. Without a past observation it is the policy alone.

    `weight`: w above. UserError where it is not finite and positive, and where the policy's decoder does not denoise.
    """

    def __init__(self, policy: Policy, weight: float) -> None:
        if not 0 < weight < 100:
            raise UserError(f"a policy is led away from its past by a weight above 0, such as 0.5, not {weight}")
        if type(policy.model.decoder).denoiser is ActionDecoder.denoiser:
            raise UserError(f"{type(policy.model.decoder).__name__} does not denoise, so that nothing can guide it; take a `dit` decoder")
        super().__init__(policy.contents, policy.model, policy.seed)
        self.weight = weight

    @torch.inference_mode()
    def follow_batch(self, observations: Sequence[Observation], keys: Sequence[int], before: Sequence[Observation | None]) -> list[Chunk]:
        """One chunk per observation; `before`: what each row's last decision saw, None at its first."""
        return all_good(self._outcomes(observations, self._followed(observations, keys, before)))

    def _followed(self, observations: Sequence[Observation], keys: Sequence[int], before: Sequence[Observation | None]) -> Tensor:
        past = [now if then is None else then for now, then in zip(observations, before, strict=True)]
        batch, noise = self.prepared(observations, keys)
        backbone, decoder = self.model.backbone, self.model.decoder
        now = decoder.denoiser(backbone, self.model.prefix(batch), batch.spec)
        then = decoder.denoiser(backbone, self.model.prefix(self.prepared(past, keys)[0]), batch.spec)
        weights = [0.0 if each is None else self.weight for each in before]
        weight_B11 = torch.tensor(weights, device=noise.key_B.device)[:, None, None]

        def predict(x_BTA: Tensor, t_B: Tensor) -> Tensor:
            out_BTA = now.predict(x_BTA, t_B)
            return out_BTA + weight_B11 * (out_BTA - then.predict(x_BTA, t_B))

        return denoised(self, predict, now.path, now.evaluations, batch.spec, noise)
