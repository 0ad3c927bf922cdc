from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla.embodiment import Field, Space, built_in_embodiments, load_embodiment
from vla.errors import SchemaError, StatsMissing, UserError
from vla.normalize import SKETCH_SIZE, Normalizer, RobotNormalizer, RobotStats, Stats

FINITE = st.floats(-1e6, 1e6, allow_nan=False, width=64)


def rank_distance(values, quantile, q):
    """How far, as a share of the rows, the found value lies from rank q."""
    below, upto = np.mean(values < quantile), np.mean(values <= quantile)
    return max(below - q, q - upto, 0.0)


def test_quantiles_and_moments_against_numpy():
    rng = np.random.default_rng(0)
    rows_NA = np.stack([rng.normal(size=200_000), rng.exponential(size=200_000) ** 3, np.round(rng.normal(size=200_000), 1)], -1)
    stats = Stats(3)
    for part in np.array_split(rows_NA, 37):
        stats.update(part)
    np.testing.assert_allclose(stats.mean_A, rows_NA.mean(0), rtol=1e-10)
    np.testing.assert_allclose(stats.std_A, rows_NA.std(0), rtol=1e-10)
    assert stats.rank_error() < 0.005
    for q in (0.01, 0.1, 0.5, 0.9, 0.99):
        for a in range(3):
            assert rank_distance(rows_NA[:, a], stats.quantile(q)[a], q) <= stats.rank_error() + 1e-9


def test_small_sets_are_exact():
    rows_NA = np.random.default_rng(1).normal(size=(1001, 2))
    stats = Stats(2)
    stats.update(rows_NA)
    np.testing.assert_array_equal(stats.quantile(0.5), np.quantile(rows_NA, 0.5, axis=0, method="inverted_cdf"))


def test_merge_keeps_every_row_and_the_bound():
    rng = np.random.default_rng(2)
    parts = [rng.normal(loc=i, size=(n, 1)) for i, n in enumerate((10, SKETCH_SIZE * 3 + 1, 70_000, 1))]
    merged = Stats(1)
    for part in parts:
        one = Stats(1)
        one.update(part)
        merged.merge(one)
    rows = np.concatenate(parts)[:, 0]
    assert merged.count == len(rows) == sum(len(v) * 2**h for h, v in enumerate(merged._levels))
    for q in (0.01, 0.5, 0.99):
        assert rank_distance(rows, merged.quantile(q)[0], q) <= merged.rank_error() + 1e-9


