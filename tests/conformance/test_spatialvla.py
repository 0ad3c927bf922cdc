"""SpatialVLA's grids (`model/action_tokenizer.py`, `scripts/action_config.json`): every one of the 8,194 codes.

Sizes, a hand-worked step and equal shares of the normal: tests/codecs/test_grid.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from vla.presets import preset
from vla.roster import Roster
from vla.types import ActionSpec

STEPS = 2048


def spec(robot: int = 0) -> ActionSpec:
    return ActionSpec(torch.full((1,), robot), torch.ones(1, STEPS, 7, dtype=torch.bool))


def data(scale: float, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    step_NA = rng.normal(0, scale, (STEPS, 7)).clip(-1, 1)
    step_NA[:, 6] = rng.integers(0, 2, STEPS)  # their gripper is 0 or 1
    return torch.from_numpy(step_NA)[None]


@pytest.fixture(scope="module")
def codec():
    made = preset("spatialvla").decoder.codec.build(Roster(("arm", "small"), STEPS, 7, 1))
    made.fit(data(0.3), spec())
    made.fit(data(0.1, seed=1), spec(1))
    return made


def test_edges_are_gaussian_quantiles_of_the_data(codec):
    """get_bin_policy: mean and population deviation of each coordinate; norm.ppf of equal shares between the coordinate's bounds."""
    x, y, z = data(0.3)[0, :, :3].T.numpy()
    parts = (np.arctan2(np.hypot(x, y), z), np.arctan2(y, x), np.sqrt(x**2 + y**2 + z**2))
    bounds, bins = ((0, math.pi), (-math.pi, math.pi), (0, math.sqrt(3))), (16, 32, 8)
    for axis, (part_N, (low, high), count) in enumerate(zip(parts, bounds, bins, strict=True)):
        edge_Q = getattr(codec, f"translation{axis}_EQ")[0].double().numpy()
        share = np.linspace(*norm.cdf([low, high], part_N.mean(), part_N.std()), count + 1)
        np.testing.assert_allclose(edge_Q, norm.ppf(share, part_N.mean(), part_N.std()).clip(low, high), atol=1e-6)


def test_every_code_is_theta_256_phi_8_r_and_decodes_to_its_middle(codec):
    """All 4,096 translations and all 4,096 rotations: id -> indices -> middles -> Cartesian, clipped to the cube; and back by digitize."""
    middle = {name: ((e[1:] + e[:-1]) / 2).double().numpy() for name in _names() if (e := getattr(codec, f"{name}_EQ")[0]) is not None}
    for half in range(2):
        code_N = np.arange(half * STEPS, (half + 1) * STEPS)
        code_BN = torch.from_numpy(np.stack([code_N, 4096 + code_N, 8192 + code_N % 2], axis=1)).reshape(1, -1)
        back_NA = codec.decode(code_BN, spec())[0].double().numpy()
        theta = middle["translation0"][code_N // 256]
        phi, r = middle["translation1"][code_N % 256 // 8], middle["translation2"][code_N % 8]
        sphere_NA = np.stack([r * np.sin(theta) * np.cos(phi), r * np.sin(theta) * np.sin(phi), r * np.cos(theta)], axis=1)
        np.testing.assert_allclose(back_NA[:, :3], sphere_NA.clip(-1, 1), atol=1e-6)
        turns = [middle[f"rotation{axis}"][index] for axis, index in enumerate((code_N // 256, code_N % 256 // 16, code_N % 16))]
        np.testing.assert_allclose(back_NA[:, 3:6], np.stack(turns, axis=1), atol=1e-6)
        np.testing.assert_array_equal(back_NA[:, 6], code_N % 2)
        again_N3 = codec.encode(torch.from_numpy(back_NA)[None], spec())[0].view(STEPS, 3).numpy()
        inside_N = (np.abs(sphere_NA) < 1).all(1)
        np.testing.assert_array_equal(again_N3[inside_N, 0], code_N[inside_N])
        np.testing.assert_array_equal(again_N3[:, 1:], code_BN.view(STEPS, 3).numpy()[:, 1:])
        assert inside_N.mean() > 0.5


def test_embeddings_of_a_new_robots_cells_are_interpolated_at_their_values(codec):
    """Section III-D: an embedding that is linear in a cell's coordinates is carried over exactly, where the old cells enclose the new."""

    def coordinates(robot: int) -> torch.Tensor:
        value = [getattr(codec, f"rotation{axis}_EC")[robot] for axis in range(3)]
        return torch.stack(torch.meshgrid(*value, indexing="ij"), dim=-1).reshape(4096, 3)

    weight_VD = torch.zeros(8194, 3)
    weight_VD[4096:8192] = coordinates(0)
    found_VD = codec.regrid(weight_VD, codec.cells(0), codec.cells(1))
    want_VD = coordinates(1)
    enclosed = (want_VD.abs() <= coordinates(0).amax(0)).all(1)
    assert enclosed.float().mean() > 0.9 and (coordinates(0) - want_VD).abs().max() > 0.05
    torch.testing.assert_close(found_VD[4096:8192][enclosed], want_VD[enclosed], atol=1e-6, rtol=0)


def test_published_settings(codec):
    """4 steps of 3 codes, 8,194 in all."""
    chosen = preset("spatialvla")
    assert (chosen.horizon, codec.length(chosen.horizon, 7), codec.vocabulary) == (4, 12, 8194)


def _names() -> list[str]:
    return [f"{group}{axis}" for group in ("translation", "rotation") for axis in range(3)]
