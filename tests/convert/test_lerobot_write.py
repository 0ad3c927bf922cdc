"""Our shards -> LeRobot 3.0 -> our shards: the same numbers, and pictures exact or within what a codec loses."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")
pq = pytest.importorskip("pyarrow.parquet")

from tests.data.episodes import jpeg, picture  # noqa: E402
from vla import cli  # noqa: E402
from vla.convert.card import Card  # noqa: E402
from vla.convert.lerobot import LeRobot  # noqa: E402
from vla.convert.lerobot_write import LeRobotWriter, Options  # noqa: E402
from vla.convert.mapping import Mapper, check_against  # noqa: E402
from vla.data.gop import encode_mp4  # noqa: E402
from vla.data.images import decode_jpeg  # noqa: E402
from vla.data.shard import Dataset, DatasetInfo, ShardWriter  # noqa: E402
from vla.embodiment import Embodiment, Field, Space, load_embodiment  # noqa: E402
from vla.errors import UserError  # noqa: E402
from vla.types import Episode, Frames, Span, VideoFrames  # noqa: E402

ROBOT = load_embodiment("aloha")


def make_episode(name: str, steps: int, rate_hz: Fraction = ROBOT.rate_hz, every: int = 1, jitter_s: float = 0.0) -> Episode:
    rng = np.random.default_rng(steps)
    rows = rng.uniform(0.1, 0.9, (2, steps, 14))
    frames = {}
    for number, camera in enumerate(ROBOT.cameras):
        seen = np.arange(0, steps, every if number else 1)
        frames[camera] = Frames(seen, tuple(jpeg(40 + 10 * int(step), camera=number) for step in seen))
    time_s = np.arange(steps) / float(rate_hz) + jitter_s * rng.uniform(size=steps) * (np.arange(steps) > 0)
    spans = (Span("lift the cube", 0, max(steps // 2, 1)), *((Span("hand it over", steps // 2, steps),) if steps > 1 else ()))
    return Episode(name, "aloha", rate_hz, "actions", spans, time_s, frames, rows[0], rows[1], info={"seed": steps})


LARGER = {camera: Frames(np.arange(1), (jpeg(9, 32),)) for camera in ROBOT.cameras}
EPISODES = (make_episode("first", 12), make_episode("second", 7, jitter_s=0.004), make_episode("third", 1))


def write_shards(folder: Path, episodes=EPISODES) -> Dataset:
    with ShardWriter(folder, DatasetInfo("handover", ROBOT.to_json(), licence="CC-BY-4.0")) as writer:
        for episode in episodes:
            writer.add(episode)
    return Dataset.open(folder)


def convert_back(out: Path) -> list[Episode]:
    """By the card that the export wrote, as `vla convert` does it."""
    card, reader = Card.load(out / "meta" / "card.yaml"), LeRobot(out)
    assert check_against(card, reader.features()) == []
    mapper = Mapper(card)
    mapped = [mapper.episode(raw) for part in reader.parts() for raw in reader.episodes(part)]
    assert not any(found.dropped for found in mapped)
    return [found.episode for found in mapped]


@pytest.mark.parametrize("images", [False, True])
def test_the_round_trip(tmp_path, images, capsys):
    dataset = write_shards(tmp_path / "shards")
    out = tmp_path / "lerobot"
    assert cli.main(["export", "lerobot", str(dataset.folder), str(out), *(["--images"] if images else [])]) == 0
    assert not list(out.glob("meta/*.py"))  # a robot of the package
    assert "3 episodes, 20 steps, read back equal" in capsys.readouterr().out
    back = convert_back(out)
    with ShardWriter(tmp_path / "again", Card.load(out / "meta" / "card.yaml").dataset_info()) as writer:
        for episode in back:
            writer.add(episode)
    again = Dataset.open(tmp_path / "again")
    assert (again.info.name, again.info.licence, again.cameras) == ("handover", "CC-BY-4.0", dataset.cameras)
    for index in range(len(dataset)):
        old, new = dataset.read(index), again.read(index)
        assert (new.state == old.state).all() and (new.action == old.action).all() and (new.time_s == old.time_s).all()
        assert (new.instructions, new.rate_hz, new.embodiment) == (old.instructions, old.rate_hz, old.embodiment)
        for camera in dataset.cameras:
            assert (new.frames[camera].step == old.frames[camera].step).all()
            if images:
                assert new.frames[camera].jpeg == old.frames[camera].jpeg
            else:
                pairs = zip(new.frames[camera].jpeg, old.frames[camera].jpeg, strict=True)
                assert max(np.abs(decode_jpeg(a).astype(int) - decode_jpeg(b)).max() for a, b in pairs) <= 6
    assert again.info.recorded_action == dataset.info.recorded_action


def test_a_robot_of_ones_own_comes_back_by_the_command_that_is_printed(tmp_path, capsys):
    odd = Space((Field('posi"tion', 2, "m"),))  # a name from data is not code
    robot = Embodiment("mine", ("front",), odd, odd, odd, Fraction(10), 3, None)
    episode = Episode(
        "one", "mine", Fraction(10), "actions", (Span("go", 0, 3),), np.arange(3) / 10, {"front": Frames(np.arange(3), (jpeg(9),) * 3)},
        np.ones((3, 2)), np.zeros((3, 2)),
    )  # fmt: skip
    with ShardWriter(tmp_path / "shards", DatasetInfo("mine", robot.to_json())) as writer:
        writer.add(episode)
    assert cli.main(["export", "lerobot", str(tmp_path / "shards"), str(tmp_path / "out"), "--images"]) == 0
    words = capsys.readouterr().out.partition("back into shards: vla ")[2].split()
    assert words[-4:-2] == ["--embodiment", f"{tmp_path}/out/meta/mine.py"]
    assert cli.main([*words[:-1], str(tmp_path / "again"), "--workers", "0"]) == 0
    assert Dataset.open(tmp_path / "again").info.robot == robot


def test_what_is_written_is_what_lerobot_expects(tmp_path):
    """Names, types and the statistics of its files; the package itself has read such a folder (docs/lerobot.md)."""
    out = tmp_path / "lerobot"
    dataset = write_shards(tmp_path / "shards")
    with LeRobotWriter(out, dataset.info, dataset.cameras) as writer:
        for index in range(len(dataset)):
            writer.add(dataset.read(index))
    info = json.loads((out / "meta/info.json").read_text())
    golden = json.loads((Path(__file__).parent / "golden/lerobot_v30_videos/meta/info.json").read_text())
    assert set(info) == set(golden) and info["fps"] == 50 and info["codebase_version"] == "v3.0"
    assert info["features"]["action"]["names"][:2] == ["left_arm[0]", "left_arm[1]"] and info["features"]["action"]["dtype"] == "float64"
    assert set(info["features"]["observation.images.third_person"]["info"]) == set(golden["features"]["observation.images.top"]["info"])
    assert {n: f["dtype"] for n, f in info["features"].items() if f["shape"] == [1] and n != "time_s"} == {
        n: f["dtype"] for n, f in golden["features"].items() if f["shape"] == [1] and n != "next.done"
    }
    rows = pq.read_table(out / "data/chunk-000/file-000.parquet")
    assert rows["index"].to_pylist() == list(range(20)) and rows["frame_index"].to_pylist()[12:] == [*range(7), 0]
    assert (np.array(rows["timestamp"]) == np.concatenate([np.arange(n) / 50 for n in (12, 7, 1)]).astype(np.float32)).all()
    table = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet")
    wanted = pq.read_schema(Path(__file__).parent / "golden/lerobot_v30_videos/meta/episodes/chunk-000/file-000.parquet").names
    plain = [{name for name in names if not name.startswith(("stats/", "videos/"))} for names in (wanted, table.column_names)]
    assert plain[0] == plain[1]
    assert table["videos/observation.images.wrist_right/from_timestamp"].to_pylist() == [0.0, 12 / 50, 19 / 50]
    assert table["tasks"].to_pylist() == [["lift the cube", "hand it over"]] * 2 + [["lift the cube"]]
    stats = json.loads((out / "meta/stats.json").read_text())
    every = np.concatenate([episode.action for episode in EPISODES])
    assert np.allclose(stats["action"]["mean"], every.mean(0)) and np.allclose(stats["action"]["std"], every.std(0))
    assert stats["action"]["q50"] == np.sort(every, 0)[9].tolist() and stats["action"]["count"] == [20]
    camera = stats["observation.images.third_person"]
    assert np.shape(camera["mean"]) == (3, 1, 1) and camera["count"] == [20]
    reds = [decode_jpeg(data)[..., 0].mean() / 255 for episode in EPISODES for data in episode.frames["third_person"].jpeg]
    assert abs(camera["mean"][0][0][0] - np.mean(reds)) < 1e-6 and abs(camera["max"][0][0][0] - max(reds)) < 0.01


def test_a_lone_number_is_no_list(tmp_path):
    """LeRobot reads a feature of shape (1,) as a value: a list of one ended its loading in an error of types."""
    space, hand = Space((Field("gripper", 1, "open01"),)), Space((Field("joints", 2, "rad"),))
    robot = Embodiment("grip", ("third_person",), space, hand, hand, Fraction(10), 4, ((-1.0, 1.0),) * 2)
    frames = {"third_person": Frames(np.arange(3), tuple(jpeg(40 + step) for step in range(3)))}
    rows = np.linspace(0, 1, 9).reshape(3, 3)
    episode = Episode("e", "grip", Fraction(10), "actions", (Span("grip", 0, 3),), np.arange(3) / 10, frames, rows[:, :1], rows[:, 1:])
    with ShardWriter(tmp_path / "d", DatasetInfo("grip", robot.to_json())) as writer:
        writer.add(episode)
    assert cli.main(["export", "lerobot", str(tmp_path / "d"), str(tmp_path / "out")]) == 0
    table = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert str(table.schema.field("observation.state").type) == "double" and table["observation.state"].to_pylist() == rows[:, 0].tolist()
    assert str(table.schema.field("action").type) == "fixed_size_list<element: double>[2]"
    assert json.loads((tmp_path / "out/meta/info.json").read_text())["features"]["observation.state"]["shape"] == [1]


def test_files_roll_over(tmp_path, monkeypatch):
    monkeypatch.setattr("vla.convert.lerobot_write.DATA_FILE_BYTES", 4000)
    monkeypatch.setattr("vla.convert.lerobot_write.EPISODES_PER_FILE", 2)
    monkeypatch.setattr("vla.convert.lerobot_write.ROWS_TOGETHER", 2)
    monkeypatch.setattr("vla.convert.lerobot_video.VideoFiles.FILE_BYTES", 1000)
    dataset = write_shards(tmp_path / "shards", [make_episode(f"e{i}", 6 + i) for i in range(5)])
    assert cli.main(["export", "lerobot", str(dataset.folder), str(tmp_path / "out")]) == 0
    for pattern in ("data/*/*.parquet", "meta/episodes/*/*.parquet", "videos/*third_person/*/*.mp4"):
        assert len(list((tmp_path / "out").glob(pattern))) > 1, pattern
    for number, path in enumerate(sorted((tmp_path / "out").glob("meta/episodes/*/*.parquet"))):
        assert pq.read_table(path)["meta/episodes/file_index"].unique().to_pylist() == [number]
    reds = []
    for episode in convert_back(tmp_path / "out"):
        reds.append([round(decode_jpeg(data)[..., 0].mean() / 10) for data in episode.frames["third_person"].jpeg])
    assert reds == [[4 + step for step in range(6 + i)] for i in range(5)]


def test_a_slower_camera_is_held_and_counted(tmp_path, capsys):
    dataset = write_shards(tmp_path / "shards", [make_episode("slow", 7, every=3)])
    assert cli.main(["export", "lerobot", str(dataset.folder), str(tmp_path / "out"), "--images"]) == 0
    assert "left out: 4 steps at which camera 'wrist_right' holds its last picture" in capsys.readouterr().out
    (episode,) = convert_back(tmp_path / "out")
    stored = dataset.read(0).frames["wrist_right"].jpeg
    assert episode.frames["wrist_right"].jpeg == tuple(stored[step // 3] for step in range(7))


def test_paraphrases_are_counted(tmp_path, capsys):
    first = make_episode("two", 4)
    dataset = write_shards(tmp_path / "shards", [replace(first, instructions=(Span("say it", 0, 4), Span("say it again", 1, 3)))])
    assert cli.main(["export", "lerobot", str(dataset.folder), str(tmp_path / "out"), "--images"]) == 0
    assert "left out: 2 steps with further instructions, of which the first is kept" in capsys.readouterr().out
    (episode,) = convert_back(tmp_path / "out")
    assert episode.instructions == (Span("say it", 0, 4),)


def test_a_camera_stored_as_video(tmp_path):
    images = [picture(40 + 10 * step) for step in range(6)]
    episode = make_episode("film", 6)
    film = {camera: VideoFrames(np.arange(6), encode_mp4(images, 50)) for camera in ROBOT.cameras}
    for options in (Options(), Options(images=True)):
        out = tmp_path / str(options.images)
        with LeRobotWriter(out, DatasetInfo("film", ROBOT.to_json()), ROBOT.cameras, options) as writer:
            writer.add(replace(episode, frames=film))
        if options.images:
            cells = pq.read_table(out / "data/chunk-000/file-000.parquet")["observation.images.third_person"].to_pylist()
            shown = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells]
            assert cells[0]["path"] == "frame-000000.png"
        else:
            (raw,) = (raw for part in LeRobot(out).parts() for raw in LeRobot(out).episodes(part))
            with av.open(str(raw.pictures["observation.images.third_person"].path)) as container:
                shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.abs(np.stack(shown).astype(int) - np.stack(images)).max() <= 8


def test_29_97_frames_a_second(tmp_path):
    rate_hz = Fraction(30000, 1001)
    with LeRobotWriter(tmp_path / "out", DatasetInfo("ntsc", ROBOT.to_json()), ROBOT.cameras) as writer:
        for name in ("a", "b"):
            writer.add(make_episode(name, 40, rate_hz))
    reader = LeRobot(tmp_path / "out")
    assert reader.rate_hz == rate_hz
    for episode in (episode for part in reader.parts() for episode in reader.episodes(part)):
        assert (episode.time_s == np.arange(40) / float(rate_hz)).all()
        clip = episode.pictures["observation.images.third_person"]
        assert np.allclose(clip.time_s * float(rate_hz) % 1, 0.5, atol=1e-6)
    card = Card.load(tmp_path / "out/meta/card.yaml")
    assert card.rate_hz == rate_hz


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([make_episode("a", 3), make_episode("b", 3, Fraction(25))], "'b' runs at 25 Hz, others at 50"),
        ([replace(make_episode("a", 3), frames={c: Frames(np.array([1]), (jpeg(9),)) for c in ROBOT.cameras})], "begins at step 1"),
        ([replace(make_episode("a", 3), frames={c: Frames(np.arange(3), (jpeg(9, 15),) * 3) for c in ROBOT.cameras})], "use --images"),
        (
            [make_episode("a", 1), replace(make_episode("b", 1), frames={c: Frames(np.arange(1), (jpeg(9, 32),)) for c in ROBOT.cameras})],
            "32",
        ),
        ([], "has no episode"),
    ],
)
def test_what_lerobot_cannot_hold_is_refused(tmp_path, episodes, message):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        with LeRobotWriter(out, DatasetInfo("x", ROBOT.to_json()), ROBOT.cameras) as writer:
            for episode in episodes:
                writer.add(episode)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    info = DatasetInfo("x", ROBOT.to_json())
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists; remove it"):
        LeRobotWriter(tmp_path / "out", info, ROBOT.cameras)
    (tmp_path / "new.part").mkdir()
    with pytest.raises(UserError, match="left of an export that did not end"):
        LeRobotWriter(tmp_path / "new", info, ROBOT.cameras)