def hostile(kind, n, rng):
    """Orders and distributions that hurt sketches; float64 (n,)."""
    ramp = np.arange(n, dtype=float)
    return {
        "rising": ramp,
        "falling": -ramp,
        "from the ends in": np.where(np.arange(n) % 2, ramp, -ramp),
        "zooming in": (-0.999) ** ramp * 1e6 + rng.normal(size=n) * 1e-6,
        "saw": ramp % 4097,  # one more than the sketch holds
        "ties": np.floor(rng.pareto(0.5, n).clip(max=1e12)) % 7,
        "two values": (ramp % 100 < 1).astype(float),  # the step lies exactly at q99
        "heavy tail": rng.standard_cauchy(n) ** 3,
        "one outlier": np.where(ramp == n // 3, 1e6, rng.normal(size=n)),
        "blocks": np.repeat(rng.normal(size=n // 4096 + 1), 4096)[:n],
    }[kind]


KINDS = ("rising", "falling", "from the ends in", "zooming in", "saw", "ties", "two values", "heavy tail", "one outlier", "blocks")


def test_quantiles_lie_within_half_a_percentile_rank_for_hostile_data_in_any_grouping():
    n, rng = 80_000, np.random.default_rng(4)
    rows_NA = np.stack([hostile(kind, n, rng) for kind in KINDS], -1)
    whole = Stats(len(KINDS))
    for part in np.array_split(rows_NA, 61):
        whole.update(part)
    leaves = []
    for part in np.split(rows_NA, sorted(rng.choice(n, 40, replace=False))):
        leaves.append(Stats(len(KINDS)))
        leaves[-1].update(part)
    copies = [[Stats.from_json(leaf.to_json()) for leaf in leaves] for _ in range(3)]
    chain = copies[0][0]
    for leaf in copies[0][1:]:
        chain.merge(leaf)
    backwards = copies[1][-1]
    for leaf in reversed(copies[1][:-1]):
        backwards.merge(leaf)
    tree = copies[2]
    while len(tree) > 1:
        for one, two in zip(tree[::2], tree[1::2], strict=False):
            one.merge(two)
        tree = tree[::2]
    for stats in (whole, chain, backwards, tree[0]):
        assert stats.count == n == sum(len(v) * 2**h for h, v in enumerate(stats._levels))
        assert stats.rank_error() <= 0.005
        for q in (0.01, 0.5, 0.99):
            off = [rank_distance(rows_NA[:, a], stats.quantile(q)[a], q) for a in range(len(KINDS))]
            assert max(off) <= stats.rank_error() + 1e-9, (KINDS[int(np.argmax(off))], q)


def test_the_bound_holds_up_to_four_billion_rows():
    # A level is begun by 2^level full sketches, so n rows make at most log2(n / 4096) levels above the first.
    stats = Stats(1)
    stats._levels = [np.zeros((0, 1))] * (1 + 20)
    assert SKETCH_SIZE * 2**20 > 4e9 and stats.rank_error() <= 0.005


def test_rows_that_are_not_finite_are_left_out_and_counted():
    rows_NA = np.random.default_rng(5).normal(size=(9000, 2))
    spoiled = np.insert(rows_NA, [3, 3, 8000], np.array([[np.nan, 0.0], [0.0, np.inf], [-np.inf, np.nan]]), axis=0)
    want, found = Stats(2), Stats(2)
    want.update(rows_NA)
    found.update_finite(spoiled)
    assert found.dropped == 3 and {**found.to_json(), "dropped": 0} == want.to_json()
    found.merge(found.from_json(found.to_json()))
    assert found.dropped == 6 and found.count == 18_000
    old = want.to_json()
    del old["dropped"]  # as the first version wrote it
    assert Stats.from_json(old).dropped == 0


def test_one_outlier_and_a_constant_are_flagged_and_stay_finite():
    rows_NA = np.stack([np.random.default_rng(6).normal(size=20_000), np.full(20_000, 0.25)], -1)
    rows_NA[777, 0] = 1e6
    stats = Stats(2)
    stats.update(rows_NA)
    low, high = stats.quantile(0.01)[0], stats.quantile(0.99)[0]
    assert rank_distance(rows_NA[:, 0], low, 0.01) <= 0.005 and rank_distance(rows_NA[:, 0], high, 0.99) <= 0.005
    assert -2.5 < low < -2.2 and 2.2 < high < 2.5  # the outlier moves neither
    normalizer = Normalizer.fit(stats)
    assert normalizer.degenerate == (0, 1)  # the rule cannot tell an outlier from a rare event, so it is named
    unit = normalizer.normalize(rows_NA)
    assert np.isfinite(unit).all() and np.abs(unit).max() <= 1
    np.testing.assert_allclose(normalizer.denormalize(unit), rows_NA, rtol=1e-12, atol=1e-9)


def test_json_round_trip_continues_identically():
    rng = np.random.default_rng(3)
    stats = Stats(2)
    stats.update(rng.normal(size=(9000, 2)))
    again = Stats.from_json(stats.to_json())
    more = rng.normal(size=(9000, 2))
    stats.update(more), again.update(more)
    assert stats.to_json() == again.to_json()


def test_bad_rows_are_refused():
    stats = Stats(2)
    with pytest.raises(SchemaError, match="NaN"):
        stats.update(np.array([[0.0, np.nan]]))
    with pytest.raises(SchemaError, match="width 2"):
        stats.update(np.zeros((3, 4)))
    with pytest.raises(StatsMissing):
        Normalizer.fit(stats)


@given(
    arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 5)), elements=FINITE),
    st.sampled_from(["quantile", "zscore"]),
)
@example(np.array([[1e6], [2.2250738585e-308], [-1e6]]), "quantile")
@settings(max_examples=150, deadline=None)
def test_normalise_is_exactly_invertible_and_finite(rows_NA, method):
    stats = Stats(rows_NA.shape[1])
    stats.update(rows_NA)
    normalizer = Normalizer.fit(stats, method)
    unit = normalizer.normalize(rows_NA)
    assert np.isfinite(unit).all()
    # No value inside the data is blown up: a thin spread falls back to the full range.
    assert np.abs(unit).max(initial=0) <= 2 / 1e-3 + 1
    back = normalizer.denormalize(unit)
    tolerance = 4 * np.finfo(np.float64).eps * (np.abs(rows_NA) + np.abs(normalizer.offset))
    # A quotient may underflow: it is then off by a subnormal, which the scale multiplies.
    tolerance = tolerance + 4 * np.finfo(np.float64).smallest_subnormal * np.array(normalizer.scale)
    assert (np.abs(back - rows_NA) <= tolerance).all()


