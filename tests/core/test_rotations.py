"""A robot whose learned action holds rotations acts by rotations, although no network's numbers are exactly one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.parts import DECODERS, OFFSETS_S, TINY, observation
from vla.checkpoint import Contents
from vla.embodiment import Embodiment, Field, Space, from_rotation, to_rotation
from vla.execute.ensemble import TemporalEnsemble
from vla.model import Model
from vla.normalize import RobotNormalizer, RobotStats
from vla.policy import Policy

WIDTHS = {"rot6d": 6, "quat_xyzw": 4, "axis_angle": 3}


@pytest.mark.parametrize("frame", ["absolute", "from_state", "step"])
@pytest.mark.parametrize("unit", WIDTHS)
def test_fresh_weights_turn_the_hand_by_rotations(unit, frame):
    command = Space((Field("hand", 3, "m"), Field("turn", WIDTHS[unit], unit)))
    action = Space(tuple(Field(field.name, field.size, field.unit, frame) for field in command.fields))
    robot = Embodiment("arm", ("third_person",), command, command, action, Fraction(10), 4, ((-2.0, 2.0),) * command.size)
    rng = np.random.default_rng(0)
    turns = from_rotation(Rotation.from_rotvec(rng.normal(0, 0.3, (200, 3))), unit)
    rows, stats = np.concatenate([rng.normal(0, 0.1, (200, 3)), turns], axis=1), RobotStats.empty(robot)
    stats.state.update(rows)
    stats.action.update(np.concatenate([robot.encode(rows[i : i + 4], rows[i]) for i in range(190)]))
    holds = Contents(Model(TINY, DECODERS["parallel"]), (robot,), {"arm": RobotNormalizer.fit(stats, robot)}, offsets_s=OFFSETS_S)
    torch.manual_seed(0)
    policy = Policy(holds, holds.build())
    seen = observation(robot, rng)
    seen.state[:] = rows[:2]
    chunks = [policy.act(seen) for key in range(2)]
    for chunk in chunks:
        said = chunk.action_TA[:, 3:]
        again = from_rotation(to_rotation(said, unit), unit)  # refuses what is none
        same = said if unit != "quat_xyzw" else said * np.sign((said * again).sum(-1, keepdims=True))  # q and -q are one rotation
        np.testing.assert_allclose(again, same, atol=1e-6)
    both_KA = np.stack([chunk.action_TA[0] for chunk in chunks])
    mean = to_rotation(TemporalEnsemble().combine(both_KA, robot.command)[None, 3:], unit)
    apart = [(mean.inv() * to_rotation(both_KA[i : i + 1, 3:], unit)).magnitude()[0] for i in range(2)]
    np.testing.assert_allclose(apart[0], apart[1], atol=0.02)  # half-way, but for the decay of the weights
