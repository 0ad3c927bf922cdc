"""`vla new-robot`: from LeRobot, HDF5 and shards to files that convert, check and train; and blanks that refuse."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.train.toy import NARROW, write_shards
from vla.checkpoint import Contents, save_checkpoint
from vla.cli import main
from vla.convert.card import Card
from vla.embodiment import load_embodiment
from vla.errors import UserError
from vla.new_robot.fields import FieldPlan, propose, suspicious
from vla.new_robot.source import Column, look
from vla.policy import Policy

NAMES = [*(f"{joint}.pos" for joint in ("shoulder", "elbow", "wrist")), "gripper.pos"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A small HDF5 dataset in ALOHA's arrangement: degrees, and a gripper that is open at 100."""
    import h5py

    folder = tmp_path_factory.mktemp("raw") / "mine"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        turn = 60 * np.sin(np.linspace(0, 3, 12)[:, None] + rng.uniform(0, 1, 3))
        numbers = np.concatenate([turn, rng.uniform(0, 100, (12, 1))], axis=1)
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file["action"], file["observations/qpos"] = numbers + 0.5 * np.sign(50 - numbers), numbers
            file["observations/images/top"] = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
            file["observations/images/cam_left_wrist"] = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Pretrained (not really) on the toy robots."""
    from tests.parts import unit_normalizer
    from tests.train.toy import MODEL, WIDE

    torch.manual_seed(0)
    robots = (NARROW, WIDE)
    holds = Contents(MODEL, robots, {robot.name: unit_normalizer(robot) for robot in robots})
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "pretrained", holds, holds.build().state_dict())


SAID = ["--action-fields", "arm:3,gripper:1", "--state-fields", "arm:3,gripper:1", "--rate", "10", "--horizon", "4"]
SAID += ["--unit", "arm=deg", "--unit", "gripper=open01", "--gripper", "gripper=100:0", "--frame", "arm=absolute"]
SAID += ["--frame", "gripper=absolute", "--limit", "arm=-2:2", "--instruction", "push it", "--licence", "CC0-1.0"]


def new_robot(dataset: Path, out: Path, *words: str) -> int:
    return main(["new-robot", str(dataset), "--name", "my_arm", "--out", str(out), *words])


def test_what_it_writes_converts_checks_and_trains(raw, checkpoint, tmp_path, capsys):
    out, data = tmp_path / "robots", tmp_path / "data"
    assert new_robot(raw, out, *SAID, "--init", str(checkpoint), "--data-root", str(data)) == 0
    said = capsys.readouterr().out
    assert "limits of 'arm' in rad: -2:2 (in deg, as the data are: -114.6:114.6)" in said
    assert "fill in" not in said and "third_person = observations/images/top" in said and "wrist_left" in said
    robot = load_embodiment(str(out / "my_arm.py"))
    assert robot.rate_hz == Fraction(10) and robot.cameras == ("wrist_left", "third_person") and robot.limits[0] == (-2.0, 2.0)
    assert [(f.name, f.unit) for f in robot.command.fields] == [("arm", "rad"), ("gripper", "open01")] and robot.limits[3] == (0.0, 1.0)
    commands = [line.strip() for line in said.partition("then:\n")[2].splitlines()]
    assert len(commands) == 6
    for line in commands:  # as it says, to the letter; training alone is cut short
        words = line.split()[1:]
        assert main([*words, *(["--steps", "2", "--out", str(tmp_path / "run")] if words[0] == "train" else [])]) == 0, line
    policy = Policy.load(tmp_path / "run")
    assert [each.name for each in policy.contents.embodiments] == ["my_arm"]
    report = capsys.readouterr().out
    assert "nearest: " in report and "cameras it has never seen: third_person, wrist_left" in report


def test_what_nobody_said_is_a_blank_that_refuses_by_line(raw, tmp_path, capsys):
    assert new_robot(raw, tmp_path / "robots", "--action-fields", "arm:3,gripper:1", "--unit", "gripper=open01") == 0
    said = capsys.readouterr().out
    assert "my_arm.py: fill in line" in said and "my_arm_card.yaml: fill in" in said
    with pytest.raises(UserError, match=r"blanks to fill in, which nothing but you can know: line \d+: unit of 'qpos'") as raised:
        load_embodiment(str(tmp_path / "robots" / "my_arm.py"))
    for left in ("unit of 'arm'", "frame of 'arm'", "frame of 'gripper'", "limits of 'arm'", "commands per second"):
        assert left in str(raised.value), left
    assert "limits of 'gripper'" not in str(raised.value)  # an opening lies between closed and open
    with pytest.raises(UserError, match=r"action.gripper.gripper.open: its value when open; .* instruction.text: what"):
        Card.load(tmp_path / "robots" / "my_arm_card.yaml")
    assert main(["check", str(tmp_path / "robots" / "my_arm_recipe.py")]) == 2  # before any data are looked for
    assert "my_arm.py has" in capsys.readouterr().err


def test_existing_files_are_not_touched(raw, tmp_path, capsys):
    (tmp_path / "my_arm.py").write_text("mine")
    assert new_robot(raw, tmp_path, *SAID) == 2
    assert "may hold your work" in capsys.readouterr().err and (tmp_path / "my_arm.py").read_text() == "mine"
    assert not (tmp_path / "my_arm_card.yaml").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--action", "qpos"], "unknown column for the action 'qpos'. Choices: action, observations/qpos"),
        (["--unit", "arm=degrees"], "unknown unit of 'arm' 'degrees'"),
        (["--frame", "arm=relative"], "unknown frame of 'arm' 'relative'. Choices: absolute, step"),
        (["--gripper", "gripper=1:1"], "open and closed cannot both be 1"),
        (["--gripper", "gripper=open"], "is no OPEN:CLOSED"),
        (["--limit", "arm=3:-3"], "LOW < HIGH"),
        (["--action-fields", "arm:3"], "names 3 numbers; 'action' has 4"),
        (["--camera", "wrist=cam"], "unknown camera for 'wrist' 'cam'"),
        (["--rate", "fast"], "is no rate"),
        (
            ["--limit", "arm=-90:90"],
            "90 rad is more than two turns, which the data stay within. If they are degrees: --limit arm=-1.571:1.571",
        ),
        (["--unit", "wrist=deg"], "unknown field in --unit wrist=deg: 'wrist'. Choices: arm, gripper"),
        (["--limit", "grippper=0:1"], "unknown field in --limit grippper=0:1 (only commands have one): 'grippper'. Choices: arm, gripper"),
        (["--frame", "state.arm=step"], "unknown field in --frame state.arm=step"),
        (["--gripper", "arm=100:0"], "'arm' is deg; only an opening has values for open and closed: --unit arm=open01"),
        (["--unit", "arm=quat_xyzw"], "'arm' has 3 numbers; quat_xyzw takes 4"),
    ],
)
def test_mistakes_are_one_line_with_what_there_is(raw, tmp_path, capsys, words, says):
    assert new_robot(raw, tmp_path / "robots", *SAID, *words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "robots").exists()


def test_answers_about_a_part_of_an_undivided_column_say_how_to_divide_it(raw, tmp_path, capsys):
    assert new_robot(raw, tmp_path, "--unit", "arm=deg") == 2
    error = capsys.readouterr().err
    assert "Choices: action, qpos" in error and "--action-fields arm:3,gripper:1 --state-fields arm:3,gripper:1" in error
    assert new_robot(raw, tmp_path, *SAID[:4], "--limit", "arm=-1:1") == 2  # in no unit
    assert "limits are in the field's unit, which nobody has said: --unit arm=UNIT" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_pictures_of_floats_are_named_as_the_reason_that_they_are_no_camera(tmp_path, capsys):
    import h5py

    (tmp_path / "mine").mkdir()
    with h5py.File(tmp_path / "mine" / "episode_0.hdf5", "w") as file:
        file["action"], file["observations/qpos"] = np.zeros((5, 4)), np.zeros((5, 4))
        file["observations/images/top"] = np.zeros((5, 16, 16, 3), np.float32)
    assert new_robot(tmp_path / "mine", tmp_path / "robots") == 0
    said = capsys.readouterr().out
    assert "'observations/images/top' (float32): no camera, since pictures are uint8" in said
    assert "chunks of 16 commands (at no known rate: give the rate with --rate for a second's worth" in said
    assert new_robot(tmp_path / "mine", tmp_path / "more", "--camera", "front=observations/images/top") == 2
    assert "Its numbers are float32; pictures are uint8" in capsys.readouterr().err


def test_limits_that_the_data_reached_have_to_be_asked_for(raw, tmp_path):
    assert new_robot(raw, tmp_path, *SAID, "--limit", "arm=observed") == 0
    low, high = load_embodiment(str(tmp_path / "my_arm.py")).limits[0]
    column = look(raw).columns["action"]
    assert (low, high) == pytest.approx((np.deg2rad(column.low_A[0]), np.deg2rad(column.high_A[0])))


def test_lerobot_names_and_rate_are_read(tmp_path):
    shards = write_shards(tmp_path / "data")
    assert main(["export", "lerobot", str(shards / "a"), str(tmp_path / "theirs"), "--images"]) == 0
    info = tmp_path / "theirs" / "meta" / "info.json"
    facts = json.loads(info.read_text())
    facts["features"]["action"]["names"] = ["left_gripper", "left_elbow"]
    info.write_text(json.dumps(facts))
    offer = look(tmp_path / "theirs")
    assert (offer.format, offer.rate_hz, offer.episodes, offer.texts) == ("lerobot", Fraction(10), 12, ("task",))
    assert new_robot(tmp_path / "theirs", tmp_path / "robots", "--unit", "left_gripper=open01", "--gripper", "left_gripper=0:1") == 0
    text = (tmp_path / "robots" / "my_arm.py").read_text()
    assert 'Field("left_gripper", 1, "open01"' in text and 'Field("left_arm", 1, blank(' in text
    assert 'rate_hz=Fraction("10")' in text and "from: task" in (tmp_path / "robots" / "my_arm_card.yaml").read_text()


def test_a_name_in_the_data_never_becomes_code(tmp_path, monkeypatch):
    """The names of a dataset's numbers stand in comments of the robot's file, which is run as soon as it is written."""
    shards = write_shards(tmp_path / "data")
    assert main(["export", "lerobot", str(shards / "a"), str(tmp_path / "theirs"), "--images"]) == 0
    info = tmp_path / "theirs" / "meta" / "info.json"
    facts = json.loads(info.read_text())
    facts["features"]["action"]["names"] = ["elbow\nopen('run', 'w')", "肘\r\x00\u2028\ud800"]
    info.write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path)
    words = ["--unit", "arm=rad", "--frame", "arm=absolute", "--limit", "arm=-1:1"]
    assert new_robot(tmp_path / "theirs", tmp_path / "robots", *words) == 0
    assert not (tmp_path / "run").exists()
    text = (tmp_path / "robots" / "my_arm.py").read_text(encoding="utf-8")
    assert "elbow\\nopen" in text and "肘" in text and load_embodiment(str(tmp_path / "robots" / "my_arm.py")).command.size == 2


def test_a_folder_of_any_name_is_named_so_that_files_and_commands_take_it(raw, tmp_path, capsys):
    theirs = tmp_path / 'kitchen: day 1 #2 "a"'
    theirs.symlink_to(raw)
    assert new_robot(theirs, tmp_path / "our robots", *SAID, "--data-root", str(tmp_path / "the data")) == 0
    mixture = yaml.safe_load((tmp_path / "our robots" / "my_arm_mixture.yaml").read_text(encoding="utf-8"))
    assert mixture["why"] == f"demonstrations of my_arm, from {theirs.name}"
    load_embodiment(str(tmp_path / "our robots" / "my_arm.py"))
    lines = capsys.readouterr().out.partition("then:\n")[2].splitlines()
    assert shlex.split(lines[1])[:4] == ["vla", "convert", "hdf5", str(theirs)]
    assert main(shlex.split(lines[1])[1:]) == 0 and main(shlex.split(lines[2])[1:]) == 0


def test_our_own_shards_say_everything(tmp_path, capsys):
    shards = write_shards(tmp_path / "data")
    assert new_robot(shards / "a", tmp_path / "robots") == 2
    assert "was recorded on 'narrow', and shards name their robot: --name narrow" in capsys.readouterr().err
    words = ["new-robot", str(shards / "a"), "--name", "narrow", "--out", str(tmp_path / "robots"), "--data-root", str(shards)]
    assert main(words) == 0
    assert load_embodiment(str(tmp_path / "robots" / "narrow.py")) == NARROW
    assert (
        not (tmp_path / "robots" / "narrow_card.yaml").exists() and "path: a\n" in (tmp_path / "robots" / "narrow_mixture.yaml").read_text()
    )
    capsys.readouterr()
    assert main([*words[:5], str(tmp_path / "more"), "--limit", "position=-1:1"]) == 0
    assert load_embodiment(str(tmp_path / "more" / "narrow.py")).limits == ((-1.0, 1.0),) * 2


def test_on_a_terminal_it_asks(raw, tmp_path):
    """Real prompts on a real pseudo-terminal: the same robot as from flags."""
    answers = [
        *("arm:3,gripper:1", "arm:3,gripper:1"),
        "deg",
        "absolute",
        "-2:2",
        "open01",
        "relative",
        "absolute",
        "100:0",
    ]  # one of them is none of the choices
    answers += ["deg", "", "", "push it", "10", "CC0-1.0"]
    main_end, other_end = pty.openpty()
    command = [sys.executable, "-m", "vla", "new-robot", str(raw), "--name", "my_arm", "--out", str(tmp_path), "--horizon", "4"]
    with subprocess.Popen(command, stdin=other_end, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        os.write(main_end, ("\n".join(answers) + "\n").encode())
        said = child.communicate(timeout=100)[0]
    os.close(main_end), os.close(other_end)
    assert child.returncode == 0, said
    assert "'relative' is none of the choices" in said and "fill in" not in said
    assert new_robot(raw, tmp_path / "flags", *SAID) == 0
    assert load_embodiment(str(tmp_path / "my_arm.py")) == load_embodiment(str(tmp_path / "flags" / "my_arm.py"))
    assert Card.load(tmp_path / "my_arm_card.yaml", load_embodiment(str(tmp_path / "my_arm.py"))).state["gripper"].gripper.open == 100


def test_a_hole_in_the_numbers_and_a_column_of_many_widths_are_no_end(tmp_path):
    """Simulators write as many numbers as a scene has objects: that column, which nobody asked for, ended the command in a traceback."""
    import h5py

    for number in range(3):
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "w") as file:
            rows = np.linspace(-1, 1, 24).reshape(12, 2) * (number + 1)
            rows[3 + number, 0] = np.nan
            file["action"], file["observations/qpos"], file["sim/objects"] = rows, rows, np.zeros((12, 7 + number))
            file["observations/images/top"] = np.zeros((12, 16, 16, 3), np.uint8)
    columns = look(tmp_path).columns
    assert columns["action"].low_A == pytest.approx((-3, -3 + 6 / 23)) and columns["action"].high_A == pytest.approx((3 - 6 / 23, 3))
    assert columns["sim/objects"].low_A == ()


def test_depth_is_no_camera():
    """It came first in the alphabet: the third person, whose every picture is refused for its 16 bits."""
    offer = look(Path(__file__).parents[1] / "convert/golden/rlds/mini/1.0.0", "rlds")
    assert "observation/depth" not in offer.cameras and "observation/image" in offer.cameras
    assert offer.no_bytes["observation/depth"] == "uint16"


def test_names_of_numbers_become_fields():
    bimanual = [f"{side}_{joint}" for side in ("left", "right") for joint in ("waist", "elbow", "gripper")]
    found = propose(Column("action", 6, tuple(bimanual)))
    assert [(each.name, each.width) for each in found] == [("left_arm", 2), ("left_gripper", 1), ("right_arm", 2), ("right_gripper", 1)]
    assert [each.name for each in propose(Column("observations/qpos", 4))] == ["qpos"]
    assert [(each.name, each.width) for each in propose(Column("action", 4, tuple(NAMES)))] == [("arm", 3), ("gripper", 1)]


@pytest.mark.parametrize(
    ("recorded", "reach", "says"),
    [("rad", 90, "is it in degrees"), ("deg", 1.5, "is it in rad"), ("m", 300, "is it in mm"), ("mm", 0.3, "is it in m"), ("rad", 3, "")],
)
def test_numbers_that_speak_against_a_unit_are_noted(recorded, reach, says):
    note = suspicious(FieldPlan("arm", 0, 2, recorded), Column("action", 2, (), (-reach / 2, 0), (reach, reach)))
    assert says in note and bool(note) == bool(says)
