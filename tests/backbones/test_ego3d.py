"""3-D positions of patches: geometry by hand, and what becomes of them in a backbone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.backbones.families import paligemma, prismatic, qwen3, smolvlm
from tests.parts import ROBOTS, contents, observation
from vla.backbones.ego3d import Ego3D, back_project
from vla.backbones.empty import build_empty, count_parameters
from vla.backbones.images import Pixels
from vla.decoders.parallel import Parallel
from vla.errors import SchemaError, UserError
from vla.presets import preset
from vla.types import Geometry

ZOE = {
    "model_type": "zoedepth",
    "backbone_config": {
        "model_type": "beit",
        "image_size": 32,
        "num_hidden_layers": 4,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "use_relative_position_bias": True,
        "reshape_hidden_states": False,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "bottleneck_features": 8,
    "bin_embedding_dim": 8,
    "num_relative_features": 8,
    "num_attractors": [2, 2, 1, 1],
}
K = np.array([[60.0, 0, 33.0], [0, 50.0, 21.0], [0, 0, 1]])
HEIGHT, WIDTH, PATCHES, POINTS = 48, 64, 4, 2


def test_points_lie_on_the_rays_of_their_pixels():
    """SpatialVLA, `backproject_patch`: K^-1 (u, v, 1) depth at the middle of each cell; in a patch, rows of points."""
    rng = np.random.default_rng(0)
    grid = PATCHES * POINTS
    depth = rng.uniform(0.5, 3, (1, grid, grid)).astype(np.float32)
    camera = torch.tensor([[K[0, 0] / WIDTH, K[1, 1] / HEIGHT, K[0, 2] / WIDTH, K[1, 2] / HEIGHT]])
    found, known = back_project(torch.from_numpy(depth), camera, POINTS)
    assert found.shape == (1, PATCHES**2, POINTS**2, 3) and known.all()
    for row in range(grid):
        for column in range(grid):
            u, v = (column + 0.5) * WIDTH / grid, (row + 0.5) * HEIGHT / grid
            want = np.linalg.inv(K) @ (u, v, 1) * depth[0, row, column]
            patch = row // POINTS * PATCHES + column // POINTS
            point = row % POINTS * POINTS + column % POINTS
            np.testing.assert_allclose(found[0, patch, point], want, rtol=1e-5)


def test_unknown_depth_is_its_patchs_mean_and_a_patch_without_any_is_unknown():
    depth = torch.ones(1, 4, 4)
    depth[0, 0, 0], depth[0, 0, 1] = torch.nan, 3.0
    depth[0, 2:, 2:] = torch.tensor([[torch.nan, 0.0], [torch.inf, torch.nan]])
    found, known = back_project(depth, torch.tensor([[1.0, 1, 0.5, 0.5]]), 2)
    assert known.tolist() == [[True, True, True, False]]
    assert found[0, 0, :, 2].tolist() == pytest.approx([5 / 3, 3, 1, 1])
    assert found.isfinite().all()
    assert not back_project(depth, torch.full((1, 4), torch.nan), 2)[1].any()


def test_encoding_is_each_coordinate_with_its_sines_and_cosines():
    """`frequency_encoding`: (x - (0, 0, 2)) / 2, then sin and cos of 2^0 .. 2^7 times it."""
    made = Ego3D().build(PATCHES, 16)
    assert made.head[0].in_features == 3 * 4 * 17
    xyz = np.array([0.3, -0.7, 1.1, 1.9, 0.0, 2.5], dtype=np.float64)
    want = []
    for value, centre in zip(xyz, (0, 0, 2, 0, 0, 2), strict=True):
        x = (value - centre) / 2
        want += [x, *(np.sin(2.0**k * x) for k in range(8)), *(np.cos(2.0**k * x) for k in range(8))]
    np.testing.assert_allclose(made.encode(torch.from_numpy(xyz)[None, None])[0, 0], want, atol=1e-12)


def seen(depth: bool, seed: int = 0):
    obs = observation(ROBOTS[0], np.random.default_rng(seed), side=16)
    rng = np.random.default_rng(seed + 1)
    geometry = {"wrist": Geometry(K / 4, rng.uniform(0.5, 2, (2, 12, 20)).astype(np.float32))} if depth else {}
    return replace(obs, geometry=geometry)


@pytest.mark.parametrize(
    "family", [paligemma, pytest.param(prismatic, marks=pytest.mark.slow), pytest.param(smolvlm, marks=pytest.mark.slow)]
)
def test_depth_moves_the_patches_of_its_camera_alone(family):
    torch.manual_seed(0)
    backbone = family(ego3d=Ego3D(), cameras=("third_person", "wrist")).build().eval()
    plain = family(cameras=("third_person", "wrist")).build().eval()
    left = plain.load_state_dict({k: v for k, v in backbone.state_dict().items() if not k.startswith("ego3d.")})
    assert not left.missing_keys and not left.unexpected_keys
    inputs = backbone.collate([seen(True), seen(False)])
    with torch.no_grad():
        found, want = backbone.embed(inputs).x_BSD, plain.embed(inputs).x_BSD
    moved_BS = (found - want).abs().amax(-1) > 0
    patches = backbone.patches(16, 16)
    wrist = (inputs["patch_BS"][0] >= 2 * patches).nonzero().flatten()
    assert set(moved_BS[0].nonzero().flatten().tolist()) == set(wrist.tolist()) and not moved_BS[1].any()


def test_an_estimator_fills_in_stays_frozen_and_a_row_ignores_its_neighbours(monkeypatch):
    monkeypatch.setattr("vla.backbones.ego3d.ESTIMATOR_SIDE", 32)  # 384 takes seconds
    torch.manual_seed(0)
    config = paligemma(ego3d=Ego3D(estimator=ZOE, assumed=(1.0, 1.0, 0.5, 0.5)), cameras=("third_person", "wrist"))
    backbone = config.build().train()
    assert not backbone.ego3d.estimator.training and not any(p.requires_grad for p in backbone.ego3d.estimator.parameters())
    with torch.no_grad():
        both, alone = (backbone.embed(backbone.collate(rows)).x_BSD for rows in ([seen(True), seen(False, 3)], [seen(False, 3)]))
        torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)
        backbone.ego3d.head[3].bias.fill_(1.0)  # so that every patch that is known moves
        after = backbone.embed(backbone.collate([seen(False, 3)])).x_BSD
    image = backbone.collate([seen(False, 3)])["patch_BS"][0] >= 0
    assert ((after - alone)[0].abs().amax(-1) > 0).equal(image)
    backbone.embed(backbone.collate([seen(True)])).x_BSD.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.ego3d.head.parameters())


def test_the_preset_is_spatialvlas():
    made = build_empty(preset("spatialvla").settings["ego3d"], 16, 1152)  # SigLIP-so400m's grid and width
    linear = lambda width_in, width_out: (width_in + 1) * width_out  # noqa: E731
    assert count_parameters(made.head) == linear(3 * 4 * 17, 1152) + 2 * 1152 + linear(1152, 1152)
    assert count_parameters(made.estimator) / 1e6 == pytest.approx(345, abs=2)  # Intel/zoedepth-nyu-kitti, model card


def test_a_policy_takes_depth_and_refuses_what_is_none():
    holds = contents(Parallel(), paligemma(ego3d=Ego3D()))
    collate = holds.collate(holds.build())
    first = collate.observations([seen(True)]).inputs
    assert first["depth_BVFGG"].isfinite().any() and first["camera_BV4"][0].isfinite().all(1).tolist() == [False, True]
    wrong = {
        "images of": {"left": Geometry(K)},
        r"floats \(2, height, width\)": {"wrist": Geometry(K, np.ones((1, 4, 4)))},
        "in metres, not int64": {"wrist": Geometry(K, np.ones((2, 4, 4), dtype=np.int64))},
        "positive focal lengths": {"wrist": Geometry(np.full((3, 3), np.nan))},
    }
    for message, geometry in wrong.items():
        with pytest.raises(SchemaError, match=message):
            collate.observations([replace(seen(False), geometry=geometry)])


def test_families_without_a_grid_and_images_that_are_not_stretched_are_refused():
    with pytest.raises(UserError, match="no square grid"):
        qwen3(ego3d=Ego3D()).build()
    with pytest.raises(UserError, match="pixels.fit='stretch'"):
        paligemma(ego3d=Ego3D(), pixels=Pixels(fit="letterbox")).build()
    with pytest.raises(UserError, match="not by 'llama'"):
        Ego3D(estimator={"model_type": "llama"}).build(4, 16)
