"""Every simulated robot keeps the promises of SimEnv, and its experts do what they are for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vla.errors import SchemaError, UserError
from vla.sim.env import SimEnv
from vla.sim.suites import load_suite

panda = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite, an optional extra, is not installed")
ENVS = [
    pytest.param(("metaworld-objects", "faucet-open"), id="sawyer"),
    pytest.param(("fetch", "lift"), id="fetch"),
    pytest.param(("aloha", "lift"), id="aloha"),
    pytest.param(("panda", "lift"), id="panda", marks=[panda, pytest.mark.thorough]),
]


@pytest.fixture(scope="module", params=ENVS)
def env(request: Any) -> Iterator[SimEnv]:
    suite, task = request.param
    env = load_suite(suite).make(task, image_size=64)
    yield env
    env.close()


def play(env: SimEnv, seed: int, steps: int) -> np.ndarray:
    """States of the first steps of the expert's episode, and one picture at the end."""
    first, _ = env.reset(seed=seed)
    expert, states = env.expert(), [first["state"]]
    for _ in range(steps):
        states.append(env.step(expert())[0]["state"])
    return np.concatenate([np.concatenate(states), env.cameras()["third_person"].reshape(-1)])


def test_an_episode_is_a_function_of_its_seed(env: SimEnv) -> None:
    first, other, again = play(env, 5, 25), play(env, 6, 40), play(env, 5, 25)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[-(64 * 64 * 3) :], other[-(64 * 64 * 3) :])


def test_looking_changes_nothing(env: SimEnv) -> None:
    """Demonstrations look at every second step, a policy once a chunk."""
    ends = []
    for look in (True, False):
        env.reset(seed=4)
        expert = env.expert()
        for _ in range(20):
            if look:
                env.cameras()
            state = env.step(expert())[0]["state"]
        ends.append(state)
    np.testing.assert_array_equal(ends[0], ends[1])


def test_two_seeds_do_not_look_alike(env: SimEnv) -> None:
    pictures = []
    for seed in (1, 2):
        env.reset(seed=seed)
        pictures.append(env.cameras()["third_person"].astype(int))
    assert (np.abs(pictures[0] - pictures[1]).max(-1) > 30).sum() >= 4, "the objects' places cannot be seen"


def test_observations_are_what_the_embodiment_declares(env: SimEnv) -> None:
    env.reset(seed=0)
    observation = env.observation()
    assert tuple(observation.images) == env.embodiment.cameras
    for image in observation.images.values():
        assert image.shape == (1, 64, 64, 3) and image.dtype == np.uint8
        assert image.std() > 5, "the picture is of one colour"
    assert observation.state.shape == (1, env.embodiment.state.size) and observation.state.dtype == np.float64
    assert observation.instruction == env.instruction and observation.embodiment == env.embodiment.name
    assert env.observation("something else").instruction == "something else"


def test_gymnasium_spaces_hold(env: SimEnv) -> None:
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation) and info == {"success": False}
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample() * 0)
    assert env.observation_space.contains(observation)
    assert (reward, terminated, truncated) == (0.0, False, False) and info == {"success": False}


def test_commands_are_checked_and_limited(env: SimEnv) -> None:
    width = env.embodiment.command.size
    env.reset(seed=0)
    with pytest.raises(SchemaError):
        env.step(np.full(width, np.nan))
    with pytest.raises(SchemaError):
        env.step(np.zeros(width + 1))
    high_A = np.array(env.embodiment.limits)[:, 1]
    ends = []
    for command_A in (high_A, 50 * high_A):
        env.reset(seed=0)
        ends.append([env.step(command_A)[0]["state"] for _ in range(3)][-1])
    np.testing.assert_array_equal(ends[0], ends[1])


def test_the_expert_succeeds_and_success_ends_the_episode(env: SimEnv) -> None:
    env.reset(seed=0)
    expert = env.expert()
    low_A, high_A = np.array(env.embodiment.limits).T
    for _ in range(env.max_steps):
        command_A = expert()
        assert (command_A >= low_A).all() and (command_A <= high_A).all()
        _, reward, terminated, _, info = env.step(command_A)
        if terminated:
            break
    assert terminated and reward == 1.0 and info["success"]
    assert env.steps > 2 * env.embodiment.horizon, "episodes shorter than two chunks test no replanning"


def test_doing_nothing_fails_after_max_steps(env: SimEnv) -> None:
    env.reset(seed=0)
    still_A = env.state()[:14] if env.embodiment.name == "aloha" else np.zeros(env.embodiment.command.size)
    for step in range(env.max_steps):
        *_, terminated, truncated, _ = env.step(still_A)
        assert not terminated
        assert truncated == (step + 1 == env.max_steps)


def test_what_is_lifted_rises_in_the_picture(env: SimEnv) -> None:
    env.reset(seed=0)
    before = row_of_colour(env)
    expert = env.expert() if env.task == "lift" else lambda: np.array([0.0, 0.0, 1.0, 0.0])
    more = 15 if env.task == "lift" else 40
    while more and env.steps < env.max_steps:
        _, _, done, _, _ = env.step(expert())
        more -= done or env.task != "lift"
    assert row_of_colour(env) < before - 1


def row_of_colour(env: SimEnv) -> float:
    """The mean row of the coloured thing in the third person's picture: Sawyer's cyan finger, the blue or the red cube."""
    wanted = {"metaworld_sawyer": (0, 1, 1), "fetch": (0, 0, 1)}.get(env.embodiment.name, (1, 0, 0))
    image = env.cameras()["third_person"].astype(int)
    inside, outside = (image[..., [i for i in range(3) if wanted[i] == which]] for which in (1, 0))
    rows = np.argwhere(inside.min(-1) - outside.max(-1) > 60)[:, 0]
    assert len(rows), "the coloured thing is not in the picture"
    return float(rows.mean())


@pytest.mark.skipif(importlib.util.find_spec("robosuite") is not None, reason="robosuite is installed")
def test_without_robosuite_the_error_says_how_to_install_it() -> None:
    with pytest.raises(UserError, match="pip install --no-deps robosuite"):
        load_suite("panda").make("lift")


@panda
@pytest.mark.slow
@pytest.mark.parametrize("suite", ["robosuite-ur5e", "robosuite-iiwa", "robosuite-kinova3"])
def test_every_arm_lifts_the_cube(suite: str) -> None:
    env, successes = load_suite(suite).make("lift", 64), 0
    for seed in range(3):
        env.reset(seed=seed)
        expert, ended = env.expert(), False
        while not ended:
            *_, terminated, truncated, info = env.step(expert())
            ended = terminated or truncated
        successes += info["success"]
    assert env.observation().images["wrist"].std() > 5
    env.close()
    assert successes >= 2
