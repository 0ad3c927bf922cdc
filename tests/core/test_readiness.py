"""Which robot of a checkpoint is nearest to a dataset's: distances of ranges, fields and cameras that one of the two lacks."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from vla.embodiment import Embodiment, Field, Space
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.readiness import lines, nearest


def arm(name: str, rate: int = 10, state=("joints", 3, "rad"), cameras=("wrist",), frame="step") -> Embodiment:
    command = Space((Field("move", 2, "m", frame), Field("gripper", 1, "open01")))
    return Embodiment(name, cameras, Space((Field(*state),)), command, command, Fraction(rate), 4, ((-1.0, 1.0),) * 3)


def fitted(robot: Embodiment, move: tuple[float, float], state: tuple[float, float] = (-1, 1)) -> RobotNormalizer:
    def normalizer(*ranges):
        return Normalizer("quantile", tuple((a + b) / 2 for a, b in ranges), tuple((b - a) / 2 for a, b in ranges))

    return RobotNormalizer(StatsKey.of(robot), normalizer(*[state] * robot.state.size), normalizer(move, move, (0, 1)))


def distance(row, kind, field):
    return next(match.distance for match in row.matches if (match.kind, match.field) == (kind, field))


def test_a_distance_is_the_share_of_the_ranges_that_is_not_common():
    here = arm("here")
    for move, apart in (((-0.1, 0.1), 0.0), ((0.0, 0.2), 2 / 3), ((0.2, 0.3), 1.0), ((-0.2, 0.2), 0.5)):
        (row,) = nearest(here, fitted(here, (-0.1, 0.1)), ("wrist",), (arm("there"),), {"there": fitted(arm("there"), move)})
        assert distance(row, "action", "move") == pytest.approx(apart) and distance(row, "action", "gripper") == 0
        assert row.distance == pytest.approx(apart / 3)


def test_steps_are_compared_as_motion_per_second_and_positions_are_not():
    slow, fast = arm("slow", rate=5), arm("fast", rate=10)
    (row,) = nearest(slow, fitted(slow, (-0.2, 0.2)), (), (fast,), {"fast": fitted(fast, (-0.1, 0.1))})
    assert distance(row, "action", "move") == pytest.approx(0)
    slow, fast = arm("slow", rate=5, frame="absolute"), arm("fast", rate=10, frame="absolute")
    (row,) = nearest(slow, fitted(slow, (-0.2, 0.2)), (), (fast,), {"fast": fitted(fast, (-0.1, 0.1))})
    assert distance(row, "action", "move") == pytest.approx(0.5)


def test_what_one_has_and_the_other_lacks_is_named_and_counts_as_far():
    here = arm("here", state=("hand", 3, "m"), cameras=("wrist", "top"))
    other, wide = arm("other"), arm("wide", state=("hand", 4, "m"))
    held = arm("held", frame="absolute")
    known = {robot.name: fitted(robot, (-1, 1)) for robot in (other, wide, held)}
    rows = {row.robot: row for row in nearest(here, fitted(here, (-1, 1)), ("wrist", "top"), (other, wide, held), known)}
    assert rows["other"].fields_unknown == ("state hand",) and rows["other"].fields_unused == ("state joints",)
    assert rows["other"].cameras_unknown == ("top",) and rows["other"].cameras_unused == ()
    assert "there 4 m, here 3 m" in [match.known for match in rows["wide"].matches]
    assert "there absolute, here step" in [match.known for match in rows["held"].matches]
    assert [rows[name].distance for name in ("other", "held")] == pytest.approx([1 / 3, 2 / 3])


def test_the_nearest_comes_first_and_a_robot_that_is_known_is_called_so():
    here = arm("here")
    far, near = arm("far"), replace(here)
    rows = nearest(here, fitted(here, (0, 1)), ("wrist",), (far, near), {"far": fitted(far, (5, 6)), "here": fitted(near, (0, 1))})
    assert [row.robot for row in rows] == ["here", "far"] and rows[0].same_statistics
    said = "\n".join(lines(rows, here))
    assert "nearest: here, distance 0.00 (the same robot, frames, horizon and rate" in said and "then: far" in said
    assert "fresh maps" in "\n".join(lines(rows[1:], here))


def test_of_many_robots_the_nearest_are_told_and_the_rest_are_counted():
    here, known = arm("here"), tuple(arm(name) for name in "abcde")
    for count, said in ((3, []), (4, ["and 1 more, farther: d"]), (5, ["and 2 more, farther: d, e"])):
        some = known[:count]
        rows = nearest(here, fitted(here, (-1, 1)), ("wrist",), some, {robot.name: fitted(robot, (-1, 1)) for robot in some})
        told = lines(rows, here)
        assert [line for line in told if line.startswith("and ")] == said
        assert len([line for line in told if ", distance " in line]) == 3
