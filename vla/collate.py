"""Samples or observations -> batch. One path for training and for serving, so both give a model identical tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vla.backbones.prompts import clean
from vla.embodiment import Embodiment
from vla.errors import SchemaError, StatsMissing
from vla.goals import GOAL, told_otherwise, with_goal
from vla.normalize import RobotNormalizer
from vla.reasoning import text_ids
from vla.roster import Roster
from vla.types import ActionSpec, Batch, Observation, Pair, Sample, Target


@dataclass(frozen=True)
class Collate:
    """`inputs`: the backbone's own collate. `normalizers`: per robot, stored by value in the checkpoint. `codes`: latent codes per
    sample that the decoder wants (0: none). `text`: tokens of reasoning that it says (0: none). `goal_share`: of the samples with a
    `future`, which are told what to do by that image instead of words (vla/goals.py). `pairs`: see each sample told the other way too.
    `state_in_words`: the instruction goes on with the newest state (`state_words`). `unseen`: observations have no images, and need none:
    what a backbone makes of them is known (vla/train/features.py)."""

    embodiments: tuple[Embodiment, ...]
    normalizers: Mapping[str, RobotNormalizer]
    inputs: Callable[[Sequence[Observation]], dict[str, Tensor]]
    codes: int = 0
    text: int = 0
    goal_share: float = 0.0
    pairs: bool = False
    state_in_words: bool = False
    unseen: bool = False

    def __post_init__(self) -> None:
        for robot in self.embodiments:
            if robot.name not in self.normalizers:
                raise StatsMissing(
                    f"no statistics for '{robot.name}'; there are some for {sorted(self.normalizers)}. Run `vla stats` on its data."
                )
            self.normalizers[robot.name].check(robot)

    @property
    def roster(self) -> Roster:
        """Of its embodiments."""
        return Roster.of(self.embodiments)

    def observations(self, observations: Sequence[Observation]) -> Batch:
        """What a policy acts on; no target."""
        roster = self.roster
        robots = [self.embodiments[roster.index(obs.embodiment)] if obs.embodiment else None for obs in observations]
        for obs in observations:
            _check(obs)
        observations = [_ordered(obs, robot) if robot and not self.unseen else obs for obs, robot in zip(observations, robots, strict=True)]
        B, F = len(observations), len(observations[0].offsets_s)
        state_BFP = np.zeros((B, F, roster.state_width), dtype=np.float32)
        state_mask_BP = np.zeros((B, roster.state_width), dtype=bool)
        mask_BTA = np.zeros((B, roster.horizon, roster.action_width), dtype=bool)
        for row, (obs, robot) in enumerate(zip(observations, robots, strict=True)):
            if robot is None:  # video of no robot (people, say): nothing to normalise, no action exists
                continue
            mask_BTA[row, : robot.horizon, : robot.action.size] = True
            if obs.state.shape[-1] == 0:  # video of a robot: no proprioception was recorded
                continue
            robot.state.check(obs.state, f"{robot.name} state")
            state_BFP[row, :, : robot.state.size] = self.normalizers[robot.name].state.normalize(obs.state)
            state_mask_BP[row, : robot.state.size] = True
            if self.state_in_words:
                spoken = f"{clean(obs.instruction)}, State: {state_words(state_BFP[row, -1, : robot.state.size])}"
                observations[row] = replace(obs, instruction=spoken)
        index_B = np.array([roster.index(robot.name) if robot else 0 for robot in robots], dtype=np.int64)
        return Batch(
            inputs={} if self.unseen else self.inputs(observations),
            state_BFP=torch.from_numpy(state_BFP),
            state_mask_BP=torch.from_numpy(state_mask_BP),
            spec=ActionSpec(torch.from_numpy(index_B), torch.from_numpy(mask_BTA)),
            target=None,
            source_B=torch.zeros(B, dtype=torch.int64),
            position_B=torch.zeros(B, dtype=torch.int64),
        )

    def samples(self, samples: Sequence[Sample], sources: Mapping[str, int]) -> Batch:
        """A training batch. `sources`: index of each source's name, for the books."""
        batch = self.observations([with_goal(sample, self.goal_share) for sample in samples])
        mask_BTA = batch.spec.mask_BTA.numpy()
        action_BTA = np.zeros(mask_BTA.shape, dtype=np.float32)
        label_BTA = np.zeros(mask_BTA.shape, dtype=bool)
        latent_BN = np.zeros((len(samples), self.codes), dtype=np.int64)
        has_latent_B = np.zeros(len(samples), dtype=bool)
        robots = {robot.name: robot for robot in self.embodiments}
        for row, sample in enumerate(samples):
            if sample.action_TA is not None:
                robot = robots[sample.observation.embodiment]
                want = (robot.horizon, robot.action.size)
                if sample.action_TA.shape != want:
                    raise SchemaError(f"{sample.episode}: actions of shape {sample.action_TA.shape}; '{robot.name}' has {want}")
                normal_TA = self.normalizers[robot.name].action.normalize(sample.action_TA)
                action_BTA[row, : want[0], : want[1]] = normal_TA
                label_BTA[row, : want[0], : want[1]] = sample.valid_T[:, None]
            if sample.latent_N is not None and self.codes:
                if sample.latent_N.shape != (self.codes,):
                    raise SchemaError(f"{sample.episode}: {len(sample.latent_N)} latent codes; the decoder predicts {self.codes}")
                latent_BN[row], has_latent_B[row] = sample.latent_N, True
        target = Target(
            torch.from_numpy(action_BTA),
            torch.from_numpy(label_BTA),
            batch.spec,
            torch.from_numpy(latent_BN),
            torch.from_numpy(has_latent_B),
            torch.from_numpy(text_ids([sample.reasoning for sample in samples], self.text)) if self.text else None,
        )
        return Batch(
            batch.inputs,
            batch.state_BFP,
            batch.state_mask_BP,
            batch.spec,
            target,
            source_B=torch.tensor([sources[sample.source] for sample in samples]),
            position_B=torch.tensor([sample.position for sample in samples]),
            pair=self._pair(samples) if self.pairs else None,
        )

    def _pair(self, samples: Sequence[Sample]) -> Pair:
        others, paired = zip(*(told_otherwise(sample, self.goal_share) for sample in samples), strict=True)
        by_goal = [GOAL in with_goal(sample, self.goal_share).images for sample in samples]
        return Pair(self.observations(others).inputs, torch.tensor(by_goal), torch.tensor(paired))


