"""Adapters of benchmarks that are not here, on stand-ins that record what they are asked: the published protocols, step by step."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from vla.errors import UserError
from vla.sim import calvin
from vla.sim.external import centre_crop, jpeg_round_trip, lanczos
from vla.sim.libero import axis_angle
from vla.sim.simpler import StickyGripper
from vla.sim.suites import load_suite


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> ModuleType:
    """A module of that name, and its packages."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        path = ".".join(parts[:i])
        if path not in sys.modules:
            module = ModuleType(path)
            module.__spec__ = SimpleNamespace(name=path)  # type: ignore[assignment]
            module.__path__ = []  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, path, module)
            if i > 1:
                setattr(sys.modules[".".join(parts[: i - 1])], parts[i - 1], module)
    for key, value in contents.items():
        setattr(sys.modules[name], key, value)
    return sys.modules[name]


# LIBERO


class FakeLibero:
    """ControlEnv. Its picture has a bright corner at the top left, which belongs at the bottom right. As in LIBERO, the seed is that of
    numpy's own generator, and where a fixture stands is drawn from it at reset."""

    def __init__(self, **kwargs: Any) -> None:
        self.calls: list[Any] = [("init", kwargs)]
        self.sim = SimpleNamespace(render=self._render)
        self.drawn = self.steps = 0
        self.fixture_x = 0.0
        FakeLibero.last = self

    last: FakeLibero

    def seed(self, seed: int) -> None:
        self.calls.append(("seed", seed))
        np.random.seed(seed)  # noqa: NPY002 - as LIBERO does

    def reset(self) -> None:
        self.calls.append(("reset",))
        self.fixture_x = np.random.uniform()  # noqa: NPY002

    def set_init_state(self, state: np.ndarray) -> dict[str, Any]:
        self.calls.append(("init_state", state.tolist()))
        self.steps = 0
        return self._seen()

    def step(self, action: list[float]) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        self.calls.append(("step", action))
        self.steps += 1
        return self._seen(), 0.0, self.steps == 10 + 3, {}

    def close(self) -> None:
        self.calls.append(("close",))

    def _seen(self) -> dict[str, Any]:
        quat = -Rotation.from_euler("x", 3.0).as_quat()
        return {
            "robot0_eef_pos": np.array([1.0, 2.0, 3.0]),
            "robot0_eef_quat": quat,
            "robot0_joint_pos": np.arange(7.0),
            "robot0_gripper_qpos": np.array([0.02, -0.02]),
        }

    def _render(self, camera_name: str, width: int, height: int) -> np.ndarray:
        assert (width, height) == (256, 256) and camera_name in ("agentview", "robot0_eye_in_hand")
        self.drawn += 1
        image = np.zeros((256, 256, 3), dtype=np.uint8)
        image[:64, :64] = 255
        return image


@pytest.fixture
def libero(monkeypatch, tmp_path):
    import torch

    states = np.arange(50 * 3, dtype=np.float64).reshape(50, 3)
    torch.save(states, tmp_path / "states.init")

    class Benchmark:
        def get_task(self, number: int) -> SimpleNamespace:
            return SimpleNamespace(language=f"do thing {number}", problem_folder="folder", bddl_file=f"{number}.bddl")

        def get_task_init_states(self, number: int) -> np.ndarray:
            return torch.load(tmp_path / "states.init", weights_only=True)

    stand_in(monkeypatch, "libero.libero", get_libero_path=lambda what: f"/assets/{what}")
    stand_in(monkeypatch, "libero.libero.benchmark", get_benchmark_dict=lambda: {"libero_goal": Benchmark})
    stand_in(monkeypatch, "libero.libero.envs.env_wrapper", ControlEnv=FakeLibero)
    kept = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(kept)  # noqa: NPY002


def test_liberos_numbers_are_the_published_ones():
    steps = {
        name: load_suite(name).tasks[0].max_steps for name in ("libero-spatial", "libero-object", "libero-goal", "libero-10", "libero-90")
    }
    assert list(steps.values()) == [220, 280, 300, 520, 400]
    assert load_suite("libero-spatial").episodes == load_suite("libero-90").tasks[89].layouts == 50


