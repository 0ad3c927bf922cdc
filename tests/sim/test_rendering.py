"""Pictures are upright, and drawing them changes nothing in the physics."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
import pytest

from vla.sim.rendering import Cameras, aim_camera, free_camera

SCENE = """
<mujoco>
  <asset><mesh name="ball" vertex="{vertices}"/></asset>
  <worldbody>
    <light pos="0 -2 3" dir="0 .5 -1"/>
    <camera name="odd" pos="0 -2 .5" quat=".3 .2 .9 .1"/>
    <geom type="sphere" size=".12" pos="0 0 .8" rgba="1 0 0 1"/>
    <geom type="sphere" size=".12" pos="0 0 .2" rgba="0 0 1 1"/>
    <geom type="mesh" mesh="ball" pos="3 0 0" rgba="0 1 0 1"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    points = np.random.default_rng(0).standard_normal((700, 3))  # MuJoCo makes faces of their convex hull
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return mujoco.MjModel.from_xml_string(SCENE.format(vertices=" ".join(f"{x:.4f}" for x in points.ravel())))


def row_of(image: np.ndarray, channel: int) -> float:
    share = image[..., channel].astype(float) - image.max(-1, where=np.arange(3) != channel, initial=0)
    assert share.max() > 50, "the ball is not in the picture"
    return float(np.argwhere(share > 50)[:, 0].mean())


def test_an_aimed_and_a_free_camera_see_what_is_up_above(model: mujoco.MjModel) -> None:
    aim_camera(model, "odd", lookat=(0, 0, 0.5), fovy_deg=40)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    cameras = Cameras(model, {"aimed": "odd", "free": free_camera((0, 0, 0.5), 2.0, 60, -20)}, 64)
    images = cameras.draw(data)
    places = {role: 64 * cameras.places(data, role, np.array([[0, 0, 0.8], [0, 0, 0.2]])) for role in images}
    cameras.close()
    for role, image in images.items():
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert row_of(image, channel=0) < row_of(image, channel=2)
        np.testing.assert_allclose(places[role][:, 1] - 0.5, [row_of(image, 0), row_of(image, 2)], atol=1.0)


def test_coarser_meshes_are_only_drawn(model: mujoco.MjModel) -> None:
    assert model.mesh_facenum[0] > 1000, "the mesh is too small to be coarsened"
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    names = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum", "mesh_vert", "geom_size", "body_mass")
    before = {name: getattr(model, name).copy() for name in names}
    views = {"ball": free_camera((3, 0, 0), 5.0, 0, 0)}
    images = {}
    for size in (64, 200):  # 64 is drawn coarse, 200 as it is
        cameras = Cameras(model, views, size)
        images[size] = cameras.draw(data)["ball"]
        cameras.close()
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(model, name), values)
    green = {size: float((image[..., 1] > image[..., 0] + 50).mean()) for size, image in images.items()}
    assert green[64] == pytest.approx(green[200], rel=0.1) and green[200] > 0.05


def test_camera_sets_share_a_context_and_nothing_else(model: mujoco.MjModel) -> None:
    """Of two models and sizes, drawn in turn, from two threads as well: each picture is the one that it gives alone."""
    other = mujoco.MjModel.from_xml_string(SCENE.format(vertices="0 0 0  1 0 0  0 1 0  0 0 1").replace("1 0 0 1", "1 1 0 1"))
    data = {}
    for each in (model, other):
        data[each] = mujoco.MjData(each)
        mujoco.mj_forward(each, data[each])
    view = {"free": free_camera((0, 0, 0.5), 2.0, 60, -20)}

    def alone(which: mujoco.MjModel, size: int) -> np.ndarray:
        cameras = Cameras(which, view, size)
        picture = cameras.draw(data[which])["free"]
        cameras.close()
        return picture

    want = {(which, size): alone(which, size) for which, size in ((model, 64), (other, 96), (model, 32))}
    assert (want[model, 64][::2, ::2] != want[model, 32]).any() and want[other, 96].std() > 10
    kept = {key: Cameras(key[0], view, key[1]) for key in want}
    for _ in range(2):
        for key, cameras in kept.items():
            np.testing.assert_array_equal(cameras.draw(data[key[0]])["free"], want[key])
    with ThreadPoolExecutor(1) as thread:
        np.testing.assert_array_equal(thread.submit(alone, other, 96).result(), want[other, 96])
    first, *rest = kept
    kept[first].close()
    kept[first].close()  # as often as one likes
    for key in rest:
        np.testing.assert_array_equal(kept[key].draw(data[key[0]])["free"], want[key])
        kept[key].close()
