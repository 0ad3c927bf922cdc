"""Policies composed by their scores: what a weight of nearly one gives, and what does not fit together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parts import DECODERS, ROBOTS, TINY, contents, observation
from vla.decoders.dit import DiT
from vla.diffusion.ddpm import DDPM
from vla.errors import SchemaError, UnknownName, UserError
from vla.execute.compose import Composed
from vla.fused import Share
from vla.normalize import Normalizer
from vla.policy import Policy
from vla.types import Continuation


def policy(decoder, seed=0, holds=None):
    torch.manual_seed(seed)
    holds = holds or contents(decoder, TINY)
    return Policy(holds, holds.build())


@pytest.fixture(name="seen", scope="module")
def _seen():
    rng = np.random.default_rng(0)
    return [observation(ROBOTS[0], rng), observation(ROBOTS[1], rng)]


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_of_one_policy_twice_it_is_that_policy(name, seen):
    one = policy(DECODERS[name])
    both = Composed([one, one], [0.3, 0.7])
    for a, b in zip(both.act_batch(seen, [1, 2]), one.act_batch(seen, [1, 2]), strict=True):
        np.testing.assert_allclose(a.action_TA, b.action_TA, atol=1e-5)


def test_optimized_it_is_optimized_in_all_its_parts(seen):
    made = [policy(DECODERS["flow_cross"], seed) for seed in (0, 1)]
    before = Composed(made, [0.5, 0.5]).act_batch(seen, [1, 2])
    after = Composed(made, [0.5, 0.5]).optimize_for_inference().act_batch(seen, [1, 2])
    assert all(any(isinstance(module, Share) for module in each.model.modules()) for each in made)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a.action_TA, b.action_TA, atol=1e-5)


def test_it_lies_between_and_nears_the_heavier(seen):
    """Linear in the weights only at one evaluation of a flow: there the sample is the weighted mean of both."""
    one, two = (policy(replace(DECODERS["flow"], evaluations=1), seed) for seed in (0, 1))
    mixed = Composed([one, two], [0.25, 0.75]).act_batch(seen, [1, 2])
    for a, b, c in zip(mixed, one.act_batch(seen, [1, 2]), two.act_batch(seen, [1, 2]), strict=True):
        inside = (np.abs(b.action_TA) < 1) & (np.abs(c.action_TA) < 1)  # where limits cut neither
        assert inside.any()
        np.testing.assert_allclose(a.action_TA[inside], (0.25 * b.action_TA + 0.75 * c.action_TA)[inside], atol=1e-5)


def test_other_conditionings_compose_and_continue(seen):
    both = Composed([policy(DECODERS["flow"]), policy(DECODERS["flow_cross"], 1)], [0.5, 0.5])
    rest = Continuation(np.full((3, ROBOTS[0].command.size), 0.25), frozen=2)
    chunk = both.continue_batch(seen[:1], [1], [rest])[0]
    np.testing.assert_allclose(chunk.action_TA[:2], 0.25, atol=1e-6)


def test_each_sees_by_the_cameras_of_its_own(seen):
    """One by both, the other by one of them: given all that there is, each acts on what it was trained with."""
    (observed,) = seen[:1]
    holds = contents(DECODERS["flow"], TINY)
    shown = observed.images.keys() - {next(iter(observed.images))}
    blind = [replace(robot, cameras=tuple(shown)) if robot.name == observed.embodiment else robot for robot in holds.embodiments]
    one, two = policy(DECODERS["flow"]), policy(None, 1, replace(holds, embodiments=tuple(blind)))
    mostly = Composed([one, two], [1e-6, 1 - 1e-6]).act(observed)
    alone = two.act(replace(observed, images={role: observed.images[role] for role in shown}))
    np.testing.assert_allclose(mostly.action_TA, alone.action_TA, atol=1e-3)
    more = replace(observed, images={**observed.images, "third": observed.images[next(iter(shown))]})
    with pytest.raises(SchemaError, match=r"\['third'\] given, by which none"):
        Composed([one, two], [0.5, 0.5]).act(more)
    with pytest.raises(SchemaError, match="has the roles"):  # one of them misses a camera
        Composed([one, two], [0.5, 0.5]).act(replace(observed, images={role: observed.images[role] for role in shown}))
    with pytest.raises(UnknownName, match="nobody"):
        Composed([one, two], [0.5, 0.5]).act(replace(observed, embodiment="nobody"))


@pytest.mark.parametrize("decoder", [DECODERS["flow"], DiT(path=DDPM(steps=20), evaluations=3)], ids=["flow", "ddpm"])
def test_it_starts_warm_as_one_policy_does(decoder, seen):
    one = policy(decoder)
    both = Composed([one, one], [0.3, 0.7])
    rest = [Continuation(np.full((3, robot.command.size), 0.25), frozen=1, warm=0.75) for robot in ROBOTS[:2]]
    cold = [replace(each, warm=0.0) for each in rest]
    warm = one.continue_batch(seen, [1, 2], rest)
    for a, b, c in zip(both.continue_batch(seen, [1, 2], rest), warm, one.continue_batch(seen, [1, 2], cold), strict=True):
        np.testing.assert_allclose(a.action_TA, b.action_TA, atol=1e-5)
        assert not np.allclose(b.action_TA, c.action_TA, atol=1e-2)


def test_it_is_no_checkpoint(tmp_path):
    both = Composed([policy(DECODERS["flow"])], [1.0])
    for save in (lambda: both.save_pretrained(tmp_path / "both"), lambda: both.push_to_hub("owner/name")):
        with pytest.raises(UserError, match="several checkpoints and their weights"):
            save()
    assert not (tmp_path / "both").exists()


def test_what_does_not_fit_is_refused(seen):
    one = policy(DECODERS["flow"])
    for weights in ([1.0], [0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(UserError, match="positive weights that sum to 1"):
            Composed([one, one], weights)
    with pytest.raises(UserError, match="does not denoise"):
        Composed([policy(DECODERS["parallel"])], [1.0]).act_batch(seen, [1, 2])
    with pytest.raises(UserError, match="no common noise level"):
        Composed([one, policy(DiT(path=DDPM(steps=20), evaluations=4))], [0.5, 0.5]).act_batch(seen, [1, 2])
    holds = contents(DECODERS["flow"], TINY)
    other = Normalizer.from_json(holds.normalizers["narrow"].action.to_json() | {"scale": [2.0, 2.0]})
    narrow = replace(holds.normalizers["narrow"], action=other)
    holds = replace(holds, normalizers={**holds.normalizers, "narrow": narrow})
    with pytest.raises(UserError, match="policy 2 differs from the first in normalisers"):
        Composed([one, policy(None, 1, holds)], [0.5, 0.5])
