"""The comparison that may stop early: its level, exactly and in simulation, and that it stops early where there is something to see."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from vla.errors import UserError
from vla.evaluate.sequential import Sequential, StoppingRule


def run(rule: StoppingRule, outcomes) -> Sequential:
    test = Sequential(rule)
    for a, b in outcomes:
        if test.finished:
            break
        test.add(bool(a), bool(b))
    return test


@pytest.mark.parametrize("shape", [1.0, 3.0])
def test_the_level_holds_exactly_over_every_course_of_events(shape, pairs=11):
    """All 2^11 outcomes of pairs that all differ, by a fair coin: what is spent is what happens."""
    rule = StoppingRule(pairs, 0.2, shape)
    ends = [run(rule, [(win, not win) for win in course]) for course in itertools.product((True, False), repeat=pairs)]
    verdicts = [test.verdict for test in ends]
    spent = max(test.spent for test in ends)
    assert verdicts.count("A") == verdicts.count("B") == round(spent * 2**pairs)
    assert 0.1 < 2 * spent <= rule.level


@pytest.mark.parametrize(("p_both", "p_a", "p_b"), [(0.0, 0.5, 0.5), (0.3, 0.1, 0.1), (0.25, 0.25, 0.25)])
def test_the_level_holds_in_simulation_whatever_the_pairs_have_in_common(p_both, p_a, p_b, pairs=40, runs=600):
    rng = np.random.default_rng(0)
    drawn = rng.choice(4, p=[p_both, p_a, p_b, 1 - p_both - p_a - p_b], size=(runs, pairs))
    rule = StoppingRule(pairs)
    declared = sum(run(rule, [(kind in (0, 1), kind in (0, 2)) for kind in course]).verdict != "none" for course in drawn)
    assert stats.binomtest(declared, runs, rule.level, alternative="greater").pvalue > 0.01
    assert declared > runs * rule.level / 5  # the budget is used


def test_a_large_difference_ends_early_and_is_seen_as_often_as_by_a_test_at_the_end(pairs=60, runs=300):
    rng = np.random.default_rng(1)
    success = rng.random((runs, pairs, 2)) < (0.9, 0.5)
    ends = [run(StoppingRule(pairs), course) for course in success]
    assert all(test.verdict == "A" for test in ends if test.verdict != "none")
    power = np.mean([test.verdict == "A" for test in ends])
    only = [(sum(a & ~b), sum(b & ~a)) for a, b in ((course[:, 0], course[:, 1]) for course in success)]
    at_the_end = np.mean([stats.binomtest(a, a + b).pvalue < 0.05 for a, b in (map(int, counts) for counts in only)])
    assert power > at_the_end - 0.08
    assert np.mean([test.pairs for test in ends]) < 0.65 * pairs


def test_pairs_that_agree_say_nothing_and_ends_are_ends():
    test = run(StoppingRule(20), [(True, True)] * 10 + [(False, False)] * 10)
    assert test.verdict == "none" and test.finished and (test.only_a, test.only_b) == (0, 0)
    test = run(StoppingRule(40), [(True, False)] * 40)
    assert test.verdict == "A" and test.pairs < 20
    with pytest.raises(AssertionError):
        test.add(True, False)


def test_a_worse_policy_is_declared_better_less_often_than_an_equal_one(pairs=40, runs=800):
    rng = np.random.default_rng(2)
    success = rng.random((runs, pairs, 2)) < (0.4, 0.6)
    assert np.mean([run(StoppingRule(pairs), course).verdict == "A" for course in success]) < 0.005


@pytest.mark.parametrize(("arguments", "complaint"), [((0,), "0 pairs"), ((5, 1.0), "level 1.0"), ((5, 0.05, 0.0), "shape 0.0")])
def test_rules_that_are_none_are_refused(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        StoppingRule(*arguments)


def test_a_rule_says_itself():
    assert str(StoppingRule(400)).startswith("sequential McNemar test, at most 400 pairs, level 0.05 over both sides")
