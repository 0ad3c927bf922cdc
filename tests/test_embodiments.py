"""Every built-in robot file: short, self-consistent, and the identity through frames, JSON and limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import vla.embodiments
from vla.embodiment import ROTATION_UNITS, Embodiment, Space, built_in_embodiments, from_rotation, load_embodiment
from vla.errors import SchemaError, UserError

NAMES = built_in_embodiments()


def random_rows(space: Space, rng: np.random.Generator, rows: int) -> np.ndarray:
    """(rows, size of the space), with rotations that are rotations."""
    parts = {}
    for field in space.fields:
        if field.unit in ROTATION_UNITS:
            parts[field.name] = from_rotation(Rotation.from_rotvec(rng.uniform(-0.5, 0.5, (rows, 3))), field.unit)
        else:
            parts[field.name] = rng.uniform(-0.5, 0.5, (rows, field.size))
    return space.pack(parts) if parts else np.zeros((rows, 0))


def test_four_robots_come_with_the_package() -> None:
    assert {"metaworld_sawyer", "fetch", "aloha", "panda"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_robot_is_one_short_file_of_its_own_name(name: str) -> None:
    source = Path(vla.embodiments.__path__[0]) / f"{name}.py"
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 60
    assert load_embodiment(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_json_gives_the_robot_back(name: str) -> None:
    robot = load_embodiment(name)
    assert Embodiment.from_json(robot.to_json()) == robot


@pytest.mark.parametrize("name", NAMES)
def test_commands_survive_the_learned_frames(name: str) -> None:
    robot, rng = load_embodiment(name), np.random.default_rng(0)
    state_P = random_rows(robot.state, rng, 1)[0]
    command_TA = random_rows(robot.command, rng, robot.horizon)
    learned_TA = robot.encode(command_TA, state_P)
    np.testing.assert_allclose(robot.decode(learned_TA, state_P), command_TA, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_outside_the_limits_or_not_finite_is_sent(name: str) -> None:
    robot = load_embodiment(name)
    if robot.limits is None:
        with pytest.raises(UserError, match="no limits"):
            robot.limit(np.zeros((1, robot.command.size)))
        return
    high_A = np.array(robot.limits)[:, 1]
    sent_TA = robot.limit(np.full((1, robot.command.size), 1e6))
    np.testing.assert_array_equal(sent_TA[0], high_A)
    with pytest.raises(SchemaError):
        robot.limit(np.full((1, robot.command.size), np.nan))
    with pytest.raises(SchemaError):
        robot.limit(np.zeros((1, robot.command.size + 1)))


@pytest.mark.parametrize("name", NAMES)
def test_states_are_of_the_robot_and_chunks_take_a_reasonable_time(name: str) -> None:
    robot = load_embodiment(name)
    assert {field.name.split("_")[-1] for field in robot.state.fields} <= {"hand", "gripper", "rotation", "arm", "base", "points"}
    assert 0.1 <= robot.horizon / robot.rate_hz <= 1.6  # PushT's published 16 steps at 10 Hz are the longest


def test_aloha_learns_its_joints_as_they_are_commanded() -> None:
    robot = load_embodiment("aloha")
    command_TA = np.tile(np.linspace(-0.3, 0.3, 14), (3, 1))
    np.testing.assert_array_equal(robot.encode(command_TA, np.zeros(14)), command_TA)
