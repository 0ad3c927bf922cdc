"""`vla check`, `vla show` and `vla stats` on real folders, through the command line's own entry."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vla.cli import main
from vla.data.mixture import Mixture
from vla.data.shard import Dataset, DatasetInfo, ShardWriter

from .episodes import ROBOT, make_episode, make_video

MIXTURES = Path(__file__).parents[2] / "data_mixtures"
ROBOT_FILE = f"""
from fractions import Fraction
from vla.embodiment import Embodiment
EMBODIMENT = Embodiment.from_json({ROBOT.to_json()!r})
"""


def write(folder, name, episodes, **info):
    with ShardWriter(folder, DatasetInfo(name=name, **{"embodiment": ROBOT.to_json(), **info}), max_shard_bytes=60_000) as writer:
        for episode in episodes:
            writer.add(episode)


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "arms", "arms", [make_episode(f"e{i}", 20, i) for i in range(6)])
    write(tmp_path / "clips", "clips", [make_video("a", 30)], embodiment=None, supervision="none")
    (tmp_path / "mix.yaml").write_text("name: both\nsources: [{path: arms, weight: 3}, {path: clips, weight: 1}]")
    (tmp_path / "robot.py").write_text(ROBOT_FILE)
    return tmp_path


def check(capsys, *argv):
    code = main(["check", *map(str, argv)])
    return code, capsys.readouterr()


def test_sound_data_passes(root, capsys):
    code, out = check(capsys, root / "arms")
    assert code == 0 and "dataset, sound" in out.out and "episodes: 6" in out.out
    code, out = check(capsys, root / "mix.yaml", "--data-root", root, "--json")
    report = json.loads(out.out)
    assert code == 0 and report["sound"] and report["facts"]["sources"]["clips"]["share"] == 0.25
    assert report["facts"]["sources"]["arms"]["checked"] == "every byte"
    code, out = check(capsys, root / "mix.yaml", "--data-root", root)
    assert "arms 75.0%, 6 episodes, 120 steps; clips 25.0%" in out.out


def test_damage_is_named_and_counted(root, capsys):
    first, second = (root / "arms" / f"shard-0000{i}.tar" for i in (0, 1))
    first.write_bytes(first.read_bytes()[:-700])
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(data)
    code, out = check(capsys, root / "arms", "--json")
    report = json.loads(out.out)
    assert code == 1 and not report["sound"]
    assert report["counts"]["altered"] == 2 and report["counts"]["truncated"] >= 1
    assert {row["where"].split(" ")[0] for row in report["findings"]} == {first.name, second.name}
    code, out = check(capsys, root / "mix.yaml", "--data-root", root)
    assert code == 1 and f"arms: {first.name}: truncated" in out.out and "problems" in out.out.splitlines()[-1]
    code, out = check(capsys, root / "arms", "--quick")
    assert code == 1 and second.name not in out.out  # sizes alone do not see a flipped bit


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_wrong_path_is_one_line_and_exit_2(root, capsys, command):
    for path in ("nowhere", ".", "mix.txt"):
        (root / "mix.txt").write_text("")
        code = main([command, str(root / path)])
        out = capsys.readouterr()
        assert code == 2 and out.out == "" and len(out.err.splitlines()) == 1
        assert "a dataset folder (dataset.json), or a folder of a checkpoint" in out.err


def test_a_run_stands_for_its_newest_checkpoint(root, capsys):
    for step in ("000010", "000020"):
        (root / "run" / "checkpoints" / step / "pretrained_model").mkdir(parents=True)
    code, out = check(capsys, root / "run")
    assert code == 1 and "checkpoint, 1 problem (1 damaged)" in out.out and "000020" in out.out and "000010" not in out.out


def test_a_mixture_of_missing_data_says_what_there_is(root, capsys):
    (root / "bad.yaml").write_text("sources: [{path: arm}]")
    code, out = check(capsys, root / "bad.yaml", "--data-root", root)
    assert code == 2 and f"no folder {root}/arm; the data root {root} holds arms, clips" in out.err
    code, out = check(capsys, root / "mix.yaml", "--data-root", root / "elsewhere")
    assert code == 2 and "holds no dataset" in out.err


def test_an_unfinished_dataset_is_no_sound_one(root, capsys):
    (root / "arms" / "dataset.json").unlink()
    code, out = check(capsys, root / "arms")
    assert code == 2 and "unfinished" in out.err


def test_show_draws_every_camera_and_action(root, capsys, monkeypatch):
    assert main(["show", str(root / "arms"), "--out", str(root / "pictures"), "--episodes", "3"]) == 0
    text = capsys.readouterr().out
    assert "begin e0" in text and "position[3 m, absolute]" in text and "arms-frames.png" in text
    sheet = np.asarray(Image.open(root / "pictures" / "arms-frames.png").convert("RGB"))
    # The green channel tells the camera: both are on the sheet, in bands.
    assert {0, 40} <= {int(value) for value in np.unique(sheet[..., 1][sheet[..., 2] == 100])}
    assert Image.open(root / "pictures" / "arms-actions.png").size[0] > 400
    assert main(["show", str(root / "clips"), "--out", str(root / "pictures")]) == 0
    assert not (root / "pictures" / "clips-actions.png").exists()


def test_show_prints_a_mixture_as_a_tree(root, capsys):
    assert main(["show", str(root / "mix.yaml"), "--data-root", str(root), "--samples", "600"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "both" in text and "75.0% arms" in text and "epochs" in text


def test_stats_are_printed_and_kept(root, capsys):
    argv = ["stats", str(root / "arms"), "--embodiment", str(root / "robot.py"), "--val-fraction", "0"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "position[2]" in text and "position:from_state+gripper:absolute" in text and "kept in" in text
    kept = list((root / "arms" / "stats").glob("*.json"))
    assert len(kept) == 1
    assert main([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["key"]["horizon"] == 4 and [row["name"] for row in rows["state"]][-1] == "gripper"
    want = np.concatenate([make_episode(f"e{i}", 20, i).state for i in range(6)])
    assert rows["state"][1]["max"] == want[:, 1].max() and not rows["state"][1]["degenerate"]


def test_stats_of_a_robot_that_is_not_there(root, capsys):
    assert main(["stats", str(root / "arms"), "--embodiment", "fetch"]) == 2
    assert "no actions of 'fetch'; its robots are: arm" in capsys.readouterr().err
    assert main(["stats", str(root / "arms")]) == 2
    assert "give --embodiment" in (said := capsys.readouterr().err) and "these data are of: arm" in said
    assert main(["stats", str(root / "arms"), "--embodiment", "wheel"]) == 2
    assert "unknown embodiment 'wheel'" in capsys.readouterr().err


def all_mixtures():
    return sorted(path for path in MIXTURES.glob("*.yaml"))


@pytest.fixture(scope="module")
def every_source(tmp_path_factory):
    """A data root with a tiny dataset for every source of every shipped mixture."""
    root = tmp_path_factory.mktemp("every")
    rows = [row for path in all_mixtures() for row in yaml.safe_load(path.read_text())["sources"] if "mixture" not in row]
    for row in sorted(rows, key=lambda row: "cameras" not in row):  # who names roles decides what they are
        folder = root / str(row.get("path", row.get("name", "")))
        roles, episode = tuple(row.get("cameras", ROBOT.cameras)), make_episode("a", 5)
        if not folder.exists():
            seen = dict(zip(roles, episode.frames.values(), strict=False))
            write(folder, folder.name, [replace(episode, frames=seen)], embodiment=replace(ROBOT, cameras=roles).to_json())
    return root


@pytest.mark.parametrize("path", all_mixtures(), ids=lambda path: path.stem)
def test_every_shipped_mixture_opens_on_data_of_its_shape(path, every_source):
    mixture = Mixture.load(path, every_source)
    assert mixture.why and sum(source.share for source in mixture.sources) == pytest.approx(1)
    assert f"`{path.name}`" in (MIXTURES / "README.md").read_text()


def test_statistics_do_not_make_a_dataset_unsound(root, capsys):
    assert main(["stats", str(root / "arms"), "--embodiment", str(root / "robot.py")]) == 0
    assert main(["check", str(root / "arms")]) == 0
    assert len(Dataset.open(root / "arms")) == 6
