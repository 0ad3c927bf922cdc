"""PushT: plane physics without OpenGL."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from vla.errors import UserError
from vla.sim.suites import load_suite

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="gym-pusht is not installed")


@pytest.fixture(scope="module")
def env():
    return load_suite("pusht").make("push", 48)


def test_an_episode_is_a_function_of_its_seed_and_looking_changes_nothing(env):
    ends = []
    for seed, look in ((3, True), (3, False), (4, False)):
        env.reset(seed=seed)
        for step in range(20):
            state = env.step(np.array([250.0, 250.0 + step]))[0]["state"]
            if look:
                env.cameras()
        ends.append((state, env.cameras()["third_person"]))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    np.testing.assert_array_equal(ends[0][1], ends[1][1])
    assert not np.array_equal(ends[1][1], ends[2][1])
    assert ends[0][1].shape == (48, 48, 3) and ends[0][1].std() > 5


def test_the_disc_goes_where_it_is_told_within_the_square(env):
    env.reset(seed=1)
    for _ in range(30):
        state = env.step(np.array([480.0, 900.0]))[0]["state"]
    assert np.abs(state - [480, 490]).max() < 30


def test_a_t_on_its_outline_is_a_success(env):
    env.reset(seed=1)
    env._env.agent.position = (60, 60)
    env._env.block.angle = np.pi / 4  # before the place: it turns about the centre of mass
    env._env.block.position = (256, 256)
    *_, terminated, _, info = env.step(np.array([60.0, 60.0]))
    assert terminated and info["success"]


def test_there_is_no_expert_and_that_is_said(env):
    with pytest.raises(UserError, match="no scripted expert for 'push' of 'pusht'"):
        env.expert()


def test_no_mujoco_and_no_gl_are_touched():
    code = (
        "import sys; from vla.sim.suites import load_suite; env = load_suite('pusht').make('push', 16); env.reset(seed=0); env.cameras();"
        "sys.exit(bool({'mujoco', 'OpenGL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
