"""SpatialVLA's grid: its code numbers, its quantile edges, and what a new robot's cells inherit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from vla.codecs.grid import Grid, cell_means, normal_edges
from vla.errors import UserError
from vla.roster import Roster
from vla.types import ActionSpec

T, A = 4, 7
ROSTER = Roster(("one", "other"), T, A, 1)


def steps(count: int, robot: int = 0, scale: float = 0.3) -> tuple[torch.Tensor, ActionSpec]:
    rng = np.random.default_rng(robot)
    chunk_BTA = np.clip(rng.normal(0, scale, (count, T, A)), -1, 1)
    chunk_BTA[..., 6] = np.where(rng.random((count, T)) < 0.5, -1.0, 1.0)
    return torch.from_numpy(chunk_BTA).float(), ActionSpec(torch.full((count,), robot), torch.ones(count, T, A, dtype=torch.bool))


@pytest.fixture(scope="module")
def codec():
    made = Grid(values="middle").build(ROSTER)
    made.fit(*steps(500))
    made.fit(*steps(500, robot=1, scale=0.1))
    return made


def test_sizes_are_the_published_ones(codec):
    assert codec.vocabulary == 16 * 32 * 8 + 16**3 + 2 == 8194
    assert codec.length(4, 7) == 12
    assert codec.ranges(1, 7).tolist() == [[0, 4096], [4096, 8192], [8192, 8194]]


def test_each_bin_has_the_same_share_of_the_normal():
    edges = normal_edges(0.2, 0.5, (-1.0, 1.0), 16)
    assert edges[0] == -1 and edges[-1] == 1
    np.testing.assert_allclose(np.diff(norm.cdf(edges, 0.2, 0.5)), np.diff(norm.cdf([-1, 1], 0.2, 0.5))[0] / 16, rtol=1e-9)


def test_a_cells_value_is_the_mean_of_what_is_in_it():
    edges = np.array([-1.0, 0.0, 0.5, 1.0])
    found = cell_means(np.array([-0.5, -0.1, 0.0, 0.4, 0.3]), edges, empty=np.array([7.0, 8.0, 9.0]))
    np.testing.assert_allclose(found, [-0.3, (0.0 + 0.4 + 0.3) / 3, 9.0])


def test_a_hand_worked_step(codec):
    """x = 0, y = 0.5, z = 0: theta = phi = pi / 2, r = 0.5; digitize over the inner edges, as the public tokenizer does."""
    step = torch.tensor([0.0, 0.5, 0.0, 0.1, -0.2, 0.3, 1.0]).repeat(1, T, 1)
    spec = steps(1)[1]
    place = []
    for axis, value in enumerate((math.pi / 2, math.pi / 2, 0.5)):
        place.append(np.digitize(value, getattr(codec, f"translation{axis}_EQ")[0].double().numpy()[1:-1]))
    turn = [np.digitize(v, getattr(codec, f"rotation{i}_EQ")[0].double().numpy()[1:-1]) for i, v in enumerate((0.1, -0.2, 0.3))]
    codes = codec.encode(step, spec)[0, :3].tolist()
    assert codes == [
        place[0] * 256 + place[1] * 8 + place[2],
        4096 + turn[0] * 256 + turn[1] * 16 + turn[2],
        8193,
    ]


def test_values_are_the_middles_of_their_cells(codec):
    chunk_BTA, spec = steps(200)
    code_BN = codec.encode(chunk_BTA, spec)
    back_BTA = codec.decode(code_BN, spec)
    assert (codec.encode(back_BTA, spec) == code_BN).float().mean() > 0.99  # a middle at the cube's face may be clipped into another cell
    for axis in range(3):
        edge_Q = getattr(codec, f"rotation{axis}_EQ")[0]
        half_BT = (edge_Q.diff() / 2)[torch.bucketize(chunk_BTA[..., 3 + axis].contiguous(), edge_Q[1:-1].contiguous(), right=True)]
        assert ((back_BTA - chunk_BTA)[..., 3 + axis].abs() <= half_BT + 1e-6).all()
    assert torch.equal(back_BTA[..., 6], chunk_BTA[..., 6])


def test_a_robot_with_smaller_motion_has_smaller_cells_and_so_a_smaller_error():
    errors, codec = [], Grid().build(ROSTER)
    codec.fit(*steps(500)), codec.fit(*steps(500, robot=1, scale=0.1))
    for robot in (0, 1):
        chunk_BTA, spec = steps(300, robot=1, scale=0.1)
        spec = ActionSpec(torch.full_like(spec.embodiment_B, robot), spec.mask_BTA)
        errors.append((codec.decode(codec.encode(chunk_BTA, spec), spec) - chunk_BTA)[..., :6].abs().mean())
    assert errors[1] < 0.7 * errors[0]


def test_embeddings_move_with_the_cells(codec):
    """An embedding that is a linear function of a cell's middle is the same function after re-gridding, inside the old middles."""
    middles = [[getattr(codec, f"rotation{axis}_EC")[robot].double() for axis in range(3)] for robot in (0, 1)]
    weight_VD = torch.zeros(codec.vocabulary, 1, dtype=torch.float64)
    grid = [torch.cartesian_prod(*row) @ torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64) for row in middles]
    weight_VD[4096:8192, 0] = grid[0]
    found = codec.regrid(weight_VD, codec.cells(0), codec.cells(1))[4096:8192, 0]
    inside = torch.stack(
        [(new > old[0]) & (new < old[-1]) for new, old in zip(torch.cartesian_prod(*middles[1]).T, middles[0], strict=True)]
    ).all(0)
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(found[inside], grid[1][inside], atol=1e-6, rtol=1e-6)
    assert torch.equal(codec.regrid(weight_VD, codec.cells(0), codec.cells(1))[8192:], weight_VD[8192:])


def test_arms_without_rotation_and_robots_that_do_not_fit():
    four = Roster(("sawyer",), T, 4, 1)
    codec = Grid(rotation=(), gripper=3).build(four)
    assert codec.vocabulary == 4098 and codec.length(T, 4) == 2 * T
    with pytest.raises(UserError, match="have up to 4"):
        Grid().build(four)
    with pytest.raises(UserError, match="3 or none of rotation"):
        Grid(rotation=(3, 4), gripper=5).build(four)


def test_a_robot_that_is_not_fitted_or_lacks_numbers_is_refused_by_name():
    codec = Grid().build(ROSTER)
    codec.fit(*steps(50))
    chunk_BTA, spec = steps(3, robot=1)
    with pytest.raises(UserError, match="GridCodec is not fitted on other"):
        codec.decode(codec.encode(chunk_BTA, spec), spec)
    spec.mask_BTA[:, :, 4:] = False
    with pytest.raises(UserError, match=r"of 7 numbers; 'other' has 4: give it a policy of its own .*or take a codec"):
        codec.fit(chunk_BTA * spec.mask_BTA, spec)
