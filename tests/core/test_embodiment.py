from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla.embodiment import (
    Embodiment,
    Field,
    Space,
    convert,
    from_rotation,
    load_embodiment,
    nearest_rotations,
    resample,
    to_rotation,
)
from vla.errors import SchemaError, UnknownName, UserError

UNITS = ["m", "quat_xyzw", "axis_angle", "rot6d"]
SIZES = {"m": 3, "quat_xyzw": 4, "axis_angle": 3, "rot6d": 6}


def random_values(rng, unit, count):
    if unit == "m":
        return rng.normal(size=(count, 3))
    # Angles below pi, where every representation is unique.
    axis = rng.normal(size=(count, 3))
    vector = axis / np.linalg.norm(axis, axis=-1, keepdims=True) * rng.uniform(0, 0.45 * np.pi, size=(count, 1))
    return from_rotation(Rotation.from_rotvec(vector), unit)


def assert_same(a, b, unit):
    if unit == "m":
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    else:
        turn = (to_rotation(a, unit).inv() * to_rotation(b, unit)).magnitude()
        assert turn.max() < 1e-7  # acos near 1 sees half the digits
        np.testing.assert_allclose(a, b, atol=1e-9)


@given(
    st.sampled_from(UNITS),
    st.sampled_from(["absolute", "from_state", "step"]),
    st.sampled_from(["absolute", "from_state", "step"]),
    st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None)
def test_frames_convert_back_and_forth(unit, recorded, learned, seed):
    rng = np.random.default_rng(seed)
    state_space = Space((Field("pose", SIZES[unit], unit),))
    make = lambda frame: Space((Field("pose", SIZES[unit], unit, frame),))  # noqa: E731
    absolute_TA, state_P = random_values(rng, unit, 7), random_values(rng, unit, 1)[0]
    recorded_TA = convert(absolute_TA, make("absolute"), make(recorded), state_P, state_space)
    learned_TA = convert(recorded_TA, make(recorded), make(learned), state_P, state_space)
    back_TA = convert(learned_TA, make(learned), make(recorded), state_P, state_space)
    assert_same(recorded_TA, back_TA, unit)


def test_hand_worked_frames():
    make = lambda frame: Space((Field("x", 1, "m", frame),))  # noqa: E731
    state = Space((Field("x", 1, "m"),))
    absolute_TA = np.array([[1.0], [3.0], [2.0]])
    to = lambda frame: convert(absolute_TA, make("absolute"), make(frame), np.array([0.5]), state)[:, 0].tolist()  # noqa: E731
    assert to("from_state") == [0.5, 2.5, 1.5]
    assert to("step") == [0.5, 2.0, -1.0]


def test_rotation_of_a_quarter_turn_from_state():
    state = Space((Field("q", 4, "quat_xyzw"),))
    start = Rotation.from_euler("x", 90, degrees=True)
    goal = start * Rotation.from_euler("z", 90, degrees=True)
    got = convert(goal.as_quat()[None], state, Space((Field("q", 4, "quat_xyzw", "from_state"),)), start.as_quat(), state)
    np.testing.assert_allclose(Rotation.from_quat(got[0]).as_rotvec(), [0, 0, np.pi / 2], atol=1e-12)


def test_conversion_that_needs_a_missing_state_names_the_fix():
    a, b = Space((Field("x", 1, "m", "absolute"),)), Space((Field("x", 1, "m", "step"),))
    with pytest.raises(SchemaError, match="state field of the same name"):
        convert(np.zeros((2, 1)), a, b, np.zeros(1), Space((Field("y", 1, "m"),)))
    with pytest.raises(SchemaError, match="only frames may differ"):
        convert(np.zeros((2, 1)), a, Space((Field("x", 1, "rad"),)), np.zeros(1), a)
    with pytest.raises(SchemaError, match="NaN"):
        convert(np.full((2, 1), np.nan), a, b, np.zeros(1), a)


@pytest.mark.parametrize("values, match", [([[0, 0, 0, 2.0]], "xyzw"), ([[1, 0, 0, 1, 0, 0.0]], "orthonormal")])
def test_what_is_no_rotation_is_refused(values, match):
    with pytest.raises(SchemaError, match=match):
        to_rotation(np.array(values), "quat_xyzw" if len(values[0]) == 4 else "rot6d")


@pytest.mark.parametrize("unit", ["quat_xyzw", "axis_angle", "rot6d"])
def test_rotations_are_read_from_arrays_that_nobody_may_write(unit):
    values = from_rotation(Rotation.from_rotvec([[0.1, 0.2, 0.3]]), unit)
    values.flags.writeable = False
    np.testing.assert_allclose(to_rotation(values, unit).as_rotvec(), [[0.1, 0.2, 0.3]], atol=1e-12)


@pytest.mark.parametrize("unit", ["quat_xyzw", "rot6d"])
def test_what_is_nearly_a_rotation_becomes_one(unit):
    rng = np.random.default_rng(0)
    space = Space((Field("hand", 3, "m"), Field("turn", {"quat_xyzw": 4, "rot6d": 6}[unit], unit)))
    true = from_rotation(Rotation.random(50, rng=rng), unit)
    rows = np.concatenate([rng.normal(size=(50, 3)), true], axis=1)
    np.testing.assert_allclose(nearest_rotations(rows, space), rows, atol=1e-12)
    said = rows + rng.normal(0, 0.02, rows.shape)
    found = nearest_rotations(said, space)
    np.testing.assert_array_equal(found[:, :3], said[:, :3])
    off = (to_rotation(found[:, 3:], unit) * to_rotation(true, unit).inv()).magnitude()
    assert 0 < off.max() < 0.15  # about twice the numbers' error, in radians
    said[7, 3:] = 0
    with pytest.raises(SchemaError, match="'turn' is no rotation"):
        nearest_rotations(said, space)


