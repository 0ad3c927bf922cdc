"""Cards: strict, frozen, and every mistake in one an error that names its place."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from vla.convert.card import Card, card_names, cards_folder
from vla.embodiment import Field, load_embodiment
from vla.errors import SchemaError, UnknownName, UserError

README = Path(__file__).parents[2] / "data_mixtures" / "sources" / "README.md"
EXAMPLE = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1))


def changed(**changes) -> dict:
    """The example with `part__key=value` set; None removes."""
    data = copy.deepcopy(EXAMPLE)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return data


def test_the_example_of_the_page_is_a_card():
    card = Card.from_json(EXAMPLE)
    assert card.rate_hz == 20 and card.robot.name == "panda" and card.source.version == "1.0.0"
    assert card.action_space == card.robot.command and card.state_space == card.robot.state
    assert card.cameras["third_person"].rotate == 180 and card.absent == {"wrist": "not recorded"}
    assert {"observation/image", "observation/stamp", "is_last", "action", "language_instruction"} <= card.wanted
    info = card.dataset_info()
    assert info.licence == "CC-BY-4.0" and Card.from_json(info.info["card"]) == card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": None}, "'licence' is missing"),
        ({"colour": "red"}, "unknown key 'colour'. Keys: name"),
        ({"name": "a.b"}, "name 'a.b'"),
        ({"supervision": "labels"}, "choose one of actions"),
        ({"rate_hz": 0}, "above 0"),
        ({"rate_hz": "fast"}, "30000/1001"),
        ({"embodiment": "pandora"}, "unknown embodiment 'pandora'"),
        ({"embodiment": None}, "needs `embodiment`"),
        ({"absent": {}}, "camera 'wrist' of 'panda' is missing"),
        ({"absent": {"wrist": "none", "ceiling": "none"}}, "'ceiling' is no role"),
        ({"cameras__wrist": {"from": "x"}}, "under `cameras` too"),
        ({"cameras__third_person__rotate": 45}, "0, 90, 180, 270"),
        ({"cameras__third_person__crop": [0, 0, 0, 5]}, "top, left, height, width"),
        ({"state__hand": None}, "field 'hand' of 'panda' is missing"),
        ({"state__elbow": {"from": "x"}}, "unknown field 'elbow'"),
        ({"state__hand__slice": [0, 4]}, "state: hand: 4 numbers are chosen"),
        ({"state__hand__slice": "0:3"}, "[start, stop]"),
        ({"state__hand__unit": "deg"}, "'deg' cannot become m; choose one of m, cm"),
        ({"state__hand__index": [0, 1, 2]}, "`slice` or `index`"),
        ({"state__rotation__rotation": "euler_xyz"}, "euler_<xyz>_<extrinsic|intrinsic>"),
        ({"state__rotation__rotation": "euler_xxy_extrinsic"}, "euler_<xyz>_<extrinsic|intrinsic>"),
        ({"state__rotation__rotation": None}, "needs `rotation`"),
        ({"state__rotation": {"from": "x", "slice": [3, 6], "rotation": "quat_wxyz"}}, "3 numbers are chosen; quat_wxyz takes 4"),
        ({"state__gripper": {"constant": [0.0]}}, "takes `why`"),
        ({"state__gripper": {"why": "no"}}, "give `from`, or a `constant`"),
        ({"action__gripper__gripper": {"open": 1, "closed": 1}}, "open and closed are the same"),
        ({"action__gripper": {"from": "a", "index": 6, "gripper": {"open": 1, "closed": 0}}}, "the field's unit is command"),
        ({"action__move__difference": True, "action__move__next": True}, "remove `next`"),
        ({"action__gripper__difference": True}, "must be `step`"),
        ({"action__move__delta": {"axes": "tool", "by": "hand"}}, "'hand' is no rotation"),
        ({"action__move__scale": [1, 2]}, "scale has 2 numbers"),
        ({"action__move__scale": float("nan")}, "finite number"),
        ({"instruction": {"from": "a", "text": "b"}}, "exactly one of"),
        ({"time": {"unit": "s"}}, "give `from`"),
        ({"drop__episodes": [{"column": "a", "why": "b"}]}, "exactly one of `equals`"),
        ({"drop__episodes": [{"column": "a", "equals": 1}]}, "drop: episodes: 1: the key 'why' is missing"),
        ({"facts": []}, "a list of at least one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_a_mistake_is_named_with_its_place(changes, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        Card.from_json(changed(**changes), "x.yaml")
    assert "\n" not in str(caught.value)


def test_a_card_names_no_code(tmp_path):
    ran = tmp_path / "ran"
    robot = tmp_path / "robot.py"
    robot.write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(UnknownName, match="--embodiment"):
        Card.from_json(changed(embodiment=str(robot)))
    assert not ran.exists()
    mine = replace(load_embodiment("panda"), name="mine")
    assert Card.from_json(changed(embodiment="mine"), robot=mine).robot is mine
    with pytest.raises(SchemaError, match="gives 'mine'"):
        Card.from_json(EXAMPLE, robot=mine)


def test_recorded_frames_may_differ_from_the_commands():
    card = Card.from_json(changed(action__gripper__frame="step"))
    assert [field.frame for field in card.action_space.fields] == ["step", "step", "step"]
    assert [field.frame for field in card.robot.command.fields] == ["step", "step", "absolute"]


def test_video_needs_no_robot():
    keys = ("embodiment", "state", "action", "absent", "drop", "time")
    video = {key: value for key, value in EXAMPLE.items() if key not in keys} | {"supervision": "none", "rate_hz": "30000/1001"}
    card = Card.from_json(video)
    assert card.rate_hz == Fraction(30000, 1001) and card.dataset_info().recorded_action is None
    hands = video | {"supervision": "hands", "state": {"left_wrist": {"from": "left", "field": {"size": 3, "unit": "m"}}}}
    assert Card.from_json(hands).dataset_info().recorded_state.fields == (Field("left_wrist", 3, "m"),)
    with pytest.raises(SchemaError, match="neither state nor action"):
        Card.from_json(hands | {"supervision": "none"})
    with pytest.raises(SchemaError, match="give `field"):
        Card.from_json(hands | {"state": {"left_wrist": {"from": "left"}}})


def test_a_card_is_found_by_name_or_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(EXAMPLE))
    assert Card.find(path) == Card.from_json(EXAMPLE)
    with pytest.raises(UnknownName, match="unknown card 'no_such'.*sources/README.md"):
        Card.find("no_such")
    with pytest.raises(SchemaError, match="no card"):
        Card.find(tmp_path / "other.yaml")
    path.write_text("name: [")
    with pytest.raises(SchemaError, match="is no YAML"):
        Card.find(path)
    path.write_text("name: !!python/object/apply:os.system ['true']")
    with pytest.raises(SchemaError, match="is no YAML"):
        Card.find(path)


@pytest.mark.parametrize("name", card_names() or [pytest.param("", marks=pytest.mark.skip("no cards"))])
def test_every_card_of_the_folder_is_sound(name):
    card = Card.find(name)
    assert card.name == name and (cards_folder() / f"{name}.yaml").is_file()
    assert card.facts and card.licence and card.citation