def test_libero_is_driven_as_openvla_drives_it(libero):
    env = load_suite("libero-goal").make("task-04", 64)
    fake = FakeLibero.last
    assert env.instruction == "do thing 4"
    made = fake.calls[0][1]
    assert made["bddl_file_name"] == "/assets/bddl_files/folder/4.bddl" and not made["use_camera_obs"]
    env.reset(seed=17)
    assert fake.calls[1:4] == [("seed", 17), ("reset",), ("init_state", [51.0, 52.0, 53.0])]
    assert fake.calls[4:] == [("step", [0.0] * 6 + [-1.0])] * 10
    for opening, sent in ((1.0, -1.0), (0.4, 1.0), (0.9, -1.0)):
        *_, terminated, _, info = env.step(np.array([0.1, 0, 0, 0, 0, 0.2, opening]))
        assert fake.calls[-1] == ("step", [0.1, 0, 0, 0, 0, 0.2, sent])
    assert terminated and info["success"] and fake.drawn == 0  # nobody has looked
    observation = env.observation()
    assert fake.drawn == 2
    picture = observation.images["third_person"][0]
    assert picture.shape == (64, 64, 3) and picture[-8:, -8:].min() > 240 and picture[:40, :40].max() < 16
    assert observation.state[0, :3].tolist() == [1, 2, 3] and observation.state[0, 6:13].tolist() == list(range(7))
    assert np.linalg.norm(observation.state[0, 3:6]) == pytest.approx(2 * np.pi - 3.0)  # not the shorter turn
    with pytest.raises(UserError, match="50 start states"):
        env.reset(seed=50)


def test_an_episode_of_libero_is_the_same_whatever_was_run_before(libero):
    alone, after, other = (load_suite("libero-goal").make("task-04", 64) for _ in range(3))
    found = []
    for env, episodes in ((alone, (3,)), (after, (0, 1, 2, 3))):
        for episode in episodes:
            other.reset(seed=0)  # another slot of the same process
            env.reset(seed=episode)
        found.append(env._env.fixture_x)
    other.reset(seed=4)
    assert found[0] == found[1] != other._env.fixture_x


