"""Several policies as one: a convex combination of their scores at every step of denoising, at test time and without training.

General Policy Composition (Cao et al. 2025); before it PoCo (Wang et al. 2024), Modality-Composable Diffusion Policy (Cao et al. 2025). At
one noise level of one path a network's output is affine in the score, so that combining outputs is combining scores. Policies may see other
cameras, have other backbones and other conditionings; the numbers that they denoise must mean the same.
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vla.decoders.base import join
from vla.diffusion.base import Path, Predict, Warm
from vla.diffusion.guide import guided
from vla.errors import SchemaError, UnknownName, UserError
from vla.goals import GOAL
from vla.noise import Noise
from vla.policy import Policy
from vla.types import ActionSpec, Observation, Prior


class Composed(Policy):
    """`Composed([vision, points], [0.6, 0.4]).act(observation)`. The first policy's robots, limits and seed are the whole's.

    UserError unless the weights are positive and sum to 1, and the policies agree on robots, chunk and normalisers.
    """

    def __init__(self, policies: Sequence[Policy], weights: Sequence[float]) -> None:
        if not policies or len(policies) != len(weights) or min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6:
            raise UserError(f"{len(policies)} policies need as many positive weights that sum to 1, not {list(weights)}")
        first = policies[0]
        super().__init__(first.contents, first.model, first.seed)
        self.policies, self.weights = tuple(policies), tuple(weights)
        for number, other in enumerate(policies[1:], 2):
            differing = [what for what, value in _meaning(other).items() if value != _meaning(first)[what]]
            if differing:
                raise UserError(f"policy {number} differs from the first in {' and '.join(differing)}: its actions mean something else")

    def optimize_for_inference(self, float8: bool = False, compiled: bool = False) -> Composed:
        """Each policy's maps; nothing is captured, since each step of denoising asks all of them."""
        for policy in self.policies:
            policy.optimize_for_inference(float8, compiled)
        return self

    def save_pretrained(self, folder: str | pathlib.Path, max_shard_bytes: int | None = None) -> pathlib.Path:
        """UserError: a checkpoint is one model."""
        raise UserError("a composed policy is several checkpoints and their weights: save each policy, and compose them where they act")

    def push_to_hub(self, repo_id: str, private: bool = False, message: str = "", api: Any = None) -> str:
        """UserError, as `save_pretrained`."""
        raise UserError("a composed policy is several checkpoints and their weights: push each policy, and compose them where they act")

    @staticmethod
    def _roles(policy: Policy, observation: Observation) -> tuple[str, ...]:
        cameras = {robot.name: robot.cameras for robot in policy.contents.embodiments}
        if observation.embodiment not in cameras:
            raise UnknownName("embodiment of these policies", observation.embodiment, cameras)
        return cameras[observation.embodiment]

    def _sample(self, observations: Sequence[Observation], keys: Sequence[int], prior: Prior | None = None) -> Tensor:
        for observation in observations:
            if unseen := set(observation.images).difference({GOAL}, *(self._roles(policy, observation) for policy in self.policies)):
                raise SchemaError(f"cameras {sorted(unseen)} given, by which none of these policies sees")
        denoisers = []
        for policy in self.policies:
            batch, noise = policy.prepared([_shown(each, self._roles(policy, each)) for each in observations], keys)
            model = policy.model
            denoisers.append(model.decoder.denoiser(model.backbone, model.prefix(batch), batch.spec))
        path, like = denoisers[0].path, batch.spec
        if any(denoiser.path.config != path.config for denoiser in denoisers):
            raise UserError("policies that denoise along different paths have no common noise level; train them on one")

        def predict(x_BTA: Tensor, t_B: Tensor) -> Tensor:
            return sum(weight * part.predict(x_BTA, t_B) for weight, part in zip(self.weights, denoisers, strict=True))

        evaluations = max(denoiser.evaluations for denoiser in denoisers)
        return denoised(self, predict, path, evaluations, like, Noise(noise.key_B, self.seed), prior)


def _shown(observation: Observation, roles: Collection[str]) -> Observation:
    """Of what there is, what a policy of these cameras sees; one that it misses it names itself."""
    images = {role: image for role, image in observation.images.items() if role in (*roles, GOAL)}
    return replace(observation, images=images, geometry={role: known for role, known in observation.geometry.items() if role in images})


def denoised(
    policy: Policy, predict: Predict, path: Path, evaluations: int, like: ActionSpec, noise: Noise, prior: Prior | None = None
) -> Tensor:
    """Normalised actions (B, T, A) of a policy's shape by any denoiser; with a prior, pulled to it and joined."""
    eps_BTA = noise.normal("eps", policy.model.roster.horizon, policy.model.roster.action_width)
    if prior is None:
        return path.solve(predict, eps_BTA, evaluations, noise=noise) * like.mask_BTA
    prior = prior.to(eps_BTA.device)
    pulled = guided(path, predict, prior.action_BTA, prior.weight_BT[..., None] * like.mask_BTA)
    return join(path.solve(pulled, eps_BTA, evaluations, warm=Warm.of(prior), noise=noise), like, prior, soft=False)


def _meaning(policy: Policy) -> dict[str, object]:
    contents = policy.contents
    return {
        "robots": [robot.to_json() | {"cameras": None} for robot in contents.embodiments],
        "normalisers": {name: both.action.to_json() for name, both in contents.normalizers.items()},
        "the shape of a chunk": (policy.model.roster.horizon, policy.model.roster.action_width),
    }
