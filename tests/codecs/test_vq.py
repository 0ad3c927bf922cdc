"""Learned codes: what fitting gains, what stays frozen, and what a new robot changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla.codecs.vq import VQCodes
from vla.errors import UserError
from vla.roster import Roster
from vla.types import ActionSpec

T, A = 8, 3
ROSTER = Roster(("wide", "narrow"), T, A, 1)
QUICK = {"vocabulary": 16, "latent": 8, "width": 32, "fit_steps": 150, "fit_batch": 64, "fit_lr": 5e-3}


def chunks(count: int, robots: tuple[int, ...] = (0, 1), seed: int = 0) -> tuple[torch.Tensor, ActionSpec]:
    """Straight motions towards one of a few goals; the narrow robot has 6 steps of 2 numbers."""
    rng = np.random.default_rng(seed)
    goal_BA = rng.choice([-0.7, 0.7], (count, 1, A)) + rng.normal(0, 0.05, (count, 1, A))
    chunk_BTA = goal_BA * np.linspace(0, 1, T)[None, :, None]
    mask_BTA = torch.ones(count, T, A, dtype=torch.bool)
    robot_B = torch.tensor(robots)[torch.arange(count) % len(robots)]
    mask_BTA[robot_B == 1, 6:], mask_BTA[robot_B == 1, :, 2:] = False, False
    return torch.from_numpy(chunk_BTA).float() * mask_BTA, ActionSpec(robot_B, mask_BTA)


def error_of(codec, chunk_BTA, spec) -> float:
    return float(((codec.decode(codec.encode(chunk_BTA, spec), spec) - chunk_BTA).abs() * spec.mask_BTA).sum() / spec.mask_BTA.sum())


@pytest.mark.thorough
@pytest.mark.parametrize("scales", [(1, 1), (1, 2, 4)])
def test_fitted_codes_say_most_of_a_chunk(scales):
    codec = VQCodes(scales=scales, **QUICK).build(ROSTER)
    with pytest.raises(UserError, match="not fitted"):
        codec.encode(*chunks(2))
    codec.fit(*chunks(400))
    chunk_BTA, spec = chunks(200, seed=1)
    spread = float((chunk_BTA.abs() * spec.mask_BTA).sum() / spec.mask_BTA.sum())
    assert error_of(codec, chunk_BTA, spec) < 0.35 * spread  # saying nothing at all costs the spread
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    dirty_BTA = torch.where(spec.mask_BTA, chunk_BTA, 9.0)
    assert torch.equal(codec.encode(dirty_BTA, spec), codec.encode(chunk_BTA, spec))


def test_places_blocks_and_parents():
    codec = VQCodes(scales=(1, 2, 4)).build(ROSTER)
    assert codec.length(T, A) == 7
    assert codec.blocks(T, A).tolist() == [0, 1, 1, 2, 2, 2, 2]
    assert codec.parents(T, A).tolist() == [-1, 0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_fitting_is_deterministic_and_a_new_robot_leaves_the_codebook():
    first, again = (VQCodes(**QUICK).build(ROSTER) for _ in range(2))
    again.load_state_dict(first.state_dict())
    for codec in (first, again):
        codec.fit(*chunks(200, robots=(0,)))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    known, fresh = chunks(50, robots=(0,), seed=2), chunks(200, robots=(1,), seed=3)
    before, codes = {k: v.clone() for k, v in first.state_dict().items()}, first.encode(*known)
    worse = error_of(first, *fresh)
    first.fit(*fresh)
    changed = {name for name, value in first.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {"fitted_E", "step_in.weight_EIO", "step_in.bias_EO", "step_out.weight_EIO", "step_out.bias_EO"}
    assert torch.equal(first.encode(*known), codes)
    assert error_of(first, *fresh) < 0.6 * worse


def test_a_robot_that_is_not_fitted_is_refused_by_name():
    codec = VQCodes(**{**QUICK, "fit_steps": 2}).build(ROSTER)
    codec.fit(*chunks(8, robots=(0,)))
    known, new = chunks(2, robots=(0,)), chunks(2, robots=(1,))
    assert codec.decode(codec.encode(*known), known[1]).shape == (2, T, A)
    with pytest.raises(UserError, match="VQCodec is not fitted on narrow: train with a source"):
        codec.decode(codec.encode(*new), new[1])
    codec.fit(*new)  # what is known of the buffer is asked anew
    codec.decode(codec.encode(*new), new[1])
    codec.load_state_dict(VQCodes(**QUICK).build(ROSTER).state_dict())
    with pytest.raises(UserError, match="not fitted on wide"):
        codec.decode(torch.zeros(2, 2, dtype=torch.int64), known[1])
