"""One way into the model: P7 (training and serving see identical tensors), and refusals that name the fix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parts import DECODERS, ROBOTS, SOURCES, contents, observation, samples, unit_normalizer
from vla.collate import Collate
from vla.errors import SchemaError, StatsMissing, UnknownName
from vla.noise import Noise
from vla.normalize import StatsKey


@pytest.fixture
def collate():
    holds = contents(DECODERS["latent"])
    return holds.collate(holds.build())


def test_p7_training_and_serving_give_identical_tensors(collate):
    rows = samples(5)
    trained, served = collate.samples(rows, SOURCES), collate.observations([row.observation for row in rows])
    for name, tensor in trained.inputs.items():
        assert torch.equal(tensor, served.inputs[name]), name
    assert torch.equal(trained.state_BFP, served.state_BFP) and torch.equal(trained.state_mask_BP, served.state_mask_BP)
    assert torch.equal(trained.spec.mask_BTA, served.spec.mask_BTA)


def test_targets_are_normalised_masked_and_zero_elsewhere(collate):
    rows = samples(8)
    target = collate.samples(rows, SOURCES).target
    assert not target.label_BTA[3].any() and not target.label_BTA[7].any()  # video
    assert target.has_latent_B.tolist() == [False, True] * 4
    assert target.label_BTA[0].sum() == 2 * 2  # an episode that ends after two steps, two numbers wide
    assert (target.action_BTA[~target.spec.mask_BTA] == 0).all()
    np.testing.assert_allclose(target.action_BTA[1, :3].numpy(), rows[1].action_TA, rtol=1e-6)


def test_camera_order_does_not_matter_but_roles_do(collate):
    one = observation(ROBOTS[0], np.random.default_rng(0))
    swapped = replace(one, images=dict(reversed(one.images.items())))
    a, b = collate.observations([one]), collate.observations([swapped])
    assert torch.equal(a.inputs["image_BVFHW3"], b.inputs["image_BVFHW3"])
    with pytest.raises(SchemaError, match=r"has the roles \['third_person', 'wrist'\]"):
        collate.observations([replace(one, images={"front": one.images["wrist"]})])


def test_wrong_widths_robots_and_numbers_are_refused(collate):
    one = samples(1)[0]
    with pytest.raises(SchemaError, match="actions of shape"):
        collate.samples([replace(one, action_TA=np.zeros((4, 3)))], SOURCES)
    with pytest.raises(UnknownName, match="Choices: narrow, wide"):
        collate.observations([replace(one.observation, embodiment="other")])
    with pytest.raises(SchemaError, match="NaN"):
        collate.observations([replace(one.observation, state=np.full((2, 3), np.nan))])
    with pytest.raises(SchemaError, match="the last axis must be 3"):
        collate.observations([replace(one.observation, state=np.zeros((2, 4)))])


def test_statistics_of_another_horizon_are_refused():
    of = ROBOTS[0]
    good = unit_normalizer(of)
    with pytest.raises(StatsMissing, match="Run `vla stats`"):
        Collate((of,), {}, lambda rows: {})
    with pytest.raises(StatsMissing, match="needed for"):
        Collate((of,), {of.name: replace(good, key=replace(StatsKey.of(of), horizon=9))}, lambda rows: {})


def test_video_of_no_robot_is_seen_and_has_no_actions(collate):
    """People, say: any camera roles, no state, no actions; it can still teach latent codes."""
    one = samples(2)[1]
    person = replace(one.observation, embodiment="", state=np.zeros((2, 0)), images={"head": one.observation.images["wrist"]})
    batch = collate.samples([replace(one, observation=person, action_TA=None, valid_T=np.zeros(0, bool)), one], SOURCES)
    assert not batch.spec.mask_BTA[0].any() and not batch.target.label_BTA[0].any() and not batch.state_mask_BP[0].any()
    assert batch.target.has_latent_B.tolist() == [True, True]
    assert batch.inputs["image_valid_BV"].tolist() == [[True, False], [True, True]]
    holds = contents(DECODERS["latent"])
    loss = holds.build()(batch, Noise(batch.position_B))
    assert torch.isfinite(loss.parts["latent"].sum) and loss.parts["latent"].weight == 4