def test_resampling_keeps_the_motion_per_second():
    space = Space((Field("x", 1, "m", "step"), Field("grip", 1, "open01")))
    action_TA = np.stack([np.linspace(0.1, 0.4, 12), np.repeat([1.0, 0.0], 6)], -1)
    half = resample(action_TA, space, Fraction(20), Fraction(10), 6)
    np.testing.assert_allclose(half[:, 0].sum(), action_TA[:, 0].sum())
    np.testing.assert_allclose(half[:, 0], action_TA[:, 0].reshape(6, 2).sum(1))
    assert half[:, 1].tolist() == [1, 1, 1, 0, 0, 0]
    double = resample(action_TA, space, Fraction(20), Fraction(40), 24)
    np.testing.assert_allclose(double[:, 0].reshape(12, 2).sum(1), action_TA[:, 0])


def test_a_gripper_is_held_from_its_own_row_on():
    """Row 63 of 7 Hz begins as tick 45 of 5 Hz does; in floats, 45 * 1.4 is a hair less."""
    space, rows = Space((Field("grip", 1, "open01"),)), np.arange(70.0)[:, None]
    for from_hz, to_hz in ((Fraction(7), Fraction(5)), (Fraction(30000, 1001), Fraction(10)), (Fraction(15), Fraction(50))):
        want = [int(tick * from_hz // to_hz) for tick in range(int(69 * to_hz // from_hz))]
        assert resample(rows, space, from_hz, to_hz, len(want))[:, 0].tolist() == want


def test_an_angle_that_goes_round_is_not_taken_back_through_zero():
    """Half way between 3.0 and -3.0 lies pi, for one that turns there and back; joints that do not jump are as they were."""
    space = Space((Field("yaw", 1, "rad"), Field("joint", 1, "rad"), Field("x", 1, "m")))
    action_TA = np.stack([[2.8, 3.0, -3.0, -2.8, 3.1], [5.0, 6.0, 7.0, 8.0, 9.0], [3.0, -3.0, 3.0, -3.0, 3.0]], -1)
    found = resample(action_TA, space, Fraction(10), Fraction(20), 10)
    np.testing.assert_allclose(found[::2], action_TA, atol=1e-12)
    np.testing.assert_allclose(found[1:8:2, 0], [2.9, np.pi, -2.9, -2.8 - (2 * np.pi - 5.9) / 2], atol=1e-12)
    np.testing.assert_allclose(found[1:8:2, 1:], (action_TA[1:, 1:] + action_TA[:-1, 1:]) / 2, atol=1e-12)


def robot(**changes):
    space = Space((Field("x", 2, "m", "step"),))
    base = {
        "name": "r", "cameras": ("third_person",), "state": Space((Field("q", 3, "rad"),)), "command": space, "action": space,
        "rate_hz": Fraction(10), "horizon": 4, "limits": ((-1.0, 1.0), (-1.0, 1.0)),
    }  # fmt: skip
    return Embodiment(**{**base, **changes})


def test_embodiments_refuse_nonsense():
    with pytest.raises(SchemaError, match="limits"):
        robot(limits=((-1.0, 1.0),))
    with pytest.raises(SchemaError, match="only frames"):
        robot(action=Space((Field("x", 2, "rad", "step"),)))
    with pytest.raises(UnknownName, match="Choices"):
        Field("x", 1, "inches")
    with pytest.raises(SchemaError, match="NaN"):
        robot().limit(np.full((1, 2), np.nan))
    assert robot().limit(np.array([[5.0, -5.0]])).tolist() == [[1.0, -1.0]]


@given(st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_pack_and_unpack_are_inverse(count, seed):
    rng = np.random.default_rng(seed)
    space = Space(tuple(Field(f"f{i}", int(rng.integers(1, 5)), "rad") for i in range(count)))
    packed = rng.normal(size=(3, space.size))
    np.testing.assert_array_equal(space.pack(space.unpack(packed)), packed)
    with pytest.raises(SchemaError):
        space.pack({"other": packed})


def test_a_robot_from_a_file_outside_the_package(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from fractions import Fraction\n"
        "from vla.embodiment import Embodiment, Field, Space\n"
        "S = Space((Field('x', 2, 'm', 'step'),))\n"
        "EMBODIMENT = Embodiment('mine', ('wrist',), Space(()), S, S, Fraction(5), 3, ((-1.0, 1.0),) * 2)\n"
    )
    mine = load_embodiment(str(tmp_path / "mine.py"))
    assert Embodiment.from_json(mine.to_json()) == mine
    with pytest.raises(UserError, match="no embodiment file"):
        load_embodiment(str(tmp_path / "other.py"))
    with pytest.raises(UnknownName, match="Choices"):
        load_embodiment("nothing_like_it")
    (tmp_path / "typo.py").write_text("a = 1\nEMBODIMENT = (\n")
    with pytest.raises(UserError, match=r"typo\.py, line 2: no Python: '\(' was never closed"):
        load_embodiment(str(tmp_path / "typo.py"))


def test_a_robot_without_limits_is_learned_from_and_never_moved():
    unknown = robot(limits=None)
    assert Embodiment.from_json(unknown.to_json()) == unknown
    assert unknown.encode(np.zeros((4, 2)), np.zeros(3)).shape == (4, 2)
    with pytest.raises(UserError, match="'r' has no limits.*limits=.*2 numbers"):
        unknown.limit(np.zeros((1, 2)))
