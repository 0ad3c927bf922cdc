"""Many policies: letters, corrections and ranks, against their definitions and published figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from tests.evaluate.results import result
from vla.errors import UserError
from vla.evaluate.ranking import bradley_terry, compact_letters, holm, rank


@pytest.mark.parametrize("p_values", [[0.2], [0.04, 0.01, 0.03], [0.9, 0.001, 0.02, 0.02, 0.5]])
def test_holms_correction_is_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 7), st.data())
def test_two_share_a_letter_exactly_if_they_are_not_shown_to_differ(count, data):
    names = [f"p{i}" for i in range(count)]
    different = data.draw(st.sets(st.sampled_from(list(itertools.combinations(names, 2)))))
    letters = compact_letters(names, different)
    for a, b in itertools.combinations(names, 2):
        assert bool(set(letters[a]) & set(letters[b])) == ((a, b) not in different)
    used = sorted(set("".join(letters.values())))
    groups = [{name for name in names if letter in letters[name]} for letter in used]
    assert not any(one < other for one in groups for other in groups)  # no letter to spare


def test_letters_start_with_the_best():
    assert compact_letters(["best", "middle", "worst"], [("best", "worst")]) == {"best": "a", "middle": "ab", "worst": "b"}


def test_bradley_terry_finds_the_strengths_that_made_the_games():
    rng = np.random.default_rng(0)
    want_K = np.array([1.0, 0.2, -1.2])
    # A skill noise of the logistic family makes single games of the model: who has more of it solves the episode that the other does not.
    rows = []
    for a, b in itertools.combinations(range(3), 2):
        for _ in range(400):
            winner, loser = (a, b) if rng.random() < 1 / (1 + np.exp(want_K[b] - want_K[a])) else (b, a)
            other = rng.random() < 0.5
            row = np.full(3, other)
            row[winner], row[loser] = True, False
            rows.append(row)
    success_EK = np.array(rows)
    got, intervals = bradley_terry(["t"] * len(rows), success_EK)
    assert sum(got) == pytest.approx(0) and got[0] > got[1] > got[2]
    assert all(interval.low < strength < interval.high for strength, interval in zip(got, intervals, strict=True))


def test_two_policies_have_the_log_odds_of_their_wins():
    """Of two, the maximum of the likelihood is known: log((wins + 1/2) / (losses + 1/2)), half to each side of zero."""
    success_EK = np.array([[True, False]] * 30 + [[False, True]] * 10 + [[True, True]] * 7)
    got, intervals = bradley_terry(["t"] * 47, success_EK)
    assert got[0] == pytest.approx(np.log(30.5 / 10.5) / 2, abs=1e-6)
    spread = np.sqrt(1 / 30.5 + 1 / 10.5) / 2  # of the log-odds, by the delta method
    assert intervals[0].high - intervals[0].low == pytest.approx(2 * 1.96 * spread, rel=0.25)


def test_many_results_become_a_ranking():
    results = {
        "good": result({"open": "+" * 38 + "--"}),
        "fair": result({"open": "+" * 34 + "-" * 6}),
        "poor": result({"open": "+" * 8 + "-" * 32}),
    }
    got = rank(results)
    assert [row.name for row in got.policies] == ["good", "fair", "poor"]
    assert [row.letters for row in got.policies] == ["a", "a", "b"]
    strengths = [row.strength for row in got.policies]
    assert strengths == sorted(strengths, reverse=True) and got.notes == ()


def test_other_seeds_leave_letters_but_no_ranking():
    got = rank({"a": result({"open": "+" * 30}), "b": result({"open": "-" * 30}, seed=1)})
    assert [row.letters for row in got.policies] == ["a", "b"] and got.policies[0].strength is None
    assert any("Bradley-Terry" in note for note in got.notes)


def test_one_result_is_no_ranking():
    with pytest.raises(UserError, match="at least 2"):
        rank({"a": result({"open": "+"})})
