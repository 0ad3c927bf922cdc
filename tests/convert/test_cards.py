"""Every card of the Open X-Embodiment collection: a miniature of the dataset's true structure, through the engine, into shards and out."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import yaml
from scipy.spatial.transform import Rotation

from tests.convert.collection import END, START, table
from tests.convert.oxe import EPISODES, FEATURES, INSTRUCTION, STEPS, Miniature, features, kind_of
from vla.cli import main
from vla.convert.card import Card, card_names
from vla.convert.engine import Settings, convert
from vla.convert.mapping import Mapper, check_against
from vla.convert.raw import RawEpisode
from vla.convert.rlds import Rlds
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.reader import Dataset
from vla.data.statistics import compute_stats
from vla.embodiment import ROTATION_UNITS, to_rotation
from vla.errors import SchemaError
from vla.normalize import RobotNormalizer
from vla.types import Episode

ROOT = Path(__file__).parents[2]
NAMES = sorted(FEATURES["datasets"])
README = ROOT / "data_mixtures" / "README.md"
MIXTURES = sorted(path for path in README.parent.glob("*.yaml") if "oxe/" in path.read_text(encoding="utf-8"))
WITHOUT_RATE = {"stanford_mask_vit_converted_externally_to_rlds"}


def only(name: str, **changes) -> RawEpisode:
    """The first episode of a miniature, with some columns given."""
    raw, _ = Miniature(name).episode(0)
    for column, values in changes.items():
        key = column.replace("__", "/")
        raw.columns[key][...] = np.asarray(values).reshape(raw.columns[key].shape)
    return raw


def mapped(raw: RawEpisode, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """State and action of an episode by field."""
    card = Card.find(name)
    episode = Mapper(card).episode(raw).episode
    assert episode is not None
    state = card.state_space.unpack(episode.state) if card.state_space else {}
    return state, card.action_space.unpack(episode.action)


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHOUT_RATE))
def test_a_miniature_goes_into_shards_and_comes_out_as_declared(name, tmp_path):
    card = Card.find(name)
    check_against(card, Miniature(name).features())
    report = convert(partial(Miniature, name), card, tmp_path / name, Settings(workers=0, max_bad=0.0))
    assert report.episodes == EPISODES and not report.bad
    dataset = Dataset.open(tmp_path / name)
    assert dataset.info.robot == card.robot and set(dataset.cameras) == set(card.cameras) and dataset.info.licence == card.licence
    lost = card.drop.first_steps + any(how.following for how in card.action.values())
    for number in range(EPISODES):
        episode, (_, planted) = dataset.read(number), Miniature(name).episode(number)
        assert episode.steps == STEPS - lost and episode.rate_hz == card.rate_hz
        assert [span.text for span in episode.instructions] == [INSTRUCTION]
        np.testing.assert_allclose(np.diff(episode.time_s), 1 / float(card.rate_hz))
        check_units(card, episode)
        check_rotations(card, episode, planted)
        check_pictures(card, episode)


def check_units(card: Card, episode: Episode) -> None:
    for space, rows in ((card.state_space, episode.state), (card.action_space, episode.action)):
        if space is None:
            assert rows is None
            continue
        for field, values in ((space.field(name), values) for name, values in space.unpack(rows).items()):
            if field.unit in ROTATION_UNITS:
                to_rotation(values, field.unit)  # refuses what is none
            if field.unit == "open01":
                assert set(np.unique(values.round(6))) <= {0.0, 1.0}  # the miniature's grippers are at one end or the other


def check_rotations(card: Card, episode: Episode, planted: dict[str, Rotation]) -> None:
    for place, turns in planted.items():
        kind, name = place.split("/")
        how, space = getattr(card, kind)[name], card.state_space if kind == "state" else card.action_space
        if how.delta:
            continue  # written along other axes: hand-worked below
        stored = to_rotation(space.unpack(getattr(episode, kind))[name], space.field(name).unit)
        first = card.drop.first_steps
        assert (stored.inv() * turns[first : first + episode.steps]).magnitude().max() < 1e-5  # float32 in the source


def check_pictures(card: Card, episode: Episode) -> None:
    for role, camera in card.cameras.items():
        shape = kind_of(features(card.name)[camera.column])[2]
        pixels = simplejpeg.decode_jpeg(episode.frames[role].jpeg[0])
        assert pixels.shape == shape and len(episode.frames[role].jpeg) == episode.steps
        red, _, blue = pixels[4, 4].astype(int)
        assert (blue > red + 100) if camera.colour == "bgr" else (red > blue + 100), role


def test_without_a_rate_nothing_is_converted(tmp_path):
    (name,) = WITHOUT_RATE
    with pytest.raises(SchemaError, match="states no rate; write `rate_hz`"):
        convert(partial(Miniature, name), Card.find(name), tmp_path / name, Settings(workers=0))


# --- hand-worked numbers, against the formulas of the published transforms ---


def test_bridge_is_the_motion_that_was_reached():
    state = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]] * 2 + [
        [0.1, 0.2, 0.3, 0.0, 0.1, 3.0, 0.5],
        [0.3, 0.1, 0.3, 0.2, 0.1, -3.0, 0.0],
        [0.3] * 6 + [0],
    ]
    action = np.zeros((STEPS, 7))
    action[:, 6] = [1.0, 1.0, 0.5, 0.0, 0.0]
    state_parts, action_parts = mapped(only("bridge_orig", observation__state=state, action=action), "bridge_orig")
    # octo, relabel_actions: state[1:, :6] - state[:-1, :6]; OpenVLA drops the first step before; the last has no successor.
    np.testing.assert_allclose(action_parts["hand"], [[0.1, 0.2, 0.3], [0.2, -0.1, 0.0], [0.0, 0.2, 0.0]], atol=1e-6)
    turn = action_parts["rotation"]
    np.testing.assert_allclose(turn[:, :2], [[0.0, 0.1], [0.2, 0.0], [0.1, 0.2]], atol=1e-6)
    np.testing.assert_allclose(turn[:, 2], [3.0, -6.0 + 2 * np.pi, 3.3 - 2 * np.pi], atol=1e-6)  # they: 3.0, -6.0, 3.3
    # octo, binarize_gripper_actions: 0.5 lies between, so it takes the next decided one.
    assert action_parts["gripper"][:, 0].tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(state_parts["gripper"][:, 0], [1.0, 0.5, 0.0], atol=1e-6)


def test_fractal_remembers_its_gripper():
    move, turn = np.arange(15).reshape(5, 3) / 10, np.arange(15).reshape(5, 3) / -10
    raw = only(
        "fractal20220817_data",
        action__world_vector=move,
        action__rotation_delta=turn,
        action__gripper_closedness_action=[0.0, 1.0, 0.0, -1.0, 0.05],
        observation__gripper_closed=[0.0, 0.25, 1.0, 1.0, 0.5],
    )
    state_parts, action_parts = mapped(raw, "fractal20220817_data")
    np.testing.assert_allclose(action_parts["move"], move, atol=1e-6)
    np.testing.assert_allclose(action_parts["turn"], turn, atol=1e-6)
    # octo, rel2abs_gripper_actions: the first command closes, so it was open; then closed until it opens.
    assert action_parts["gripper"][:, 0].tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]
    np.testing.assert_allclose(state_parts["gripper"][:, 0], [1.0, 0.75, 0.0, 0.0, 0.5], atol=1e-6)


def test_droid_steps_are_metres_and_turns_about_the_hands_own_axes():
    velocity, pose = np.zeros((STEPS, 6)), np.zeros((STEPS, 6))
    velocity[:] = [1.0, -0.5, 0.0, 0.0, 0.0, 1.0]  # along x and -y, and about the base's z
    pose[:, 3] = np.pi / 2  # rolled a quarter turn: the base's z is the hand's y
    raw = only(
        "droid",
        action_dict__cartesian_velocity=velocity,
        observation__cartesian_position=pose,
        action_dict__gripper_position=[0.0, 0.25, 0.5, 0.75, 1.0],
    )
    state_parts, action_parts = mapped(raw, "droid")
    np.testing.assert_allclose(action_parts["move"], [[0.075, -0.0375, 0.0]] * STEPS)
    np.testing.assert_allclose(action_parts["turn"], [[0.0, 0.15, 0.0]] * STEPS, atol=1e-12)
    # OpenVLA, droid_baseact_transform: 1 - gripper_position
    np.testing.assert_allclose(action_parts["gripper"][:, 0], [1.0, 0.75, 0.5, 0.25, 0.0])
    # droid, add_poses: R' = dR R in the base. Ours is R turn.
    reached = to_rotation(state_parts["rotation"], "quat_xyzw") * to_rotation(action_parts["turn"], "axis_angle")
    theirs = Rotation.from_euler("xyz", 0.15 * velocity[:, 3:]) * Rotation.from_euler("xyz", pose[:, 3:])
    assert (reached.inv() * theirs).magnitude().max() < 1e-7


def test_a_quaternion_of_scalar_first_is_read_so():
    name = "iamlab_cmu_pickup_insert_converted_externally_to_rlds"
    action = np.zeros((STEPS, 8))
    action[:] = [0.5, 0.0, 0.2, np.cos(0.3), 0.0, 0.0, np.sin(0.3), 1.0]  # w, x, y, z: 0.6 rad about z
    _, parts = mapped(only(name, action=action), name)
    np.testing.assert_allclose(parts["rotation"][0], [np.cos(0.6), np.sin(0.6), 0, -np.sin(0.6), np.cos(0.6), 0], atol=1e-6)
    np.testing.assert_allclose(parts["hand"][0], [0.5, 0.0, 0.2], atol=1e-6)
    assert parts["gripper"][:, 0].tolist() == [1.0] * STEPS


def test_a_quaternion_of_scalar_last_is_a_turn_from_where_the_hand_is():
    name = "furniture_bench_dataset_converted_externally_to_rlds"
    action = np.zeros((STEPS, 8))
    action[:] = [0.01, 0.0, 0.0, np.sin(0.2), 0.0, 0.0, np.cos(0.2), -1.0]  # x, y, z, w: 0.4 rad about x
    action[3:, 7] = 1.0
    _, parts = mapped(only(name, action=action), name)
    np.testing.assert_allclose(parts["turn"][0], [0.4, 0.0, 0.0], atol=1e-6)
    # octo: invert_gripper_actions(clip(a, 0, 1))
    assert parts["gripper"][:, 0].tolist() == (1 - np.clip(action[:, 7], 0, 1)).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_euler_angles_of_dobbe_are_the_relative_rotation():
    before, after = Rotation.from_euler("xyz", [0.1, 0.2, 0.3]), Rotation.from_euler("xyz", [0.3, -0.1, 0.4])
    # its builder: q1.inverse * q2, then pyquaternion's yaw_pitch_roll, which is intrinsic z, y, x
    yaw, pitch, roll = (before.inv() * after).as_euler("ZYX")
    action = np.zeros((STEPS, 7))
    action[:, 3:6] = [roll, pitch, yaw]
    _, parts = mapped(only("dobbe", action=action), "dobbe")
    assert (before * Rotation.from_rotvec(parts["rotation"][0]) * after.inv()).magnitude() < 1e-6


def test_absolute_millimetres_and_degrees_of_the_kitchen():
    name = "ucsd_kitchen_dataset_converted_externally_to_rlds"
    action = np.zeros((STEPS, 8))
    action[:] = [410.0, 117.0, 192.0, -180.0, -34.0, 50.0, 1.0, 0.0]
    _, parts = mapped(only(name, action=action), name)
    np.testing.assert_allclose(parts["hand"][0], [0.41, 0.117, 0.192], atol=1e-6)
    np.testing.assert_allclose(parts["rotation"][0], np.deg2rad([-180.0, -34.0, 50.0]), atol=1e-6)


def test_a_column_major_pose_of_viola():
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.0, 0.0, 0.5]).as_matrix()
    pose[:3, 3] = [0.4, 0.1, 0.2]
    state_parts, _ = mapped(only("viola", observation__ee_states=np.tile(pose.T.reshape(16), (STEPS, 1))), "viola")
    np.testing.assert_allclose(state_parts["hand"][0], [0.4, 0.1, 0.2], atol=1e-6)
    np.testing.assert_allclose(state_parts["rotation"][0], [np.cos(0.5), np.sin(0.5), 0, -np.sin(0.5), np.cos(0.5), 0], atol=1e-6)


def test_kuka_keeps_successes_alone():
    raw = only("kuka")
    raw.facts["success"] = False
    found = Mapper(Card.find("kuka")).episode(raw)
    assert found.episode is None and list(found.dropped.values()) == [1]


def test_words_are_asked_for_where_the_published_mixture_asks():
    raw = only("bridge_orig")
    raw.texts["language_instruction"] = [""] * STEPS
    assert Mapper(Card.find("bridge_orig")).episode(raw).dropped == {"episodes: no instruction": 1}
    raw = only("viola")
    raw.texts["observation/natural_language_instruction"] = [""] * STEPS
    assert [span.text for span in Mapper(Card.find("viola")).episode(raw).episode.instructions] == [""]


@pytest.mark.slow
def test_real_rlds_files_go_the_same_way(tmp_path):
    names = ("bridge_orig", "fractal20220817_data", "droid")
    subprocess.run([sys.executable, "-m", "tests.convert.oxe_write", str(tmp_path), *names], check=True, capture_output=True, cwd=ROOT)
    for name in names:
        card, out = Card.find(name), tmp_path / "shards" / name
        source = tmp_path / name / "1.0.0"
        found = {feature.name: (feature.kind, feature.shape) for feature in Rlds(source).features()}
        mine = {key: (kind_of(spec)[0], kind_of(spec)[2]) for key, spec in features(name).items()}
        assert {key: found[key] for key in mine} == mine
        assert main(["convert", "rlds", str(source), "--card", name, "--out", str(out), "--workers", "0"]) == 0
        dataset, want = Dataset.open(out), [Mapper(card).episode(Miniature(name).episode(n)[0]).episode for n in range(EPISODES)]
        actions = sorted((dataset.read(n).action for n in range(EPISODES)), key=lambda rows: rows[0, 0])  # tfds shuffles
        for got, episode in zip(actions, sorted(want, key=lambda episode: episode.action[0, 0]), strict=True):
            np.testing.assert_allclose(got, episode.action, atol=1e-6)  # a TFRecord keeps float64 as float32


# --- the folder as a whole ---


def test_every_dataset_of_the_published_mixtures_has_a_card_and_a_structure():
    for path in MIXTURES:
        text = path.read_text(encoding="utf-8")
        assert "weights: per_step" in text and "# Published as" in text, path.name
        listed = [line.split("oxe/")[1].split()[0] for line in text.splitlines() if "path: oxe/" in line]
        assert listed and set(listed) <= set(card_names()) and set(listed) <= set(NAMES), path.name
    assert len(MIXTURES) >= 16


@pytest.mark.parametrize(
    ("name", "sources", "total"),  # counted in the published tables: datasets, and the sum of their weights
    [
        ("bridge", 1, 1),
        ("bridge_rt_1", 2, 2),
        ("rtx", 11, 19.37497585),
        ("rtx_openvla", 10, 14.37497585),
        ("rtx_franka", 25, 41.57497585),
        ("rtx_franka_openvla", 24 - 1, 36.57497585 - 1),  # without joints, which OpenVLA's loader refuses
        ("octo", 25, 30.77497585),
        ("oxe_magic_soup", 23, 29.57497585),
        ("oxe_magic_soup_plus", 27, 31.03497585),
        ("oxe_magic_soup_plus_minus", 25, 31.33410463),
        ("oxe_flex_act_soup", 32 + 2, 39.77497585 + 2),  # three datasets for Octo's one of navigation
        ("oxe_full", 50 + 2, 50 + 2),
    ],
)
def test_weights_are_the_published_ones(name, sources, total):
    rows = yaml.safe_load((README.parent / f"{name}.yaml").read_text(encoding="utf-8"))["sources"]
    assert (len(rows), sum(row["weight"] for row in rows)) == (sources, pytest.approx(total))


def test_published_weights_keep_their_meaning(tmp_path):
    mixture = README.parent / "oxe_magic_soup_plus_minus.yaml"
    names = [line.split("oxe/")[1].split()[0] for line in mixture.read_text(encoding="utf-8").splitlines() if "path: oxe/" in line]
    small, large = "toto", "viola"  # published weights 1 and 2
    for name in names:
        convert(partial(Miniature, name), Card.find(name), tmp_path / "oxe" / name, Settings(workers=0, limit_episodes=1 + (name == large)))
    found = Mixture.load(mixture, tmp_path, verify="size")
    assert found.source(large).share / found.source(small).share == pytest.approx(2 * 2)  # twice the weight, twice the steps


def test_robots_of_the_collection_are_learned_from_together(tmp_path):
    names = ("roboturk", "bridge_orig", "droid")  # without a state; differences of angles; rotations
    for name in names:
        convert(partial(Miniature, name), Card.find(name), tmp_path / name, Settings(workers=0))
    mixture = Mixture.of({tmp_path / name: 1.0 for name in names}, val_fraction=0.0)
    robots = {card.robot.name: card.robot for card in map(Card.find, names)}
    stats = compute_stats(mixture, robots)
    pipeline, seen = Pipeline(mixture, robots, seed=1, block=30), set()
    for position in range(30):
        sample = pipeline.sample(position)
        robot = robots[sample.observation.embodiment]
        normalizer = RobotNormalizer.fit(stats[robot.name], robot)
        assert sample.observation.state.shape == (1, robot.state.size) and sample.action_TA.shape == (robot.horizon, robot.command.size)
        assert normalizer.state.normalize(sample.observation.state).shape == (1, robot.state.size)
        assert np.isfinite(normalizer.action.normalize(sample.action_TA)).all()
        assert set(sample.observation.images) == set(robot.cameras)
        seen.add(robot.name)
    assert seen == set(robots)


def test_the_table_of_the_collection_is_made_from_the_cards():
    text = README.read_text(encoding="utf-8")
    assert text[text.index(START) + len(START) : text.index(END)].strip() == table().strip(), "run `python -m tests.convert.collection`"


def test_swapped_colours_would_be_seen():
    raw = only("utaustin_mutex")
    pixels = simplejpeg.decode_jpeg(raw.pictures["observation/image"].data[0])
    assert pixels[4, 4, 0] > pixels[4, 4, 2] + 100  # red before; the test above asks for blue after
