"""The 256-bin codec against numpy, as OpenVLA's action tokenizer uses it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla.codecs.bins import Bins
from vla.errors import UserError
from vla.roster import Roster
from vla.types import ActionSpec

ROSTER = Roster(("one", "other"), 10, 2, 1)


def spec(mask_BTA, robot=0):
    return ActionSpec(torch.full((len(mask_BTA),), robot), mask_BTA)


def test_codes_and_centres_are_numpys():
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    values = np.concatenate([np.random.default_rng(0).uniform(-1.2, 1.2, 5000), edges, [-1.0, 1.0]])
    want = np.clip(np.digitize(np.clip(values, -1, 1), edges) - 1, 0, 254)
    codec = Bins().build(ROSTER)
    assert codec.vocabulary == 255
    mask = torch.ones(1, len(values), 1, dtype=torch.bool)
    codes = codec.encode(torch.from_numpy(values).view(1, -1, 1), spec(mask))
    assert (codes.numpy()[0] == want).all()
    decoded = codec.decode(codes, spec(mask))[0, :, 0].numpy()
    np.testing.assert_allclose(decoded, centres[want], atol=1e-7)
    inside = np.abs(values) <= 1
    assert np.abs(decoded - values)[inside].max() <= 1 / 255 + 1e-7


def test_every_third_step_interpolates_and_holds_at_a_robots_end():
    codec = Bins(every=3).build(ROSTER)
    ramp = torch.linspace(-0.9, 0.9, 10)[None, :, None].repeat(1, 1, 2)
    ramp[:, 8:, 1] = 0.7  # a narrow robot whose horizon is 8 steps: what stands after them must not matter
    mask = torch.ones(1, 10, 2, dtype=torch.bool)
    mask[:, 8:, 1] = False
    codes = codec.encode(ramp, spec(mask))
    assert codes.shape == (1, codec.length(10, 2)) == (1, 8)
    assert codec.exists(codes, spec(mask)).tolist() == [[True] * 7 + [False]]
    decoded = codec.decode(codes, spec(mask))
    np.testing.assert_allclose(decoded[0, :, 0], ramp[0, :, 0], atol=1 / 255)
    np.testing.assert_allclose(decoded[0, :7, 1], ramp[0, :7, 1], atol=1 / 255)
    assert decoded[0, 7, 1] == decoded[0, 6, 1] and (decoded[0, 8:, 1] == 0).all()


def test_quantile_bins_are_used_equally_and_each_robot_has_its_own():
    rng = np.random.default_rng(1)
    chunk_BTA = torch.from_numpy(np.stack([rng.normal(0, 0.2, (400, 10)), np.sign(rng.normal(size=(400, 10)))], axis=2)).float()
    mask_BTA = torch.ones_like(chunk_BTA, dtype=torch.bool)
    codec = Bins(edges=65, spacing="quantile").build(ROSTER)
    with pytest.raises(UserError, match="not fitted"):
        codec.encode(chunk_BTA, spec(mask_BTA))
    codec.fit(chunk_BTA, spec(mask_BTA, robot=1))
    with pytest.raises(UserError, match="QuantileBins is not fitted on one: train with a source of its actions"):
        codec.decode(codec.encode(chunk_BTA, spec(mask_BTA)), spec(mask_BTA))
    assert (codec.decode(codec.encode(chunk_BTA, spec(mask_BTA)), spec(mask_BTA & False)) == 0).all()  # nothing is asked of it
    codes_BN = codec.encode(chunk_BTA, spec(mask_BTA, robot=1))
    used = np.bincount(codes_BN.view(400, 10, 2)[..., 0].flatten().numpy(), minlength=64)
    assert used.min() >= 61 and used.max() <= 64  # 4,000 values in 64 bins
    back_BTA = codec.decode(codes_BN, spec(mask_BTA, robot=1))
    assert (back_BTA[..., 1] == chunk_BTA[..., 1]).all()  # a gripper's two values come back exactly
    uniform = Bins(edges=65).build(ROSTER)
    error = (back_BTA - chunk_BTA)[..., 0].abs().mean()
    assert error < 0.7 * (uniform.decode(uniform.encode(chunk_BTA, spec(mask_BTA)), spec(mask_BTA)) - chunk_BTA)[..., 0].abs().mean()
    before = codec.value_EAC.clone()
    codec.fit(chunk_BTA * 0.1, spec(mask_BTA, robot=1))
    assert torch.equal(codec.value_EAC, before)  # a fitted robot keeps what its weights were trained with
    codec.fit(chunk_BTA * 0.1, spec(mask_BTA, robot=0))
    assert torch.equal(codec.value_EAC[1], before[1]) and codec.value_EAC[0, 0].abs().max() < 0.11
