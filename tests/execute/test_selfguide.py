"""Self-guidance: the formula, what it leaves alone, and an evaluation with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.execute.test_value import policy
from tests.parts import DECODERS, ROBOTS, TINY, observation, unit_normalizer
from vla.checkpoint import Contents, save_checkpoint
from vla.cli import main
from vla.decoders.dit import DiT
from vla.errors import UserError
from vla.evaluate.result import read_result
from vla.execute.selfguide import SelfGuided
from vla.model import Model
from vla.sim.suites import load_suite

TOY = str(Path(__file__).parents[1] / "evaluate" / "toy_suite.py")


def seen(count: int, seed: int):
    rng = np.random.default_rng(seed)
    return [observation(ROBOTS[1], rng) for _ in range(count)]


def test_with_one_evaluation_chunks_are_extrapolated():
    """A flow's only step is its noise plus the network's output, so that the formula holds for whole chunks: now + w (now - before)."""
    alone = policy(DiT(evaluations=1))
    now, past, keys = seen(4, 0), seen(4, 1), list(range(4))
    with torch.inference_mode():
        now_BTA, past_BTA = alone._sample(now, keys), alone._sample(past, keys)
        found_BTA = SelfGuided(alone, 0.5)._followed(now, keys, [*past[:3], None])
    want_BTA = now_BTA + 0.5 * (now_BTA - past_BTA)
    assert (want_BTA[:3] - now_BTA[:3]).abs().max() > 0.05
    torch.testing.assert_close(found_BTA[:3], want_BTA[:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_BTA[3:], now_BTA[3:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("decoder", ["flow", "ddpm_pooled"])
def test_what_has_not_changed_guides_nowhere(decoder):
    alone, now, keys = policy(DECODERS[decoder]), seen(3, 0), [5, 6, 7]
    own = [chunk.action_TA for chunk in alone.act_batch(now, keys)]
    guided = SelfGuided(alone, 2.0)
    for before in (now, [None] * 3):
        for chunk, want in zip(guided.follow_batch(now, keys, before), own, strict=True):
            np.testing.assert_allclose(chunk.action_TA, want, atol=1e-5)
    other = guided.follow_batch(now, keys, seen(3, 1))
    assert max(np.abs(chunk.action_TA - want).max() for chunk, want in zip(other, own, strict=True)) > 1e-3


def test_only_what_denoises_can_be_guided():
    with pytest.raises(UserError, match="does not denoise"):
        SelfGuided(policy(DECODERS["parallel"]), 0.5)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="a weight above 0"):
            SelfGuided(policy(DECODERS["flow"]), weight)


def test_an_evaluation_hands_on_what_each_episode_saw_last(tmp_path, capsys):
    robot = load_suite(TOY).embodiment
    made = policy(None, Contents(Model(TINY, DiT(evaluations=2)), (robot,), {robot.name: unit_normalizer(robot)}))
    folder = save_checkpoint(tmp_path / "checkpoint", made.contents, made.model.state_dict())
    line = f"eval {folder} --suite {TOY} --tasks hard --episodes 3 --workers 1"
    rows = []
    for number, more in enumerate(("", "--self-guidance 1.5", "--self-guidance 1.5 --slots 1")):
        assert main(f"{line} {more} --json {tmp_path}/{number}.json".split()) == 0
        result = read_result(tmp_path / f"{number}.json")
        rows.append([row.reward for row in result.rows] + [row.steps for row in result.rows])
    assert result.policy["self_guidance"] == 1.5
    assert rows[1] == rows[2]
    capsys.readouterr()
    assert main(f"{line} --self-guidance 1.5 --samples 3 --agree 0.1".split()) == 2
    assert "leave out --samples" in capsys.readouterr().err
    assert main(f"{line} --self-guidance 1.5 --ensemble realtime --probe latency=0.1".split()) == 2
    assert "leave out --ensemble realtime" in capsys.readouterr().err
