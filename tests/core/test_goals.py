"""Goal images: the same policy is told by words or by an image, and learns from both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parts import ROBOTS, SOURCES, contents, samples
from vla.decoders.parallel import Parallel
from vla.errors import SchemaError
from vla.goals import GOAL, with_goal
from vla.noise import Noise


def with_futures(count: int):
    rng = np.random.default_rng(5)
    image = lambda: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)  # noqa: E731
    return [replace(s, future={role: image() for role in s.observation.images}) for s in samples(count, unlabelled=False)]


def test_half_of_the_samples_are_told_by_an_image_and_not_by_words():
    rows = [replace(with_futures(1)[0], position=position) for position in range(400)]
    seen = [with_goal(row, 0.5) for row in rows]
    shown = [GOAL in each.images for each in seen]
    assert abs(np.mean(shown) - 0.5) < 0.08
    assert all((each.instruction == "") == goal for each, goal in zip(seen, shown, strict=True))
    goal = next(each for each in seen if GOAL in each.images)
    assert goal.images[GOAL].shape == goal.images["wrist"].shape
    assert np.array_equal(goal.images[GOAL][1], rows[0].future["third_person"])
    assert [with_goal(row, 0.5).instruction for row in rows] == [each.instruction for each in seen]  # a function of the position
    assert with_goal(rows[0], 0.0) is rows[0].observation
    bare = replace(rows[0], future=None)
    assert with_goal(bare, 1.0) is bare.observation


def test_a_policy_learns_from_and_acts_on_goal_images():
    torch.manual_seed(0)
    holds = contents(Parallel())
    model = holds.build()
    collate = replace(holds.collate(model), goal_share=0.5)
    batch = collate.samples(with_futures(8), SOURCES)
    assert batch.inputs["image_BVFHW3"].shape[1] == 3 and 0 < batch.inputs["image_valid_BV"][:, 2].sum() < 8
    loss = model(batch, Noise(batch.position_B))
    assert loss.parts["l1"].sum.isfinite()
    told = with_goal(replace(with_futures(1)[0]), 1.0)
    other = replace(told, images={**told.images, GOAL: 255 - told.images[GOAL]})
    with torch.inference_mode():
        first, second = (model.eval().sample(collate.observations([each]), Noise(torch.zeros(1).long())) for each in (told, other))
    assert not torch.equal(first, second)  # the goal is looked at
    missing = replace(told, images={GOAL: told.images[GOAL]})
    with pytest.raises(SchemaError, match=f"'{ROBOTS[0].name}' has the roles"):
        collate.observations([missing])


def test_a_run_with_a_goal_gap_trains_on_both(tmp_path):
    from tests.train.toy import toy_run, write_shards
    from vla.train.job import assemble

    write_shards(tmp_path)
    job = assemble(toy_run(goal_gap_s=(0.2, 0.5)), tmp_path)
    batch = job.batch(job.train.samples(range(16)))
    assert batch.inputs["image_BVFHW3"].shape[1] == 2 and 0 < batch.inputs["image_valid_BV"][:, 1].sum() < 16
    plain = assemble(toy_run(), tmp_path)
    assert plain.batch(plain.train.samples(range(4))).inputs["image_BVFHW3"].shape[1] == 1
    rows, want = (each.train.samples(range(80)) for each in (job, plain))
    assert [(row.episode, row.step) for row in rows] == [(row.episode, row.step) for row in want]  # also the ends of episodes
    ends = [row for row in rows if row.step == 9]
    assert ends and not any(GOAL in with_goal(row, 1.0).images for row in ends) and all(row.observation.instruction for row in ends)