def test_degenerate_dimensions_follow_the_rule():
    rows_NA = np.zeros((1000, 3))
    rows_NA[:, 0] = 0.1 + 0.2  # constant, with rounding
    rows_NA[3, 1] = 1.0  # one rare event: q01 = q99 = 0
    rows_NA[:, 2] = np.linspace(-2, 2, 1000)
    stats = Stats(3)
    stats.update(rows_NA)
    normalizer = Normalizer.fit(stats)
    assert normalizer.degenerate == (0, 1)
    assert normalizer.scale[0] == 1.0 and normalizer.scale[1] == 0.5
    np.testing.assert_allclose(normalizer.normalize(rows_NA)[3, 1], 1.0)
    assert Normalizer.from_json(normalizer.to_json()) == normalizer


def test_identity_needs_a_reason():
    with pytest.raises(UserError, match="reason"):
        Normalizer.identity(3, "")
    assert Normalizer.identity(3, "tokens already in -1..1").width == 3


def test_a_joint_that_stands_still_is_no_scale():
    """The other arm of a robot droops by fractions of a milliradian as an episode goes on: at full scale that is a clock."""
    robot = load_embodiment("aloha")
    rng = np.random.default_rng(0)
    rows_NS = rng.uniform(-1, 1, (2000, robot.state.size))
    left = robot.state.slices()["left_arm"]
    rows_NS[:, left] = 0.3 + 4e-4 * rows_NS[:, left]
    stats = RobotStats.empty(robot)
    stats.state.update(rows_NS)
    stats.action.update(rows_NS)
    fitted = RobotNormalizer.fit(stats, robot)
    still = list(range(left.start, left.stop))
    assert fitted.state.degenerate == tuple(still) and not fitted.action.degenerate
    assert np.abs(fitted.state.normalize(rows_NS)[:, still]).max() < 1e-3 and np.array(fitted.state.scale)[still].tolist() == [1.0] * len(
        still
    )
    np.testing.assert_allclose(fitted.state.denormalize(fitted.state.normalize(rows_NS)), rows_NS, rtol=0, atol=1e-15)
    assert np.abs(fitted.action.normalize(rows_NS)[:, still]).max() > 0.99  # a step may be so small, and is kept


def test_a_joint_that_seldom_moves_is_shown_moving():
    """It stands still, trembling by half a millimetre, in all but some steps in a thousand: then it goes 40 mm."""
    rows_NA = 5e-4 * np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    rows_NA[::500, 0] = 0.04
    stats = Stats(2)
    stats.update(rows_NA)
    fitted = Normalizer.fit(stats, tremble_A=np.array([2e-3, 2e-3]))
    unit = fitted.normalize(rows_NA)
    assert fitted.degenerate == (0, 1) and fitted.scale[1] == 1.0
    np.testing.assert_allclose(unit[::500, 0], 1.0)
    assert np.ptp(unit[1:500, 0]) < 0.06


def test_every_built_in_robot_keeps_what_it_can_do():
    """What trembles is told by the unit; where there is none to tell it, nothing is."""
    for name in built_in_embodiments():
        space = load_embodiment(name).state
        assert space.tremble_A.shape == (space.size,) and (space.tremble_A <= 0.01).all()
    assert Space((Field("wrench", 6, "N"), Field("hand", 3, "m"))).tremble_A.tolist() == [0.0] * 6 + [2e-3] * 3
