"""A denoiser that acts in one evaluation, distilled from one that takes several.

The teacher's sampler is a function of its noise, so the student learns it as one: from the same noise and observation, in a single
step, to where the teacher arrives (the distillation of rectified flows, Liu et al. 2023; for policies, Wang et al. 2024, One-Step
Diffusion Policy, and Prasad et al. 2024, Consistency Policy, with other losses). Two ways round an obstacle stay two: which noise leads
where is the teacher's choice, not an average. Guidance is distilled along: the student needs no second, unconditional evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from vla.backbones.base import Backbone, Tokens
from vla.decoders.base import ActionDecoder, make_loss
from vla.decoders.dit import DiT, DiTDecoder
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Prior, Target


@dataclass(frozen=True)
class OneStep:
    """`teacher`: the denoiser of the checkpoint to start from; both start with its weights. Freeze the backbone, which they share."""

    kind: ClassVar[str] = "decoder.one_step"
    teacher: DiT = field(default_factory=DiT)

    def build(self, width: int, roster: Roster) -> OneStepDecoder:
        self.teacher.path.build().check_one_step()
        return OneStepDecoder(self, width, roster)


class OneStepDecoder(ActionDecoder):
    """The teacher, which does not learn, and the student, which acts."""

    def __init__(self, config: OneStep, width: int, roster: Roster) -> None:
        super().__init__()
        self.teacher: DiTDecoder = config.teacher.build(width, roster)
        self.student: DiTDecoder = replace(config.teacher, evaluations=1, guidance=1.0).build(width, roster)
        self.takes_state, self.reads = self.teacher.takes_state, self.teacher.reads

    def bind(self, backbone: Backbone) -> None:
        self.teacher.bind(backbone)
        self.student.bind(backbone)
        self.student.load_state_dict(self.teacher.state_dict())
        self.teacher.requires_grad_(False)

    def adopt(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A denoiser's weights are the teacher's, and where the student starts."""
        if any(name.startswith("teacher.") for name in weights):
            return weights
        return {f"{part}.{name}": tensor for part in ("teacher", "student") for name, tensor in weights.items()}

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"distil": target.label_BTA.sum().float()}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        # Steps past the end of an episode do not exist, for both of them.
        like = ActionSpec(target.spec.embodiment_B, target.label_BTA)
        with torch.no_grad():
            want_BTA = self.teacher.sample(backbone, prefix, like, noise)
        found_BTA = self.student.sample(backbone, prefix, like, noise)
        return make_loss({"distil": ((found_BTA - want_BTA).square(), target.label_BTA)}, {"distil": 1.0})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        return self.student.sample(backbone, prefix, like, noise)

    def resume(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior) -> Tensor:
        return self.student.resume(backbone, prefix, like, noise, prior)
