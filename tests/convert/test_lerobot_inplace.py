"""A LeRobot folder as a source of training samples: the same numbers as after conversion, and the frames of its videos."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("pyarrow")

from tests.convert.test_lerobot_write import ROBOT, make_episode, write_shards
from vla.convert.card import Card
from vla.convert.lerobot_inplace import InPlace, open_in_place
from vla.convert.lerobot_write import LeRobotWriter, Options
from vla.data.check import check_mixture
from vla.data.images import decode_frame
from vla.data.mixture import Mixture, Source, source_folders
from vla.data.pipeline import Pipeline
from vla.data.quarantine import BadSample
from vla.data.remote import Cache
from vla.data.shard import Dataset
from vla.errors import Damaged, UserError


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Dataset, Path]:
    folder = tmp_path_factory.mktemp("inplace")
    dataset = write_shards(folder / "shards", [make_episode(f"e{i}", 9 + i, every=1 + i % 2) for i in range(4)])
    with LeRobotWriter(folder / "lerobot", dataset.info, dataset.cameras) as writer:
        for index in range(len(dataset)):
            writer.add(dataset.read(index))
    return dataset, folder / "lerobot"


def card_of(folder: Path, **changes) -> Card:
    data = json.loads(json.dumps(dict(Card.load(folder / "meta/card.yaml").data)))
    return Card.from_json({**data, **changes})


def test_it_reads_as_the_shards_do(exported, tmp_path):
    shards, folder = exported
    dataset = open_in_place(folder, card_of(folder), Cache(tmp_path, 1 << 30))
    assert (len(dataset), dataset.steps, dataset.cameras) == (len(shards), shards.steps, shards.cameras)
    assert dataset.info.recorded_action == shards.info.recorded_action and dataset.hours == pytest.approx(shards.hours)
    for index in range(len(dataset)):
        old, new = shards.episode(index), dataset.episode(index)
        assert (new.state == old.state).all() and (new.action == old.action).all() and (new.time_s == old.time_s).all()
        assert new.spans == old.spans and new.rate_hz == old.rate_hz and not new.action.flags.writeable
        for camera in dataset.cameras:
            steps, seen = new.cameras[camera].step, old.cameras[camera].step
            assert (steps == np.arange(new.steps)).all()
            for number in (0, 4, new.steps - 1):
                held = int(np.searchsorted(seen, number, side="right")) - 1
                want = decode_frame(shards.frame(index, camera, held)).astype(int)
                shot = dataset.frame(index, camera, number)
                out = np.zeros_like(want, np.uint8)
                assert np.abs(decode_frame(shot) - want).max() <= 6
                assert decode_frame(shot, out) is out and (out == decode_frame(shot)).all()


def test_a_crop_outside_the_picture_is_refused(exported, tmp_path):
    _, folder = exported
    cameras = copy.deepcopy(dict(card_of(folder).data["cameras"]))
    cameras["third_person"]["crop"] = [0, 0, 1000, 1000]
    dataset = open_in_place(folder, card_of(folder, cameras=cameras), Cache(tmp_path, 1 << 30))
    with pytest.raises(BadSample, match="does not lie inside"):
        decode_frame(dataset.frame(0, "third_person", 0))


def test_samples_are_drawn_from_it(exported, tmp_path):
    _, folder = exported
    dataset = open_in_place(folder, card_of(folder), Cache(tmp_path, 1 << 30))
    mixture = Mixture("mine", (Source("mine", dataset, 1.0),), val_fraction=0.0)
    pipeline = Pipeline(mixture, {"aloha": ROBOT}, seed=3, block=8)
    for sample in pipeline.samples(range(12)):
        image = sample.observation.images["third_person"][0]
        assert abs(int(image[..., 0].mean()) - (40 + 10 * sample.step)) <= 6
        assert sample.action_TA.shape == (25, 14) and sample.observation.state.shape == (1, 14)
    assert not pipeline.quarantine.bad


def test_the_index_is_built_once_and_another_when_something_changes(exported, tmp_path):
    _, folder = exported
    card, cache = card_of(folder), Cache(tmp_path, 1 << 30)
    first = open_in_place(folder, card, cache)
    made_ns = (first.folder / "dataset.json").stat().st_mtime_ns
    assert open_in_place(folder, card, cache).folder == first.folder
    assert (first.folder / "dataset.json").stat().st_mtime_ns == made_ns
    state = (first.folder / "state.bin").read_bytes()
    (first.folder / "state.bin").unlink()
    assert open_in_place(folder, card, cache).digest == first.digest and (first.folder / "state.bin").read_bytes() == state
    turned = card_of(folder, cameras={role: {"from": how.column, "rotate": 90} for role, how in card.cameras.items()})
    again = open_in_place(folder, turned, cache)
    assert again.digest != first.digest
    assert (decode_frame(again.frame(0, "third_person", 2)) == np.rot90(decode_frame(first.frame(0, "third_person", 2)), -1)).all()
    assert sorted(tmp_path.glob("lerobot/*")) == sorted([first.folder, again.folder])


def test_its_reasoning_comes_along(exported, tmp_path):
    _, folder = exported
    assert not open_in_place(folder, card_of(folder), Cache(tmp_path, 1 << 30)).reasons
    dataset = open_in_place(folder, card_of(folder, reasoning={"from": "task"}), Cache(tmp_path, 1 << 30))
    episode = dataset.episode(1)
    assert dataset.reasons and episode.reasoning(0) == episode.instructions(0)[0] != ""


def test_a_mixture_names_it(exported, tmp_path, monkeypatch):
    _, folder = exported
    monkeypatch.setenv("VLA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "card.yaml").write_text((folder / "meta/card.yaml").read_text())
    (tmp_path / "m.yaml").write_text(f"val_fraction: 0\nsources: [{{lerobot: {folder.name}, card: card.yaml}}]")
    mixture = Mixture.load(tmp_path / "m.yaml", folder.parent)
    assert mixture.sources[0].name == "handover" and mixture.sources[0].dataset.anchors == 42
    (sample,) = Pipeline(mixture, {"aloha": ROBOT}, block=8).samples([5])
    assert set(sample.observation.images) == set(ROBOT.cameras) and source_folders(tmp_path / "m.yaml", folder.parent) == []
    report = check_mixture(tmp_path / "m.yaml", folder.parent)
    assert report.samples and report.facts["sources"]["handover"]["episodes"] == 4
    (note,) = [finding for finding in report.findings if finding.kind == "not_examined"]
    assert note.severity == "note" and "no checksums" in note.detail
    assert report.facts["sources"]["handover"]["bytes"] == sum(
        path.stat().st_size for kind in ("data", "videos") for path in (folder / kind).rglob("*") if path.is_file()
    )
    for row in ("lerobot: x", "lerobot: x, card: card.yaml, path: y", "card: card.yaml, path: y"):
        (tmp_path / "m.yaml").write_text(f"sources: [{{{row}}}]")
        with pytest.raises(UserError, match="source 1: `lerobot` names a folder and `card` its card: give both"):
            Mixture.load(tmp_path / "m.yaml", folder.parent)
    (tmp_path / "m.yaml").write_text("sources: [{lerobot: none, card: card.yaml}]")
    with pytest.raises(UserError, match=r"source 1 \('none'\): .*none is no LeRobot dataset"):
        Mixture.load(tmp_path / "m.yaml", folder.parent)


def test_it_moves_to_another_process(exported, tmp_path):
    _, folder = exported
    dataset = open_in_place(folder, card_of(folder), Cache(tmp_path, 1 << 30))
    moved = copy.copy(dataset)  # as a pickle would, through __reduce__
    assert isinstance(moved, InPlace) and moved.digest == dataset.digest and moved.episode(2).id == dataset.episode(2).id


def test_a_damaged_index_and_a_missing_video_are_named(exported, tmp_path):
    _, folder = exported
    dataset = open_in_place(folder, card_of(folder), Cache(tmp_path, 1 << 30))
    with (dataset.folder / "action.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(Damaged, match=r"action.bin is missing or has another size .* made again"):
        copy.copy(dataset)
    with pytest.raises(UserError, match="makes shards of it first"):
        dataset.read(0)


def test_pictures_in_the_rows_are_to_be_converted(tmp_path):
    shards = write_shards(tmp_path / "shards", [make_episode("one", 5)])
    with LeRobotWriter(tmp_path / "lerobot", shards.info, shards.cameras, Options(images=True)) as writer:
        writer.add(shards.read(0))
    with pytest.raises(UserError, match="lie in the rows: convert them"):
        open_in_place(tmp_path / "lerobot", card_of(tmp_path / "lerobot"), Cache(tmp_path / "cache", 1 << 30))
    assert not list(tmp_path.glob("cache/lerobot/*"))
