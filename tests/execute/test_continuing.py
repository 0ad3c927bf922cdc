"""A policy that continues a chunk: the committed commands come back as they are, in the robot's own frames, on every kind of decoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parts import BACKBONES, DECODERS, ROBOTS, contents, observation
from vla.errors import UserError
from vla.policy import Policy
from vla.types import Continuation


@pytest.fixture(params=["parallel", "tokens", "masked", "flow", "cogact", "latent_flow"], name="policy")
def _policy(request):
    torch.manual_seed(0)
    holds = contents(DECODERS[request.param], BACKBONES["tiny"])
    model = holds.build()
    with torch.no_grad():
        for parameter in model.parameters():  # outputs start at zero, where every start of a denoiser ends
            parameter += 0.05 * torch.randn_like(parameter)
    return Policy(holds, model)


def test_committed_commands_come_back_and_rows_without_a_continuation_are_sampled(policy):
    rng = np.random.default_rng(0)
    robots = [ROBOTS[0], ROBOTS[1], ROBOTS[0]]
    seen = [observation(robot, rng) for robot in robots]
    low_A, high_A = ROBOTS[1].bounds()
    rest = Continuation(rng.uniform(0.9 * low_A, 0.9 * high_A, (ROBOTS[1].horizon - 1, ROBOTS[1].command.size)), frozen=2)
    chunks = policy.continue_batch(seen, [1, 2, 3], [None, rest, None])
    plain = policy.act_batch([seen[0], seen[2]], [1, 3])
    np.testing.assert_allclose(chunks[1].action_TA[:2], rest.command_RA[:2], atol=1e-5)
    for row, chunk in zip((0, 2), plain, strict=True):
        np.testing.assert_array_equal(chunks[row].action_TA, chunk.action_TA)
    assert [chunk.embodiment for chunk in chunks] == [robot.name for robot in robots]
    again = policy.continue_batch([seen[1]], [2], [rest])[0]
    np.testing.assert_allclose(again.action_TA, chunks[1].action_TA, atol=1e-5)  # a row ignores its neighbours


def test_a_warm_start_needs_no_committed_step(policy):
    rng = np.random.default_rng(1)
    robot = ROBOTS[0]
    rest, seen = Continuation(np.zeros((3, robot.command.size)), frozen=0, warm=0.5), observation(robot, rng)
    chunk, cold = policy.continue_batch([seen, seen], [5, 5], [rest, replace(rest, warm=0.0)])
    assert np.isfinite(chunk.action_TA).all()
    assert np.allclose(chunk.action_TA, cold.action_TA, atol=1e-3) == (not hasattr(policy.model.decoder, "path"))  # if nothing denoises


def test_nothing_left_and_too_much_committed_are_refused(policy):
    robot, rng = ROBOTS[0], np.random.default_rng(2)
    seen = observation(robot, rng)
    with pytest.raises(UserError, match="nothing is left to continue"):
        policy.continue_batch([seen], [1], [Continuation(np.zeros((0, robot.command.size)), 0)])
    with pytest.raises(UserError, match="3 steps are committed of a chunk that has 2 left"):
        policy.continue_batch([seen], [1], [Continuation(np.zeros((2, robot.command.size)), 3)])
