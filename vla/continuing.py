"""From the rest of a chunk, in commands, to what a decoder can continue: normalised actions and how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import e, expm1
from typing import TYPE_CHECKING

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import UserError
from vla.types import Continuation, Observation, Prior

if TYPE_CHECKING:
    from vla.normalize import RobotNormalizer


def soft_weights(horizon: int, frozen: int, rows: int) -> np.ndarray:
    """float64 (horizon,): 1 for the `frozen` steps, then w expm1(w) / (e - 1) with w falling linearly, 0 from row `rows` on.

    Real-time chunking (Black et al. 2025), equation 5; the reference's w = clip((frozen - 1 - i) / (rows - frozen + 1) + 1, 0, 1). Raises
    UserError unless 0 <= frozen <= rows.
    """
    if not 0 <= frozen <= rows:
        raise UserError(f"{frozen} steps are committed of a chunk that has {rows} left; the delay is longer than the chunk")
    step = np.arange(horizon)
    w = np.clip((frozen - 1 - step) / (rows - frozen + 1) + 1, 0, 1)
    return np.where(step < frozen, 1.0, np.where(step < rows, w * np.vectorize(expm1)(w) / (e - 1), 0.0))


def prior_of(
    robots: Mapping[str, Embodiment],
    normalizers: Mapping[str, RobotNormalizer],
    shape: tuple[int, int],
    observations: Sequence[Observation],
    continuations: Sequence[Continuation],
) -> Prior:
    """One row per observation, padded to `shape` (T, A) of the roster; the rest of a chunk relative to where the robot is now."""
    import torch

    T, A = shape
    action_BTA, weight_BT = np.zeros((len(observations), T, A)), np.zeros((len(observations), T))
    for row, (observation, continuation) in enumerate(zip(observations, continuations, strict=True)):
        robot = robots[observation.embodiment]
        command_RA = continuation.command_RA[: robot.horizon]
        if not len(command_RA):
            raise UserError(f"{robot.name}: nothing is left to continue; ask for a chunk without a continuation")
        learned_RA = robot.encode(command_RA, observation.state[-1])
        normal_RA = normalizers[robot.name].action.normalize(learned_RA)
        action_BTA[row, : robot.horizon, : robot.action.size] = normal_RA[-1]  # after its end a chunk counts for nothing; no zeros, though
        action_BTA[row, : len(normal_RA), : robot.action.size] = normal_RA
        weight_BT[row, : robot.horizon] = soft_weights(robot.horizon, continuation.frozen, len(command_RA))
    warm_B = torch.tensor([continuation.warm for continuation in continuations])
    return Prior(torch.from_numpy(action_BTA).float(), torch.from_numpy(weight_BT).float(), warm_B)