def _check(obs: Observation) -> None:
    """Shapes and types that no backbone has to think of, and numbers that a mask could hide. A state is its robot's to check."""
    frames = len(obs.offsets_s)
    if not np.isfinite(obs.offsets_s).all():
        raise SchemaError(f"the times of the frames must be finite seconds, not {obs.offsets_s}")
    for role, pixels in obs.images.items():
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != frames or pixels.shape[-1] != 3:
            raise SchemaError(f"camera '{role}': images must be uint8 ({frames}, height, width, 3), not {pixels.dtype} {pixels.shape}")
    if set(obs.geometry) - set(obs.images):
        raise SchemaError(f"geometry of {sorted(set(obs.geometry) - set(obs.images))} given; there are images of {sorted(obs.images)}")
    for role, known in obs.geometry.items():
        if known.depth is not None and (known.depth.ndim != 3 or len(known.depth) != frames or known.depth.dtype.kind != "f"):
            raise SchemaError(
                f"camera '{role}': depth must be floats ({frames}, height, width) in metres, not {known.depth.dtype} {known.depth.shape}"
            )
        K = known.intrinsics
        if K is not None and not (K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0):
            raise SchemaError(f"camera '{role}': intrinsics must be a finite (3, 3) matrix with positive focal lengths")


def state_words(normal_P: np.ndarray) -> str:
    """Normalised numbers as 0..255 in words, -1 below -1 (openpi, `models/tokenizer.py`: the state of pi0.5 and pi0-FAST)."""
    return " ".join(map(str, np.digitize(normal_P, np.linspace(-1, 1, 256 + 1)[:-1]) - 1))


def _ordered(obs: Observation, robot: Embodiment) -> Observation:
    """Cameras in the robot's order, whatever the order they came in, then a goal image if there is one; other roles are an error."""
    if set(obs.images) - {GOAL} != set(robot.cameras):
        raise SchemaError(f"cameras {sorted(obs.images)} given; '{robot.name}' has the roles {sorted(robot.cameras)}")
    return replace(obs, images={role: obs.images[role] for role in (*robot.cameras, GOAL) if role in obs.images})
