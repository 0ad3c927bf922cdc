"""Each word of a card's field, against numbers worked out here and not by the code under test."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla.convert.fields import BadEpisode, compute, openings, rotate, unpack
from vla.convert.raw import RawEpisode
from vla.convert.strict import build
from vla.convert.vocabulary import FieldMap, Gripper, Packed
from vla.embodiment import Field, from_rotation, to_rotation

RNG = np.random.default_rng(3)


def how(**words) -> FieldMap:
    return build(FieldMap, words, "field")


def raw(**columns) -> RawEpisode:
    texts = {name: value for name, value in columns.items() if isinstance(value, list)}
    arrays = {name: np.asarray(value) for name, value in columns.items() if name not in texts}
    steps = len(next(iter(columns.values())))
    return RawEpisode("e", steps, arrays, texts, {})


def value(field: Field, state=None, words=None, **columns) -> np.ndarray:
    mapping = how(**(words or {}))
    mapping.check(field)
    return compute(mapping, field, raw(**columns), state or {})


A = RNG.normal(size=(5, 8))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"slice": [2, 5]}, A[:, 2:5]),
        ({"slice": [-3, None]}, A[:, -3:]),
        ({"index": [7, 0, 1]}, A[:, [7, 0, 1]]),
        ({"slice": [0, 3], "unit": "mm"}, A[:, :3] / 1000),
        ({"slice": [0, 3], "scale": [1, 2, 3], "offset": 0.5}, A[:, :3] * [1, 2, 3] + 0.5),
        ({"slice": [0, 3], "scale": 10, "clip": [-1, 1]}, np.clip(A[:, :3] * 10, -1, 1)),
        ({"slice": [0, 3], "next": True}, A[1:, :3]),
    ],
    ids=str,
)
def test_columns_units_and_affine_maps(words, expected):
    np.testing.assert_allclose(value(Field("x", 3, "m"), words={"from": "a", **words}, a=A), expected, rtol=1e-15)


def test_several_columns_are_joined_and_deep_ones_flattened_row_by_row():
    pose = np.arange(32.0).reshape(2, 4, 4)
    place = value(Field("x", 3, "m"), words={"from": "pose", "index": [3, 7, 11]}, pose=pose)
    np.testing.assert_array_equal(place, pose[:, :3, 3])
    both = value(Field("q", 3, "rad"), words={"from": ["a", "b"], "unit": "deg"}, a=np.array([180.0, 90.0]), b=np.ones((2, 2)) * 360)
    np.testing.assert_allclose(both, [[np.pi, 2 * np.pi, 2 * np.pi], [np.pi / 2, 2 * np.pi, 2 * np.pi]])


def test_differences_and_what_undoes_them():
    steps = value(Field("x", 3, "m", "step"), words={"from": "a", "slice": [0, 3], "difference": True}, a=A)
    np.testing.assert_allclose(A[0, :3] + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, 0)]), A[:, :3], atol=1e-12)
    angle = np.array([3.0, -3.1, -3.0, 3.1])
    wrapped = value(Field("q", 1, "rad", "step"), words={"from": "a", "difference": True, "wrap": True}, a=angle)
    np.testing.assert_allclose(wrapped[:, 0], [2 * np.pi - 6.1, 0.1, 6.1 - 2 * np.pi], atol=1e-12)


TURNS = Rotation.from_rotvec(RNG.normal(size=(6, 3)) * 0.7)


def source_numbers(convention: str) -> np.ndarray:
    """The rotations TURNS as another program would write them."""
    matrix = TURNS.as_matrix()
    if convention.startswith("euler"):
        _, axes, about = convention.split("_")
        return TURNS.as_euler(axes if about == "extrinsic" else axes.upper())
    return {
        "quat_xyzw": TURNS.as_quat(),
        "quat_wxyz": -TURNS.as_quat(scalar_first=True),
        "axis_angle": TURNS.as_rotvec(),
        "matrix": matrix.reshape(-1, 9),
        "rot6d_columns": np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], -1),
        "rot6d_rows": np.concatenate([matrix[:, 0], matrix[:, 1]], -1),
    }[convention]


CONVENTIONS = ["quat_xyzw", "quat_wxyz", "axis_angle", "matrix", "rot6d_columns", "rot6d_rows"]
CONVENTIONS += ["euler_xyz_extrinsic", "euler_xyz_intrinsic", "euler_zyx_intrinsic"]


@pytest.mark.parametrize("unit", ["rot6d", "quat_xyzw", "axis_angle"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_rotation_convention_gives_the_same_rotation(convention, unit):
    turns = to_rotation(rotate(source_numbers(convention), convention, unit), unit)
    assert (turns.inv() * TURNS).magnitude().max() < 1e-7


def test_roll_pitch_yaw_is_extrinsic_xyz():
    # Worked by hand: R = Rz(yaw) Ry(pitch) Rx(roll); a roll of 90 degrees takes y to z, then a yaw of 90 takes x to y.
    r6 = rotate(np.array([[np.pi / 2, 0.0, np.pi / 2]]), "euler_xyz_extrinsic", "rot6d")
    np.testing.assert_allclose(r6[0], [0, 1, 0, 0, 0, 1], atol=1e-12)


def test_what_is_no_rotation_is_refused():
    for convention, numbers in (
        ("quat_xyzw", np.ones((1, 4))),
        ("matrix", np.diag([1.0, 1, -1]).reshape(1, 9)),
        ("matrix", np.arange(9.0).reshape(1, 9)),
        ("rot6d_rows", np.ones((1, 6))),
    ):
        with pytest.raises(BadEpisode) as caught:
            rotate(numbers, convention, "rot6d", "'pose'")
        assert caught.value.cause == "rotation" and "'pose'" in str(caught.value)


def test_degrees_of_euler_angles_are_converted_before_they_are_a_rotation():
    degrees = np.rad2deg(source_numbers("euler_xyz_extrinsic"))
    words = {"from": "a", "rotation": "euler_xyz_extrinsic", "unit": "deg"}
    turns = to_rotation(value(Field("r", 4, "quat_xyzw"), words=words, a=degrees), "quat_xyzw")
    assert (turns.inv() * TURNS).magnitude().max() < 1e-7


def test_a_rotations_difference_composes_back():
    words = {"from": "a", "rotation": "quat_xyzw", "difference": True}
    steps = to_rotation(value(Field("r", 3, "axis_angle", "step"), words=words, a=TURNS.as_quat()), "axis_angle")
    back = TURNS[0]
    for step, after in zip(steps, TURNS[1:], strict=True):
        back = back * step
        assert (back.inv() * after).magnitude() < 1e-9


def test_steps_along_other_axes():
    held = {"r": (Field("r", 6, "rot6d"), from_rotation(TURNS, "rot6d"))}
    along_tool = RNG.normal(size=(6, 3))
    words = {"from": "a", "delta": {"axes": "tool", "by": "r"}}
    base = value(Field("x", 3, "m", "step"), held, words, a=along_tool)
    np.testing.assert_allclose(base, np.einsum("nij,nj->ni", TURNS.as_matrix(), along_tool), atol=1e-12)
    # A recorded dR with R' = dR R is, about the tool's own axes, R^-1 dR R.
    turned = Rotation.from_rotvec(RNG.normal(size=(6, 3)) * 0.1)
    words = {"from": "a", "rotation": "axis_angle", "delta": {"axes": "base", "by": "r"}}
    own = to_rotation(value(Field("r", 3, "axis_angle", "step"), held, words, a=turned.as_rotvec()), "axis_angle")
    assert ((TURNS * own).inv() * (turned * TURNS)).magnitude().max() < 1e-9


def grip(values, **words) -> list[float]:
    return openings(np.array(values, np.float64)[:, None], build(Gripper, words, "gripper"), "'g'")[:, 0].tolist()


def test_openings_by_the_two_ends():
    assert grip([0, 0.25, 1], open=1, closed=0) == [0, 0.25, 1]
    assert grip([0, 0.25, 1], open=0, closed=1) == [1, 0.75, 0]
    assert grip([-1, 0, 1], open=-1, closed=1) == [1, 0.5, 0]
    assert grip([0, 42.5, 85], open=0, closed=85) == [1, 0.5, 0]
    assert grip([-0.5, 2.0], open=1, closed=0, clip=True) == [0, 1]
    with pytest.raises(BadEpisode, match="reaches from 0 to 255; the card says closed 0, open 1") as caught:
        grip([0, 255], open=1, closed=0)
    assert caught.value.cause == "range"
    values = RNG.uniform(0.02, 0.08, 5)
    np.testing.assert_allclose(0.02 + np.array(grip(values, open=0.08, closed=0.02)) * 0.06, values)  # as the page undoes it


def test_binarised_openings_take_the_next_decided_one():
    # Octo's binarize_gripper_actions, by hand: what lies between takes what comes after it.
    ends = {"open": 1, "closed": 0, "binarise": {}}
    assert grip([1, 0.7, 0.3, 0.01, 0.5, 0.97, 0.6], **ends) == [1, 0, 0, 0, 1, 1, 1]
    assert grip([0.4, 0.45], **ends) == [0, 0]
    assert grip([0.2, 0.8], open=1, closed=0, binarise={"above": 0.6, "below": 0.4}) == [0, 1]


def test_commands_that_only_open_or_close_are_remembered():
    # Octo's rel2abs_gripper_actions, by hand: +1 closes, -1 opens; before the first, its opposite; without any, open.
    ends = {"open": -1, "closed": 1, "relative": True}
    assert grip([0, 0, 1, 0, 0.05, -1, 0], **ends) == [1, 1, 0, 0, 0, 1, 1]
    assert grip([0, -0.5, 0], **ends) == [0, 1, 1]
    assert grip([0, 0.1, -0.1], **ends) == [1, 1, 1]


def test_numbers_inside_strings():
    rows = [zlib.compress(row.astype("<f4").tobytes()).decode("utf-8", "surrogateescape") for row in A]
    words = {"from": "a", "packed": {"dtype": "float32", "compression": "zlib"}, "slice": [0, 3]}
    np.testing.assert_array_equal(value(Field("x", 3, "m"), words=words, a=rows), A[:, :3].astype(np.float32))
    bomb = zlib.compress(bytes(50_000_000)).decode("utf-8", "surrogateescape")
    for text, message in ((bomb, "more than"), (rows[0][:-3], "end early"), ("plain", "do not unpack")):
        with pytest.raises(BadEpisode, match=message):
            unpack(text, build(Packed, words["packed"], "packed"))


def test_nothing_is_filled_in():
    with pytest.raises(BadEpisode, match="column 'b' is missing") as caught:
        value(Field("x", 3, "m"), words={"from": "b"}, a=A)
    assert caught.value.cause == "schema"
    with pytest.raises(BadEpisode, match="gives 8 numbers; field 'x' takes 3"):
        value(Field("x", 3, "m"), words={"from": "a"}, a=A)
    with pytest.raises(BadEpisode, match="has 8 numbers"):
        value(Field("x", 3, "m"), words={"from": "a", "index": [8, 0, 1]}, a=A)
    np.testing.assert_array_equal(value(Field("x", 2, "m"), words={"constant": [1, 2], "why": "bolted down"}, a=A[:2]), [[1, 2]] * 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("words", [{}, {"clip": [-1, 1]}, {"gripper": {"open": 1, "closed": 0, "clip": True}}], ids=str)
def test_what_is_not_finite_is_found_before_anything_hides_it(bad, words):
    field = Field("g", 1, "open01") if "gripper" in words else Field("x", 1, "m")
    with pytest.raises(BadEpisode, match="step 2 holds NaN or infinity") as caught:
        value(field, words={"from": "a", **words}, a=np.array([0.0, 0.5, bad, 1.0]))
    assert caught.value.cause == "nonfinite"
