"""Proprioceptive forward dynamics: state and latent action -> what the robot was commanded between the frames (villa-X).

Video says what moved in the picture, and much of that is no action. Where robot data with labels is in the mixture, this second
forward model, one head per embodiment, pulls codes towards what moves a robot; rows without labels weigh nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.embodiment import load_embodiment
from vla.errors import SchemaError, UserError
from vla.types import Sample, WeightedSum


class ProprioBatch(NamedTuple):
    """`robot_B`: number of the row's embodiment, -1 for none; `state_BP`, `move_BA`: padded with zeros, in physical units."""

    robot_B: Tensor
    state_BP: Tensor
    move_BA: Tensor


@dataclass(frozen=True)
class Proprio:
    """`robots`: (name, width of its state, width of its action, rate in Hz) of each embodiment that has a head. `scale`: of this
    loss beside the visual one, both being shares of what is left unexplained.

    villa-X (Chen et al. 2025) predicts a chunk of future states and actions; here the mean action between the frames stands for both.
    """

    kind: ClassVar[str] = "latent_action.proprio"
    robots: tuple[tuple[str, int, int, float], ...]
    width: int = 64
    scale: float = 1.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not self.robots or any(len(row) != 4 for row in self.robots):
            raise UserError("proprio: give at least one (robot, width of its state, width of its action, rate_hz)")

    @staticmethod
    def of(*names: str, width: int = 64, scale: float = 1.0) -> Proprio:
        """For built-in embodiments by name."""
        robots = [load_embodiment(name) for name in names]
        return Proprio(tuple((r.name, r.state.size, r.action.size, float(r.rate_hz)) for r in robots), width, scale)

    def build(self, latent: int) -> ProprioForward:
        return ProprioForward(self, latent)


class ProprioForward(nn.Module):
    """One small network per embodiment; moving mean and variance of each robot's numbers make units harmless."""

    mean_RC: Tensor
    square_RC: Tensor
    seen_R: Tensor

    def __init__(self, config: Proprio, latent: int) -> None:
        super().__init__()
        self.config = config
        self.names = [row[0] for row in config.robots]
        self.state_width = max(row[1] for row in config.robots)
        self.action_width = max(row[2] for row in config.robots)
        both = self.state_width + self.action_width
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(self.state_width + latent + 1, config.width), nn.ReLU(), nn.Linear(config.width, self.action_width))
            for _ in config.robots
        )
        self.register_buffer("mean_RC", torch.zeros(len(self.names), both))
        self.register_buffer("square_RC", torch.ones(len(self.names), both))
        self.register_buffer("seen_R", torch.zeros(len(self.names)))

    def collate(self, samples: Sequence[Sample]) -> ProprioBatch:
        """A row's move is the mean of its labelled actions up to the later frame. Rows of robots without a head have none."""
        robot_B = torch.full((len(samples),), -1, dtype=torch.int64)
        state_BP = torch.zeros(len(samples), self.state_width)
        move_BA = torch.zeros(len(samples), self.action_width)
        for row, sample in enumerate(samples):
            name, action_TA = sample.observation.embodiment, sample.action_TA
            if action_TA is None or name not in self.names or not sample.valid_T.any():
                continue
            number = self.names.index(name)
            _, states, actions, rate_hz = self.config.robots[number]
            state_P = sample.observation.state[-1]
            if (len(state_P), action_TA.shape[1]) not in ((states, actions), (0, actions)):
                raise SchemaError(
                    f"'{name}' has {len(state_P)} states and {action_TA.shape[1]} actions; `proprio` says {states}, {actions}"
                )
            labelled_TA = action_TA[sample.valid_T]
            steps = max(1, round(sample.gap_s * rate_hz))
            state_BP[row, : len(state_P)] = torch.from_numpy(np.asarray(state_P, np.float32))
            move_BA[row, :actions] = torch.from_numpy(labelled_TA[:steps].mean(0).astype(np.float32))
            robot_B[row] = number
        return ProprioBatch(robot_B, state_BP, move_BA)

    def forward(self, batch: ProprioBatch, action_BZ: Tensor, gap_B1: Tensor) -> WeightedSum:
        """Squared error of the normalised moves, as a mean over each robot's own dimensions; the weight is the number of such rows."""
        total = action_BZ.new_zeros(())
        for number, (_, _, actions, _) in enumerate(self.config.robots):
            mine_B = batch.robot_B == number
            if self.training:
                self._learn_scale(number, torch.cat([batch.state_BP, batch.move_BA], dim=1)[mine_B])
            spread_C = (self.square_RC[number] - self.mean_RC[number].square()).clamp(min=1e-10).sqrt()
            mean_C, P = self.mean_RC[number], self.state_width
            state_BP = ((batch.state_BP - mean_C[:P]) / spread_C[:P]).clamp(-5, 5)
            want_BA = ((batch.move_BA - mean_C[P:]) / spread_C[P:]).clamp(-5, 5)
            pred_BA = self.heads[number](torch.cat([state_BP, action_BZ, gap_B1], dim=1))
            # Every head runs on every row, with weight 0 where it is not its robot: all ranks then run the same modules.
            error_B = F.mse_loss(pred_BA[:, :actions], want_BA[:, :actions], reduction="none").mean(1)
            total = total + (error_B * mine_B).sum()
        return WeightedSum(total, (batch.robot_B >= 0).sum().to(total.dtype))

    @torch.no_grad()
    def _learn_scale(self, number: int, values_MC: Tensor) -> None:
        if not len(values_MC):
            return
        # The first batches count fully, later ones by the decay: an average from the first step on.
        share = max(1 - self.config.decay, 1 / (float(self.seen_R[number]) + 1))
        self.mean_RC[number].lerp_(values_MC.mean(0), share)
        self.square_RC[number].lerp_(values_MC.square().mean(0), share)
        self.seen_R[number] += 1
