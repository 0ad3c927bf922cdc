"""Nothing but fresh, finite, slow enough commands within the robot's own limits leaves the guard."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_client import Guard, Limits, Stale, Unsafe

LIMITS = Limits(low=(-1.0, 0.0), high=(1.0, 1.0), max_change_per_s=(1.0, math.inf))
RATE_HZ = 10.0


def guard(start=(0.0, 0.0)) -> Guard:
    made = Guard(LIMITS, rate_hz=RATE_HZ, max_age_s=1.0, max_chunk=8)
    made.start(start)
    return made


def ramp(rows=6) -> np.ndarray:
    return np.stack([0.05 * np.arange(rows), np.linspace(0, 1, rows)], axis=1)


def test_rows_are_played_by_the_clock():
    one = guard()
    one.admit(ramp(), observed_s=5.0, now_s=5.1)
    assert np.array_equal(one.command(5.1), ramp()[1])
    assert np.array_equal(one.command(5.15), ramp()[1])
    assert np.array_equal(one.command(5.2), ramp()[2])
    assert np.array_equal(one.command(5.4), ramp()[4])  # one tick was missed


def test_it_ends_with_the_chunk_and_never_replays_it():
    one = guard()
    one.admit(ramp(), observed_s=5.0, now_s=5.0)
    with pytest.raises(Stale, match="over"):
        one.command(5.6)
    with pytest.raises(Stale, match="no chunk"):
        one.command(5.1)


def test_it_goes_stale_even_inside_the_chunk():
    made = Guard(LIMITS, rate_hz=RATE_HZ, max_age_s=0.25, max_chunk=8)
    made.start((0.0, 0.0))
    made.admit(ramp(), observed_s=5.0, now_s=5.0)
    made.command(5.2)
    with pytest.raises(Stale):
        made.command(5.3)


def test_a_lost_server_stops_it_at_once():
    one = guard()
    one.admit(ramp(), observed_s=5.0, now_s=5.0)
    one.stop()
    with pytest.raises(Stale):
        one.command(5.1)


def bad(row, column, value):
    actions = ramp()
    actions[row, column] = value
    return actions


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (bad(3, 0, math.nan), r"\(3, 0\) is not finite"),
        (bad(3, 1, math.inf), r"\(3, 1\) is not finite"),
        (bad(5, 1, 1.01), r"\(5, 1\) is 1.01; allowed is 0 to 1"),
        (bad(4, 0, 0.9), "change by 7.* per second"),
        (ramp() + [0.5, 0], "change by 5 per second, 0 rows from now"),
        (ramp()[:, :1], "shape"),
        (ramp()[0], "shape"),
        (ramp(9), "shape"),
        (ramp()[:0], "shape"),
        (ramp().astype(object), "type object"),
        (ramp().astype(str), "type <U"),
        ("actions", "type <U"),
        (None, "type object"),
    ],
)
def test_an_unsafe_chunk_is_refused_whole_and_the_one_before_goes_on(actions, expected):
    one = guard()
    one.admit(ramp(), observed_s=4.9, now_s=5.0)
    with pytest.raises(Unsafe, match=expected):
        one.admit(actions, observed_s=5.0, now_s=5.0)
    assert np.array_equal(one.command(5.0), ramp()[1])


@pytest.mark.parametrize(
    ("observed_s", "now_s", "expected"),
    [
        (5.0, 6.01, "old"),
        (5.0, 4.99, "old"),  # from the future: the clocks differ
        (5.0, 5.6, "before now"),
        (4.0, 4.5, "not newer"),
        (4.5, 4.9, "not newer"),
        (math.nan, 5.0, "old"),
    ],
)
def test_a_stale_or_reordered_observation_is_refused(observed_s, now_s, expected):
    one = guard()
    one.admit(ramp(), observed_s=4.5, now_s=4.5)
    with pytest.raises(Unsafe, match=expected):
        one.admit(ramp(), observed_s=observed_s, now_s=now_s)


def test_nothing_moves_before_the_robot_said_where_it_is():
    made = Guard(LIMITS, rate_hz=RATE_HZ, max_age_s=1.0, max_chunk=8)
    with pytest.raises(Unsafe, match="start"):
        made.admit(ramp(), observed_s=5.0, now_s=5.0)
    with pytest.raises(Unsafe, match="2 finite numbers"):
        made.start((0.0, math.nan))


def test_rounding_of_float32_is_clipped_not_refused():
    one = guard(start=(1.0, 0.0))
    actions = np.full((3, 2), 1.0) + [2e-7, 1e-7]
    one.admit(actions, observed_s=5.0, now_s=5.0)
    assert np.array_equal(one.command(5.0), [1.0, 1.0])


def test_a_jump_after_a_long_gap_in_the_loop_is_refused():
    one = guard()
    steep = np.stack([0.1 * np.arange(8), np.zeros(8)], axis=1)
    one.admit(steep, observed_s=5.0, now_s=5.0)
    one.command(5.0)
    with pytest.raises(Unsafe, match="number 0 would change"):
        one.command(5.5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_offered_no_command_breaks_a_limit(data):
    one, last, clock_s = guard(), np.zeros(2), 0.0
    values = st.floats(-1.5, 1.5) | st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.05, 0.0])
    for _ in range(8):
        clock_s += data.draw(st.sampled_from([0.1, 0.1, 0.2, 0.05]))
        shape = data.draw(st.sampled_from([(1, 2), (3, 2), (8, 2), (9, 2), (3, 1), (3,)]))
        with contextlib.suppress(Unsafe):
            one.admit(data.draw(hnp.arrays(np.float64, shape, elements=values)), observed_s=clock_s - 0.05, now_s=clock_s)
        try:
            command = one.command(clock_s)
        except (Stale, Unsafe):
            continue
        assert np.isfinite(command).all()
        assert (command >= [-1.0, 0.0]).all() and (command <= [1.0, 1.0]).all()
        assert abs(command[0] - last[0]) <= 0.2 + 1e-5  # two periods at most, at 1 per second and 10 Hz
        last = command


@pytest.mark.parametrize(
    "fields",
    [
        {"low": (0.0,), "high": (1.0, 1.0), "max_change_per_s": (1.0, 1.0)},
        {"low": (), "high": (), "max_change_per_s": ()},
        {"low": (1.0,), "high": (1.0,), "max_change_per_s": (1.0,)},
        {"low": (-math.inf,), "high": (1.0,), "max_change_per_s": (1.0,)},
        {"low": (0.0,), "high": (1.0,), "max_change_per_s": (0.0,)},
        {"low": (0.0,), "high": (1.0,), "max_change_per_s": (math.nan,)},
    ],
)
def test_limits_that_limit_nothing_are_refused(fields):
    with pytest.raises(ValueError, match="must"):
        Limits(**fields)
