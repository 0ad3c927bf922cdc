"""Intervals and tests against published figures, scipy and statsmodels, and their own definitions."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from vla.evaluate.statistics import clopper_pearson, compare_paired, compare_unpaired, newcombe, tango, wilson


@pytest.mark.parametrize(("ours", "theirs"), [(wilson, "wilson"), (clopper_pearson, "beta")])
@pytest.mark.parametrize(("successes", "episodes"), [(0, 1), (1, 1), (0, 40), (40, 40), (33, 40), (160, 320)])
def test_intervals_of_a_proportion_match_statsmodels(ours, theirs, successes, episodes):
    got = ours(successes, episodes)
    low, high = proportion_confint(successes, episodes, 0.05, theirs)
    assert math.isclose(got.low, low, abs_tol=1e-9) and math.isclose(got.high, high, abs_tol=1e-9)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (7, 1), (12, 12), (3, 40)])
def test_mcnemar_matches_statsmodels(only_a, only_b):
    got = compare_paired(20, only_a, only_b, 5)
    assert math.isclose(got.p_value, mcnemar([[20, only_a], [only_b, 5]], exact=True).pvalue if only_a + only_b else 1.0)


@pytest.mark.parametrize(
    ("only_a", "only_b", "pairs", "confidence", "low", "high"),
    [
        (1, 7, 21, 0.95, -0.517, -0.026),  # Bentur et al. 2009, as analysed by Fagerland et al. 2014 (table V)
        (28, 25, 618, 0.90, -0.0148, 0.0247),  # R: PropCIs::scoreci.mp(25, 28, 618, 0.9), whose difference is c - b
    ],
)
def test_tango_matches_published_intervals(only_a, only_b, pairs, confidence, low, high):
    got = tango(only_a, only_b, pairs, confidence)
    digits = 3 if pairs == 21 else 4
    assert (round(got.low, digits), round(got.high, digits)) == (low, high)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200))
def test_tango_holds_the_estimate_and_mirrors(only_a, only_b, agree):
    pairs = max(1, only_a + only_b + agree)
    got, mirrored = tango(only_a, only_b, pairs), tango(only_b, only_a, pairs)
    assert -1 <= got.low <= (only_a - only_b) / pairs <= got.high <= 1
    assert got.high - got.low > 0  # also without any differing pair, where a Wald interval has no width
    assert math.isclose(got.low, -mirrored.high, abs_tol=1e-7) and math.isclose(got.high, -mirrored.low, abs_tol=1e-7)


@pytest.mark.parametrize(("p_a", "p_b"), [(0.3, 0.1), (0.1, 0.1), (0.05, 0.4)])
def test_tango_covers_as_often_as_it_says(p_a, p_b, pairs=30):
    """Exact coverage: the sum over every outcome of 30 pairs."""
    covered = 0.0
    for only_a, only_b in itertools.product(range(pairs + 1), repeat=2):
        if only_a + only_b <= pairs:
            got = tango(only_a, only_b, pairs)
            if got.low <= p_a - p_b <= got.high:
                covered += stats.multinomial.pmf([only_a, only_b, pairs - only_a - only_b], pairs, [p_a, p_b, 1 - p_a - p_b])
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("a", "n", "b", "m"), [(30, 40, 20, 40), (0, 10, 10, 10), (40, 40, 40, 40), (3, 7, 90, 100)])
def test_newcombe_matches_statsmodels(a, n, b, m):
    got = newcombe(a, n, b, m)
    low, high = confint_proportions_2indep(a, n, b, m, method="newcomb", compare="diff")
    assert math.isclose(got.low, low, abs_tol=1e-9) and math.isclose(got.high, high, abs_tol=1e-9)


def test_unpaired_test_is_barnards_and_more_powerful_than_fishers():
    got = compare_unpaired(36, 40, 28, 40)
    assert math.isclose(got.p_value, stats.barnard_exact([[36, 28], [4, 12]]).pvalue)
    assert got.p_value < stats.fisher_exact([[36, 28], [4, 12]]).pvalue
    assert got.difference == pytest.approx(0.2)


@pytest.mark.parametrize("a", [0, 40])
def test_equal_extremes_are_no_difference(a):
    assert compare_unpaired(a, 40, a // 4, 10).p_value == 1.0
    assert compare_paired(a, 0, 0, 40 - a).p_value == 1.0


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="out of 3"):
        tango(2, 2, 3)
