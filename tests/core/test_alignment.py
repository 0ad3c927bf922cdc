"""Contrastive alignment of words and goal images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.core.test_goals import with_futures
from tests.parts import SOURCES, contents
from vla.alignment import Align
from vla.backbones.base import Hidden, prefix_tokens
from vla.checkpoint import load_model, save_checkpoint
from vla.decoders.base import total_loss
from vla.decoders.parallel import Parallel
from vla.goals import GOAL, told_otherwise, with_goal
from vla.noise import Noise

ALIGN = Align(scale=0.5, width=8)


def hidden(x_BSD):
    return Hidden(prefix_tokens(x_BSD, torch.ones(x_BSD.shape[:2], dtype=torch.bool)), x_BSD, (), (), ())


def test_it_is_clips_symmetric_cross_entropy_over_the_pairs():
    torch.manual_seed(0)
    made = ALIGN.build(6)
    goal, words = torch.randn(5, 3, 6), torch.randn(5, 4, 6)
    by_goal = torch.tensor([True, False, True, False, False])
    paired = torch.tensor([True, True, False, True, True])
    # Rows told by words have the words first.
    longer = F.pad(goal, (0, 0, 0, 1))
    mean = lambda x: x.mean(1)  # noqa: E731
    told = torch.where(by_goal[:, None], mean(goal), mean(words))[:, None]
    other = torch.where(by_goal[:, None], mean(words), mean(goal))[:, None]
    found = made(hidden(told), hidden(other), by_goal, paired)
    z = [F.normalize(made.project(mean(each)[paired]), dim=-1) for each in (goal, words)]
    logits, labels = z[0] @ z[1].T / 0.07, torch.arange(4)
    want = (F.cross_entropy(logits, labels, reduction="sum") + F.cross_entropy(logits.T, labels, reduction="sum")) / 2
    torch.testing.assert_close(found.sum, want) and torch.testing.assert_close(found.weight, torch.tensor(4.0))
    padded = Hidden(prefix_tokens(longer, longer.abs().amax(-1) > 0), longer, (), (), ())
    torch.testing.assert_close(made(padded, hidden(words), by_goal | True, paired).sum, want)  # padding is not averaged in
    alone = made(hidden(told), hidden(other), by_goal, torch.zeros(5, dtype=torch.bool))
    assert alone.sum == 0 and alone.weight == 0


def test_a_sample_is_told_both_ways_whichever_came_first():
    rows = with_futures(40)
    for row in rows:
        told, (other, paired) = with_goal(row, 0.5), told_otherwise(row, 0.5)
        assert paired and (GOAL in told.images) != (GOAL in other.images)
        assert {told.instruction, other.instruction} == {"", row.observation.instruction}
    bare, mute = replace(rows[0], future=None), replace(rows[0], observation=replace(rows[0].observation, instruction=""))
    assert not told_otherwise(bare, 0.5)[1] and not told_otherwise(mute, 0.5)[1]


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    holds = contents(Parallel())
    holds = replace(holds, model=replace(holds.model, align=ALIGN))
    model = holds.build()
    rows = with_futures(8)
    rows[3] = replace(rows[3], future=None)
    return holds, model, replace(holds.collate(model), goal_share=0.5).samples(rows, SOURCES)


def test_the_loss_has_a_part_of_its_own_and_training_pulls_pairs_together(made):
    _, model, batch = made
    noise = Noise(batch.position_B)
    loss, weights = model(batch, noise), model.weights(batch, noise)
    assert set(loss.parts) == set(weights) == {"l1", "align"} and loss.scale["align"] == 0.5
    assert loss.parts["align"].weight == weights["align"] == 7
    first = loss.parts["align"].sum / 7
    assert abs(first - np.log(7)) < 2  # guessing among seven
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        total_loss(model(batch, Noise(batch.position_B, step))).backward()
        assert step or all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert model(batch, noise).parts["align"].sum / 7 < first / 2


def test_a_batch_without_pairs_runs_through_every_parameter_and_adds_nothing(made):
    holds, model, _ = made
    batch = holds.collate(model).samples([replace(row, future=None, action_TA=None) for row in with_futures(3)], SOURCES)
    model.zero_grad(set_to_none=True)
    loss = total_loss(model(batch, Noise(batch.position_B)))
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in model.align.parameters())


def test_a_checkpoint_acts_without_pairs(made, tmp_path):
    holds, model, _ = made
    save_checkpoint(tmp_path / "c", holds, model.state_dict())
    again, loaded = load_model(tmp_path / "c")
    assert again.model.align == ALIGN
    seen = again.collate(loaded).observations([row.observation for row in with_futures(2)])
    assert seen.pair is None and torch.isfinite(loaded.sample(seen, Noise(seen.position_B))).all()
