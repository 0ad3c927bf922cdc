"""States unlike those of training are said with their numbers, and rare ones that training had are not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tests.parts import ROBOTS, observation, unit_normalizer
from vla.normalize import Normalizer, RobotNormalizer, Stats, StatsKey
from vla.unfamiliar import Unfamiliar

ROBOT = ROBOTS[0]
WIDTH = ROBOT.state.size


def seen(states_NP: np.ndarray, method: str = "quantile") -> Unfamiliar:
    """By a policy that was fitted on such states."""
    stats = Stats(WIDTH)
    stats.update(states_NP)
    fitted = RobotNormalizer(StatsKey.of(ROBOT), Normalizer.fit(stats, method), unit_normalizer(ROBOT).action)
    found = Unfamiliar.of(SimpleNamespace(contents=SimpleNamespace(normalizers={ROBOT.name: fitted})), ROBOT)
    assert found is not None
    return found


def look(at: Unfamiliar, states_NP: np.ndarray) -> list[str]:
    rng = np.random.default_rng(0)
    for state_P in states_NP:
        one = observation(ROBOT, rng)
        one.state[-1] = state_P
        at.look(one)
    return at.lines()


@pytest.mark.parametrize("method", ["quantile", "zscore"])
def test_degrees_where_training_had_radians_are_said_by_name_and_value(method):
    rng = np.random.default_rng(0)
    trained, now = rng.uniform(-1, 1, (1000, WIDTH)), rng.uniform(0.5, 1, (20, WIDTH))
    assert look(seen(trained, method), now) == []
    now[:, 1] = np.degrees(now[:, 1])
    (line,) = look(seen(trained, method), now)
    assert "[1] was far from" in line and f"in 20 of 20 observations, {now[:, 1].max():.4g} at the farthest" in line


def test_what_training_had_rarely_is_not_said():
    trained = np.zeros((1000, WIDTH))
    trained[:, 0] = np.linspace(-1e-2, 1e-2, 1000)
    trained[::101, 0] = 1.0  # a hundred times as far as q99
    assert look(seen(trained), trained[:500]) == []


def test_a_number_that_never_moved_is_said_where_it_is_another():
    assert look(seen(np.full((50, WIDTH), 0.3)), np.full((3, WIDTH), 0.3)) == []
    assert len(look(seen(np.full((50, WIDTH), 0.3)), np.full((3, WIDTH), 300.0))) == WIDTH


def test_what_was_fitted_on_nothing_or_is_told_no_state_says_nothing():
    known = SimpleNamespace(contents=SimpleNamespace(normalizers={ROBOT.name: unit_normalizer(ROBOT)}))
    assert Unfamiliar.of(known, ROBOT) is None and Unfamiliar.of(object(), ROBOT) is None
    silent = seen(np.zeros((5, WIDTH)))
    silent.look(observation(ROBOT, np.random.default_rng(0), state=False))
    assert silent.seen == 0 and silent.lines() == []