def test_axis_and_angle_are_robosuites():
    quat = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_quat()
    assert axis_angle(quat) == pytest.approx([0.3, -0.2, 0.5])
    assert axis_angle(np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [0, 0, 0]
    assert np.linalg.norm(axis_angle(-quat)) > np.pi


def test_pictures_are_processed_as_declared():
    rng = np.random.default_rng(0)
    noisy = np.kron(rng.integers(0, 256, (32, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    again = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs(jpeg_round_trip(noisy).astype(int) - again).mean() < 2  # which Pillow reads by another transform
    assert lanczos(noisy, 224).shape == (224, 224, 3)
    ramp = np.repeat(np.arange(224, dtype=np.uint8)[None, :, None], 224, axis=0).repeat(3, axis=2)
    cropped = centre_crop(ramp, 0.9)
    side = np.sqrt(0.9)
    want = [int(223 * (1 + sign * side) / 2 / 255 * 255.5) for sign in (-1, 1)]  # TensorFlow's way to bytes, which rounds down
    assert cropped[5, [0, -1], 0].tolist() == want
    assert np.array_equal(centre_crop(ramp, 1.0), ramp)


# SimplerEnv


class FakeManiSkill:
    def __init__(self, name: str) -> None:
        self.name, self.resets, self.actions = name, [], []
        self.unwrapped = SimpleNamespace(
            get_language_instruction=lambda: "put the spoon on the towel", agent=SimpleNamespace(get_gripper_closedness=lambda: 0.25)
        )
        FakeManiSkill.last = self

    last: FakeManiSkill

    def reset(self, seed: int, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.resets.append((seed, options))
        self.actions.clear()
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        return self._seen(), 0.0, self.done(len(self.actions)), False, {}

    def done(self, step: int) -> bool:
        return step == 5 or step >= 60

    def _seen(self) -> Any:
        base = np.array([1.0, 0, 0, *Rotation.from_euler("z", 90, degrees=True).as_quat(scalar_first=True)])
        down = Rotation.from_euler("z", 90, degrees=True) * Rotation.from_matrix([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
        tool = np.array([1.0, 0.5, 0.2, *down.as_quat(scalar_first=True)])
        image = np.full((32, 40, 3), 9, dtype=np.uint8)
        return {"agent": {"base_pose": base}, "extra": {"tcp_pose": tool}, "image": image}


@pytest.fixture
def simpler(monkeypatch):
    stand_in(monkeypatch, "simpler_env", make=FakeManiSkill)
    stand_in(monkeypatch, "simpler_env.utils.env.observation_utils", get_image_from_maniskill2_obs_dict=lambda env, seen: seen["image"])


def test_a_success_of_simplerenv_is_one_at_the_last_step(simpler):
    env = load_suite("simpler-widowx").make("widowx_spoon_on_towel", 24)
    env.reset(seed=11)
    fake = FakeManiSkill.last
    assert fake.resets == [(11, {"obj_init_options": {"episode_id": 11}})]
    ended = [env.step(np.array([0.01, 0, 0, 0.3, -0.2, 0.5, 0.8]))[2:4] for _ in range(60)]
    assert ended[:59] == [(False, False)] * 59 and ended[59] == (True, True)
    turn = Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_rotvec()
    np.testing.assert_allclose(fake.actions[0], [0.01, 0, 0, *turn, 1.0])
    env.reset(seed=0)
    env.step(np.array([0, 0, 0, 0, 0, 0, 0.5]))
    assert fake.actions[0][6] == -1.0
    # The tool half a metre in front of a base that is turned, looking down: BridgeData's zero.
    np.testing.assert_allclose(env.state(), [0.5, 0, 0.2, 0, 0, 0, 0.75], atol=1e-9)
    assert env.observation().images["third_person"].shape == (1, 24, 24, 3)
    assert "after the last one" in load_suite("simpler-widowx").termination


def test_simplerenvs_layouts_are_the_published_grid(simpler):
    suite = load_suite("simpler-google-robot")
    env = suite.make("google_robot_pick_horizontal_coke_can", 24)
    env.reset(seed=24)
    assert FakeManiSkill.last.resets[-1] == (24, {"obj_init_options": {"init_xy": [-0.12, 0.42]}})
    drawer = suite.make("google_robot_open_top_drawer", 24)
    drawer.reset(seed=2**30 + 5)
    assert FakeManiSkill.last.resets[-1] == (2**30 + 5, {})
    layouts = {task.name: (task.layouts, task.max_steps) for task in suite.tasks}
    assert layouts["google_robot_move_near"] == (60, 80) and layouts["google_robot_close_middle_drawer"] == (0, 113)
    assert {task.max_steps for task in load_suite("simpler-widowx").tasks} == {60, 120}


def test_the_google_robots_gripper_is_sticky():
    gripper = StickyGripper()
    opening = [1.0, 1.0, 0.2] + [0.2] * 5 + [1.0] * 12 + [0.0]
    sent = [gripper(value) for value in opening]
    assert sent[:2] == [0.0, 0.0]
    assert sent[2:17] == [0.8] * 15  # what was asked for meanwhile is not heard
    assert sent[17:20] == [0.0] * 3 and sent[20] == 1.0


# CALVIN


class FakeCalvin:
    """Each instruction is done `per_task` steps after it was given."""

    def __init__(self, per_task: int) -> None:
        self.per_task, self.time, self.drawn, self.actions, self.resets = per_task, 0, 0, [], []
        self.cameras = ["static", "gripper"]
        FakeCalvin.last = self

    last: FakeCalvin

    def reset(self, robot_obs: Any, scene_obs: Any) -> Any:
        self.resets.append((robot_obs, scene_obs))
        return self.get_camera_obs()

    def get_camera_obs(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        self.drawn += len(self.cameras)
        return {f"rgb_{name}": np.full((20, 20, 3), 7, dtype=np.uint8) for name in self.cameras}, {}

    def get_state_obs(self) -> dict[str, np.ndarray]:
        return {"robot_obs": np.arange(15.0)}

    def get_info(self) -> dict[str, int]:
        return {"time": self.time}

    def step(self, action: np.ndarray) -> tuple[Any, int, bool, dict[str, int]]:
        self.time += 1
        self.actions.append(action)
        self.get_camera_obs()
        return None, 0, False, self.get_info()

    def close(self) -> None:
        pass


@pytest.fixture
def scene(monkeypatch, tmp_path):
    (tmp_path / "validation" / ".hydra").mkdir(parents=True)
    (tmp_path / "validation" / ".hydra" / "merged_config.yaml").write_text("")
    monkeypatch.setenv(calvin.DATASET, str(tmp_path))
    sequence = ("lift", "push", "lift", "turn_on", "open")
    stand_in(monkeypatch, "calvin_env.envs.play_table_env", get_env=lambda folder, show_gui: FakeCalvin(FakeCalvin.speed))
    state = {"get_env_state_for_initial_condition": lambda condition: (condition, condition + 1)}
    stand_in(monkeypatch, "calvin_agent.evaluation.utils", **state)
    stand_in(monkeypatch, "calvin_agent.evaluation.multistep_sequences", get_sequences=lambda count: [(i, sequence) for i in range(count)])
    done = lambda before, now, tasks: tasks if now["time"] - before["time"] >= FakeCalvin.last.per_task else set()  # noqa: E731
    words = {name: [f"please {name}", "other words"] for name in sequence}
    monkeypatch.setattr(calvin, "_oracle_and_words", lambda: (SimpleNamespace(get_task_info_for_set=done), words))
    calvin._sequences.cache_clear()
    yield sequence
    calvin._sequences.cache_clear()


def play(seed: int, steps: int) -> tuple[Any, list[Any]]:
    env = load_suite("calvin").make("sequence", 16)
    env.reset(seed=seed)
    return env, [env.step(np.array([0.1, 0, 0, 0, 0, 0, 0.3])) for _ in range(steps)]


def test_calvins_five_instructions_follow_one_another(scene):
    FakeCalvin.speed = 4
    env, steps = play(seed=999, steps=20)
    fake = FakeCalvin.last
    assert fake.resets == [(999, 1000)] and fake.drawn == 0
    assert [reward for _, reward, *_ in steps] == ([0, 0, 0, 1.0] * 5)
    assert [step[2] for step in steps] == [False] * 19 + [True] and steps[-1][4]["success"]
    assert fake.actions[0].tolist() == [0.1, 0, 0, 0, 0, 0, 1.0]
    assert env.orders == 5 and env.instruction == "please open"
    assert env.observation().images["wrist"].shape == (1, 16, 16, 3) and fake.drawn == 2
    assert env.state().tolist() == list(range(14))


def test_an_instruction_of_calvin_that_is_not_done_in_time_ends_the_sequence(scene):
    FakeCalvin.speed = 361
    _, steps = play(seed=0, steps=360)
    assert [step[3] for step in steps] == [False] * 359 + [True]
    assert not steps[-1][4]["success"] and sum(step[1] for step in steps) == 0
    suite = load_suite("calvin")
    assert (suite.episodes, suite.tasks[0].layouts, suite.tasks[0].max_steps) == (1000, 1000, 5 * 360)


@pytest.mark.parametrize(
    ("suite", "task", "words"),
    [
        ("libero-10", "task-00", "LIBERO needs the package libero, which is not installed here. Install LIBERO from its repository"),
        ("simpler-widowx", "widowx_stack_cube", "SimplerEnv needs the package simpler_env"),
        ("calvin", "sequence", "CALVIN needs the package calvin_env"),
    ],
)
def test_without_the_benchmark_one_line_says_how_to_get_it(suite, task, words):
    with pytest.raises(UserError, match=words) as error:
        load_suite(suite).make(task, 32)
    assert "--sim-python" in str(error.value) and "\n" not in str(error.value)


def test_without_calvins_scene_the_error_names_the_variable(scene, monkeypatch):
    monkeypatch.delenv(calvin.DATASET)
    with pytest.raises(UserError, match="Set CALVIN_DATASET to a folder"):
        load_suite("calvin").make("sequence", 32)
    assert Path(calvin.__file__).is_file()
