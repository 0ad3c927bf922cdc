"""Miniatures of the human-video datasets, in their own layouts, through reader, card and shards."""

from __future__ import annotations

import copy
import csv
import io
import json
import subprocess
import sys
import zipfile
from fractions import Fraction

import av
import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.data.videos import number_of, numbered, write_video
from vla.cli import main
from vla.convert import video as video_module
from vla.convert.card import Card
from vla.convert.fields import BadEpisode
from vla.convert.formats import find_reader, open_reader
from vla.convert.lanes import LANES
from vla.convert.mapping import Mapper, check_against
from vla.convert.raw import Clip, RawEpisode, Unreadable
from vla.convert.video import clip_id
from vla.convert.video_ego4d import Ego4D, object_places
from vla.convert.video_egodex import EgoDex
from vla.convert.video_epic import EpicKitchens
from vla.convert.video_folder import VideoFolder
from vla.convert.video_something import SomethingSomething
from vla.data.images import decode_frame
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.shard import Dataset, ShardWriter, verify
from vla.data.video import images_at
from vla.embodiment import load_embodiment
from vla.errors import SchemaError, UserError

EPIC = "narration_id participant_id video_id narration_timestamp start_timestamp stop_timestamp start_frame stop_frame narration verb "
EPIC += "verb_class noun"


def card(name, text, **more):
    return Card.from_json(
        {
            "name": name,
            "title": name,
            "homepage": "https://example.org",
            "licence": "CC-BY-NC-4.0",
            "citation": "nobody",
            "facts": ["made up"],
            "format": "video",
            "source": {"name": name},
            "supervision": "none",
            "cameras": {"first_person": {"from": "video"}},
            "instruction": {"from": text},
            **more,
        }
    )


def every(reader):
    """Episodes by id, and the reasons of those that cannot be read; a worker has its own copy, as here."""
    found, refused = {}, {}
    for part in reader.parts():
        for episode in copy.copy(reader).episodes(part):
            assert episode.id not in {**found, **refused}
            if isinstance(episode, Unreadable):
                refused[episode.id] = episode.detail
            else:
                found[episode.id] = episode
    return found, refused


def numbers(episode: RawEpisode):
    clip = episode.pictures["video"]
    assert isinstance(clip, Clip) and len(clip.step) == len(clip.time_s) == episode.steps
    return [number_of(image) for image in images_at(clip.path, clip.time_s)]


def table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def video(path, frames=60, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, frames, **settings)


def test_a_folder_with_captions_becomes_a_dataset(tmp_path):
    video(tmp_path / "src/day 1/cup.mp4", 90, options={"bf": "2"})
    video(tmp_path / "src/b.webm", 30, codec="libvpx-vp9", options={"cpu-used": "8"})
    rows = [
        ["day 1/cup.mp4", "0.5", "1.5", "lift the cup, slowly", "ann"],
        ["day 1/cup.mp4", "2", "3.4", "wipe", "ann"],  # a rounded end: until the file's own
        ["b.webm", "", "", "pour", "bo"],
    ]
    table(tmp_path / "src/captions.csv", ["path", "start_s", "stop_s", "text", "who"], rows)
    reader = VideoFolder(tmp_path / "src", rate_hz=10)
    found, refused = every(reader)
    assert not refused and len(found) == 3
    lift, wipe, pour = found.values()
    assert numbers(lift) == list(range(15, 45, 3)) and numbers(wipe) == list(range(60, 90, 3)) and numbers(pour) == list(range(0, 30, 3))
    assert lift.facts == {"who": "ann", "video": "day 1/cup.mp4", "start_s": 0.5, "stop_s": 1.5} and lift.rate_hz == 10
    mine = card("clips", "text")
    assert check_against(mine, reader.features()) == []
    with ShardWriter(tmp_path / "out", mine.dataset_info()) as writer:
        for raw in found.values():
            episode = Mapper(mine).episode(raw).episode
            assert episode is not None
            writer.add(episode)
    dataset = Dataset.open(tmp_path / "out")
    stored = dataset.read(0)
    assert (stored.supervision, stored.licence, stored.instructions[0].text) == ("none", "CC-BY-NC-4.0", "lift the cup, slowly")
    assert [number_of(decode_frame(dataset.frame(1, "first_person", i))) for i in range(10)] == list(range(60, 90, 3))


TRACKS = {
    "supervision": "tracks",
    "state": {
        "points": {"from": "tracks", "field": {"size": 6, "unit": "px"}},
        "visible": {"from": "visible", "field": {"size": 3, "unit": "command"}},
    },
}


@pytest.mark.parametrize(("rows", "parts", "each"), [(1, 1, 1), (40, 40, 1), (200, 67, 3), (40_000, 157, 256)])
def test_a_short_table_has_work_for_every_worker(tmp_path, rows, parts, each):
    table(tmp_path / "captions.csv", ["path", "text"], [[f"{row}.mp4", "lift"] for row in range(rows)])
    reader = VideoFolder(tmp_path)
    assert len(reader.parts()) == parts
    assert parts >= min(rows, LANES) and len(list(reader.captions(reader.parts()[0]))) == each
    if rows == 200:
        names = [caption.name for part in reader.parts() for caption in reader.captions(part)]
        assert names == [f"{row}-{row}" for row in range(rows)]


def test_points_that_were_followed_come_along(tmp_path):
    """Row i of the npz beside a video is its frame i, at whatever rate and from wherever a clip is taken."""
    video(tmp_path / "src/day 1/cup.mp4", 90, options={"bf": "2"})
    video(tmp_path / "src/b.mp4", 30)
    table(
        tmp_path / "src/captions.csv", ["path", "start_s", "stop_s", "text"], [["day 1/cup.mp4", "0.5", "1.5", "x"], ["b.mp4", "", "", "y"]]
    )
    for name, frames in (("day 1/cup", 90), ("b", 30)):
        points = np.arange(frames)[:, None, None] + np.array([[0.25, 0.5], [0.75, 1.0], [2, 3]])
        np.savez(tmp_path / f"src/{name}.npz", tracks=points.astype(np.float32), visible=np.arange(frames * 3).reshape(frames, 3) % 2 == 0)
    reader = VideoFolder(tmp_path / "src", rate_hz=10, tracks="{stem}.npz")
    mine = card("points", "text", **TRACKS)
    assert check_against(mine, reader.features()) == []
    reader.wanted = mine.wanted
    found, refused = every(reader)
    assert not refused
    with ShardWriter(tmp_path / "out", mine.dataset_info()) as writer:
        for raw in found.values():
            episode = Mapper(mine).episode(raw).episode
            assert episode is not None and episode.supervision == "tracks"
            np.testing.assert_array_equal(np.floor(episode.state[:, 0]), numbers(raw))  # the points of the frames that are shown
            writer.add(episode)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.info.supervision == "tracks" and dataset.read(1).state.shape == (10, 9) and dataset.info.recorded_action is None
    with pytest.raises(SchemaError, match="give the name of an npz beside each video"):
        VideoFolder(tmp_path / "src", tracks="tracks.npz")


def test_points_belong_to_their_frames_in_a_video_that_keeps_no_rate(tmp_path):
    """As phones record: row i is frame i, whenever it is shown."""
    pts = np.cumsum([0, *(20 if i % 20 < 10 else 50 for i in range(59))])
    video(tmp_path / "a.mp4", 60, pts=pts.tolist(), time_base=Fraction(1, 1000), options={"bf": "2"})
    np.savez(tmp_path / "a.npz", tracks=np.arange(60.0)[:, None, None] + np.zeros((3, 2)), visible=np.ones((60, 3)))
    table(tmp_path / "captions.csv", ["path", "start_s", "stop_s", "text"], [["a.mp4", "", "", "x"], ["a.mp4", "0.7", "1.5", "y"]])
    found, refused = every(VideoFolder(tmp_path, tracks="{stem}.npz"))
    assert not refused and len(found) == 2
    for raw in found.values():
        assert raw.columns["tracks"][:, 0, 0].tolist() == numbers(raw)


def test_tracks_that_do_not_belong_or_hold_code_are_refused(tmp_path):
    for name in ("short", "pickle", "none", "cut", "huge", "lying", "good"):
        video(tmp_path / f"src/{name}.mp4", 30)
    table(
        tmp_path / "src/captions.csv",
        ["path", "text"],
        [[f"{name}.mp4", "x"] for name in ("good", "short", "pickle", "none", "cut", "huge", "lying")],
    )
    np.savez(tmp_path / "src/good.npz", tracks=np.zeros((30, 3, 2)))
    np.savez(tmp_path / "src/short.npz", tracks=np.zeros((20, 3, 2)))
    np.savez(tmp_path / "src/pickle.npz", tracks=np.array([print, {}] * 15, dtype=object))
    (tmp_path / "src/cut.npz").write_bytes((tmp_path / "src/good.npz").read_bytes()[:400])
    with (
        zipfile.ZipFile(tmp_path / "src/huge.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("tracks.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(1025):
            file.write(bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "src/lying.npz", "w") as archive, archive.open("tracks.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    found, refused = every(VideoFolder(tmp_path / "src", tracks="{stem}.npz"))
    assert list(found) == ["good-0"] and "claims to hold more than its" in refused["lying-6"]
    assert "has 20 rows, and its video 30 frames" in refused["short-1"] and "no array of numbers" in refused["pickle-2"]
    assert "no tracks" in refused["none-3"] and "no npz" in refused["cut-4"] and "at most" in refused["huge-5"]


def test_a_card_may_store_a_camera_as_video(tmp_path):
    video(tmp_path / "src/a.mp4", 60)
    table(tmp_path / "src/captions.csv", ["path", "text"], [["a.mp4", "x"]])
    mine = card("clips", "text", cameras={"first_person": {"from": "video", "every": 2, "store": "mp4"}})
    (raw,) = every(VideoFolder(tmp_path / "src"))[0].values()
    episode = Mapper(mine).episode(raw).episode
    assert episode is not None
    with ShardWriter(tmp_path / "out", mine.dataset_info()) as writer:
        writer.add(episode)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.video == {"first_person": "h264"} and dataset.episode(0).cameras["first_person"].step.tolist() == list(range(0, 60, 2))
    assert [number_of(decode_frame(dataset.frame(0, "first_person", i))) for i in range(30)] == list(range(0, 60, 2))


def test_packets_that_fit_are_stored_as_they_are(tmp_path):
    path = video(tmp_path / "src/a.mp4", 40, options={"g": "10", "bf": "0"})
    table(tmp_path / "src/captions.csv", ["path", "text"], [["a.mp4", "x"]])
    (raw,) = every(VideoFolder(tmp_path / "src"))[0].values()
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for camera, kept in (({}, True), ({"flip": "horizontal"}, False), ({"every": 2}, False)):
        mine = card("clips", "text", cameras={"first_person": {"from": "video", "store": "mp4", **camera}})
        episode = Mapper(mine).episode(raw).episode
        assert episode is not None
        with av.open(io.BytesIO(episode.frames["first_person"].mp4)) as container:
            assert ([bytes(packet) for packet in container.demux(video=0) if packet.size] == packets) == kept
        with ShardWriter(tmp_path / f"out{len(camera)}{kept}{list(camera)}", mine.dataset_info()) as writer:
            writer.add(episode)
        assert not verify(writer.folder)
        if "flip" not in camera:
            dataset = Dataset.open(writer.folder)
            step = dataset.episode(0).cameras["first_person"].step.tolist()
            assert [number_of(decode_frame(dataset.frame(0, "first_person", i))) for i in range(len(step))] == step


def test_a_damaged_frame_of_a_video_that_fits_is_a_bad_episode(tmp_path):
    path = video(tmp_path / "src/a.mp4", 40, options={"g": "10", "bf": "0", "crf": "10"})
    with av.open(str(path)) as container:
        offset, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][15]
    data = bytearray(path.read_bytes())
    data[offset + 4 : offset + size] = bytes(size - 4)
    path.write_bytes(data)
    table(tmp_path / "src/captions.csv", ["path", "text"], [["a.mp4", "x"]])
    (raw,) = every(VideoFolder(tmp_path / "src"))[0].values()
    mine = card("clips", "text", cameras={"first_person": {"from": "video", "store": "mp4"}})
    with pytest.raises(BadEpisode, match=r"first_person.*does not decode"):
        Mapper(mine).episode(raw)


def test_the_command_converts_video_and_names_what_is_missing(tmp_path, capsys):
    video(tmp_path / "src/a.mp4", 60)
    table(tmp_path / "src/captions.csv", ["path", "text"], [["a.mp4", "wave"], ["gone.mp4", "x"]])
    mine = card("clips", "text", cameras={"first_person": {"from": "video", "store": "mp4"}}, reader={"rate_hz": 10})
    (tmp_path / "card.yaml").write_text(json.dumps(dict(mine.data)))  # JSON is YAML
    words = ["convert", "video", str(tmp_path / "src"), "--card", str(tmp_path / "card.yaml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "0", "--max-bad", "0.6"]) == 0
    assert "gone.mp4 is missing" in capsys.readouterr().out
    dataset = Dataset.open(tmp_path / "out")
    assert len(dataset) == 1 and dataset.steps == 20 and not verify(tmp_path / "out")
    assert [number_of(decode_frame(dataset.frame(0, "first_person", i))) for i in range(20)] == list(range(0, 60, 3))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path):
    code = (
        "import resource, sys; import numpy as np; from vla.data.video import jpegs_at\n"
        "for jpeg in jpegs_at(sys.argv[1], np.arange(int(sys.argv[2])) / 30): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    pictures = [np.roll(numbered(0, 240, 320), (3 * i, 5 * i), (0, 1)) for i in range(30)]
    path = write_video(tmp_path / "a.mp4", [pictures[i % 30] for i in range(1500)], "mpeg4", options={"g": "30"})
    short, long = (
        int(subprocess.run([sys.executable, "-c", code, path, str(count)], check=True, capture_output=True, text=True).stdout)
        for count in (100, 1500)
    )
    assert long < 1.05 * short


def test_every_frame_of_a_video_at_its_own_rate(tmp_path):
    video(tmp_path / "a.mp4", 50, rate=Fraction(30000, 1001))
    table(tmp_path / "captions.csv", ["path", "text"], [["a.mp4", "x"]])
    found, _ = every(VideoFolder(tmp_path))
    (episode,) = found.values()
    assert numbers(episode) == list(range(50)) and episode.rate_hz == Fraction(30000, 1001)
    pieces, _ = every(VideoFolder(tmp_path, longest_s=0.7))
    assert [numbers(piece) for piece in pieces.values()] == [list(range(20)), list(range(20, 40)), list(range(40, 50))]
    assert [piece.facts["start_s"] for piece in pieces.values()] == pytest.approx([0, 20 * 1.001 / 30, 40 * 1.001 / 30])
    fast, _ = every(VideoFolder(tmp_path, rate_hz=1000))  # more than there is: every frame
    assert numbers(next(iter(fast.values()))) == list(range(50))


def test_what_a_caption_asks_for_and_is_not_there_is_named_and_counted(tmp_path):
    video(tmp_path / "src/a.mp4", 30)
    video(tmp_path / "outside.mp4", 30)
    (tmp_path / "src/text.mp4").write_text("no video")
    (tmp_path / "src/link.mp4").symlink_to(tmp_path / "outside.mp4")
    bad = {
        ("gone.mp4", "0", "1"): "gone.mp4 is missing",
        ("../outside.mp4", "0", "1"): "leads out of the dataset",
        (str(tmp_path / "outside.mp4"), "0", "1"): "leads out of the dataset",
        ("link.mp4", "0", "1"): "leads out of the dataset",
        ("text.mp4", "0", "1"): "no video that can be read",
        ("http://127.0.0.1/a.mp4", "0", "1"): "is missing",
        ("a.mp4", "5", "6"): "begins at 5 s; the video lasts 1.000 s",
        ("a.mp4", "0.5", "300"): "ends at 300 s; the video lasts 1.000 s",
        ("a.mp4", "0.5", "0.5"): "ends at 0.5 s and begins at 0.5 s",
        ("a.mp4", "-1", "1"): "begins at -1 s",
        ("a.mp4", "nan", "1"): "no number of seconds",
        ("a.mp4", "x", "1"): "no number of seconds",
    }
    table(
        tmp_path / "src/captions.csv", ["path", "start_s", "stop_s", "text"], [[*row, "t"] for row in bad] + [["a.mp4", "0", "1", "good"]]
    )
    found, refused = every(VideoFolder(tmp_path / "src"))
    assert [episode.texts["text"] for episode in found.values()] == [["good"]]
    assert len(refused) == len(bad)
    for detail, want in zip(refused.values(), bad.values(), strict=True):
        assert want in detail


def test_a_video_that_is_shorter_than_it_claims_is_one_bad_episode(tmp_path):
    path = video(tmp_path / "a.mkv", 90)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    table(tmp_path / "captions.csv", ["path", "start_s", "stop_s", "text"], [["a.mkv", "0", "0.3", "early"], ["a.mkv", "2", "2.9", "late"]])
    early, late = every(VideoFolder(tmp_path))[0].values()
    assert Mapper(card("clips", "text")).episode(early).episode is not None
    with pytest.raises(BadEpisode, match="no frame at|does not decode|damaged or cut"):
        Mapper(card("clips", "text")).episode(late)


def test_tables_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        VideoFolder(tmp_path / "gone")
    with pytest.raises(SchemaError, match="no table"):
        VideoFolder(tmp_path).parts()
    for text, message in (
        ("path,words\na,b\n", "no column text"),
        ("path,text\n", "has no rows"),
        ("path,text\na\n", "2 columns expected"),
        ("path,start,text\na,0,b\n", "column 'start' is not read; times are start_s and stop_s, in seconds"),
    ):
        (tmp_path / "captions.csv").write_text(text)
        with pytest.raises(SchemaError, match=message):
            VideoFolder(tmp_path).parts()
    with pytest.raises(UserError, match="must be positive"):
        VideoFolder(tmp_path, rate_hz=0)


def test_names_become_ids_and_stay_different():
    assert clip_id("P01_01_0") == "P01_01_0"
    odd = [clip_id(name) for name in ("a.b", "a/b", "a b", "-a-b", "é" * 99, "x" * 81, "x" * 82)]
    assert len(set(odd)) == len(odd) and all(len(name) <= 80 and name.isascii() and "." not in name for name in odd)


def epic(folder):
    video(folder / "EPIC-KITCHENS/P01/videos/P01_01.MP4", 120, options={"g": "30"})
    video(folder / "EPIC-KITCHENS/P02/videos/P02_11.MP4", 60)
    rows = [
        ["P01_01_0", "P01", "P01_01", "00:00:01.089", "00:00:00.14", "00:00:01.37", 8, 202, "open door", "open", 3, "door"],
        ["P02_11_4", "P02", "P02_11", "00:00:01.1", "00:00:01.00", "00:00:01.50", 1, 9, "take plate", "take", 0, "plate"],
        ["P01_01_1", "P01", "P01_01", "00:00:03.0", "00:00:03.00", "00:00:03.20", 1, 9, "close door", "close", 4, "door"],
        ["P01_01_2", "P01", "P01_01", "soon", "soon", "00:00:03.20", 1, 9, "close door", "close", 4, "door"],
        ["P09_01_0", "P09", "P09_01", "00:00:03.0", "00:00:03.00", "00:00:03.20", 1, 9, "wash", "wash", 5, "pan"],
        ["P01_x", "../..", "P01_01", "00:00:03.0", "00:00:03.00", "00:00:03.20", 1, 9, "wash", "wash", 5, "pan"],
    ]
    table(folder / "EPIC_100_train.csv", EPIC.split(), rows)


def test_epic_kitchens(tmp_path):
    epic(tmp_path)
    reader = EpicKitchens(tmp_path)
    assert reader.parts() == ["P01_01", "P02_11", "P09_01"]
    found, refused = every(reader)
    assert list(found) == ["P01_01_0", "P01_01_1", "P02_11_4"]
    assert numbers(found["P01_01_0"]) == list(range(5, 42)) and numbers(found["P02_11_4"]) == list(range(30, 45))
    assert found["P01_01_1"].texts == {"narration": ["close door"], "verb": ["close"], "noun": ["door"]}
    assert "P09_01.MP4 is missing" in refused["P09_01_0"] and "'soon' is no time" in refused["P01_01_2"]
    assert "leads out" in refused["P01_x"]
    episode = Mapper(card("epic", "narration")).episode(found["P01_01_0"]).episode
    assert episode is not None and episode.instructions[0].text == "open door" and episode.info["participant_id"] == "P01"


def something(folder):
    for name in ("78687", "42326"):
        video(folder / f"20bn-something-something-v2/{name}.webm", 24, codec="libvpx-vp9", rate=12, options={"cpu-used": "8"})
    rows = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "1", "label": "gone", "template": "Gone", "placeholders": []},
        {"id": "2"},
        {"id": "42326", "label": "spreading margarine onto bread", "template": "Spreading", "placeholders": ["margarine", "bread"]},
    ]
    (folder / "labels").mkdir()
    (folder / "labels/train.json").write_text(json.dumps(rows))


def test_something_something(tmp_path, monkeypatch):
    something(tmp_path)
    found, refused = every(SomethingSomething(tmp_path))
    assert list(found) == ["78687", "42326"] and numbers(found["42326"]) == list(range(24)) and found["42326"].rate_hz == 12
    assert found["78687"].texts["label"] == ["holding potato"] and found["42326"].facts["placeholders"] == ["margarine", "bread"]
    assert "1.webm is missing" in refused["1"] and "no id and label" in refused["row-2"]
    for text, message in (('{"id": 1}', "no list of clips"), ('[{"id": 1', "is no JSON"), ("[" * 100_000, "is no JSON")):
        (tmp_path / "labels/train.json").write_text(text)
        with pytest.raises(SchemaError, match=message):
            SomethingSomething(tmp_path).parts()
    monkeypatch.setattr(video_module, "MAX_JSON_BYTES", 10)
    with pytest.raises(SchemaError, match=r"train\.json has 100000 bytes; at most 10"):
        SomethingSomething(tmp_path).parts()


def ego4d(folder, uid="001e3e4e-2743-47fc-8564-d5efd11f9e90"):
    video(folder / f"v2/full_scale/{uid}.mp4", 300)
    told = [
        {"timestamp_sec": t, "timestamp_frame": int(t * 30), "narration_text": f'#C C "does" {{{t}}}', "annotation_uid": "a"}
        for t in (0.2, 4, 7.8)
    ]
    told.append({"timestamp_sec": 3.0, "narration_text": None})
    passes = {"narration_pass_1": {"narrations": told, "summaries": []}, "narration_pass_2": {"narrations": told[:1]}, "status": "complete"}
    (folder / "v2/annotations").mkdir()
    (folder / "v2/annotations/narration.json").write_text(
        json.dumps({uid: passes, "other": {"status": "redacted"}, "gone": passes}, indent=1)
    )
    return uid


def test_ego4d(tmp_path):
    uid = ego4d(tmp_path)
    reader = Ego4D(tmp_path)
    assert reader.parts() == [uid, "other", "gone"]
    found, refused = every(reader)
    assert list(found) == [f"{uid}-1-0", f"{uid}-1-1", f"{uid}-1-2", f"{uid}-2-0"]
    beta = (7.8 - 0.2) / 3  # three gaps between 0.2, 3.0, 4 and 7.8 s
    width = round(beta / 4.9 * 30)
    assert numbers(found[f"{uid}-1-1"])[0] == pytest.approx(120 - width / 2, abs=1) and found[f"{uid}-1-1"].steps == pytest.approx(
        width, abs=1
    )
    assert numbers(found[f"{uid}-1-0"])[0] == 0 and found[f"{uid}-1-0"].texts["narration_text"] == ['#C C "does" {0.2}']
    assert len(refused) == 1 + 5 and f"{uid}-1-3" in refused and sum("is missing" in detail for detail in refused.values()) == 4
    wide, _ = every(Ego4D(tmp_path, window_s=2.0))
    assert numbers(wide[f"{uid}-1-1"]) == list(range(90, 150))


def test_narrations_are_scanned_in_pieces_and_damage_is_found(tmp_path):
    path = tmp_path / "narration.json"
    record = {f"v{i}": {"narration_pass_1": {"narrations": [], "summaries": [{"summary_text": 'a\\"}{[' * 3}]}} for i in range(50)}
    text = json.dumps(record)
    path.write_text(text)
    places = object_places(path)
    assert {key: json.loads(text.encode()[low:high]) for key, (low, high) in places.items()} == record
    for spoiled, message in (
        (text[:-5], "no whole JSON object"),
        ("[]", "no whole"),
        ("", r"narration\.json is empty"),
        ('{"a": 1}', "no whole"),
        ("}" + text, "no whole"),
    ):
        path.write_text(spoiled)
        with pytest.raises(SchemaError, match=message):
            object_places(path)


def egodex(folder, name="part1/fold_towel/0", frames=40, **attributes):
    video(folder / f"{name}.mp4", frames, options={"bf": "2"})
    rng = np.random.default_rng(0)
    tips = [f"{side}{finger}Tip" for side in ("left", "right") for finger in ("Thumb", *(f"{f}Finger" for f in FINGERS))]
    with h5py.File(folder / f"{name}.hdf5", "w") as file:
        poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
        for joint in ("camera", "leftHand", "rightHand", *tips):
            poses[:, :3, 3] = rng.normal(size=(frames, 3))
            file[f"transforms/{joint}"] = poses
            if joint != "camera":
                file[f"confidences/{joint}"] = rng.uniform(size=frames).astype(np.float32)
        file["camera/intrinsic"] = np.array([[736.6, 0, 960], [0, 736.6, 540], [0, 0, 1]], np.float32)
        both = {"llm_description": "Fold the towel.", "llm_description2": "Unfold the towel.", "which_llm_description": "2"}
        for key, value in {**both, "llm_type": "reversible", "task": "fold_towel", **attributes}.items():
            file.attrs[key] = value


FINGERS = ("Index", "Middle", "Ring", "Little")
HANDS = {
    "supervision": "hands",
    "state": {
        "camera_place": {"from": "transforms/camera", "index": [3, 7, 11], "field": {"size": 3, "unit": "m"}},
        "right_place": {"from": "transforms/rightHand", "index": [3, 7, 11], "field": {"size": 3, "unit": "m"}},
        "right_turn": {
            "from": "transforms/rightHand",
            "index": [0, 1, 2, 4, 5, 6, 8, 9, 10],
            "rotation": "matrix",
            "field": {"size": 6, "unit": "rot6d"},
        },
    },
}


def test_egodex_hands_and_camera(tmp_path):
    egodex(tmp_path)
    egodex(tmp_path, "part1/fold_towel/10", which_llm_description="1")
    egodex(tmp_path, "part1/fold_towel/2")
    (tmp_path / "part1/fold_towel/2.mp4").unlink()
    reader = EgoDex(tmp_path)
    mine = card("egodex", "description", **HANDS)
    assert set(check_against(mine, reader.features())) > {"transforms/rightIndexFingerTip", "confidences/leftHand"}
    found, refused = every(reader)
    assert list(found) == ["part1-fold_towel-0", "part1-fold_towel-10"] and "2.mp4 is missing" in refused["part1-fold_towel-2"]
    first = found["part1-fold_towel-0"]
    assert first.texts["description"] == ["Unfold the towel."] and found["part1-fold_towel-10"].texts["description"] == ["Fold the towel."]
    assert first.columns["transforms/camera"].shape == (40, 4, 4) and first.columns["confidences/leftHand"].shape == (40,)
    assert first.facts["camera/intrinsic"][0][0] == pytest.approx(736.6) and first.facts["task"] == "fold_towel"
    assert numbers(first) == list(range(40))
    reader.wanted = mine.wanted
    (raw,) = (episode for episode in reader.episodes("part1/fold_towel") if episode.id == first.id)
    assert set(raw.columns) == {"transforms/camera", "transforms/rightHand"}
    episode = Mapper(mine).episode(raw).episode
    assert episode is not None and episode.supervision == "hands" and episode.action is None
    np.testing.assert_allclose(episode.state[:, 3:6], first.columns["transforms/rightHand"][:, :3, 3], rtol=1e-6)
    np.testing.assert_allclose(episode.state[:, 6:], np.tile([1, 0, 0, 0, 1, 0], (40, 1)), atol=1e-7)
    with ShardWriter(tmp_path / "out", mine.dataset_info()) as writer:
        writer.add(episode)
    assert Dataset.open(tmp_path / "out").read(0).state.shape == (40, 12)


def test_egodex_hands_become_actions_as_the_camera_sees_them(tmp_path):
    egodex(tmp_path)
    turn = Rotation.from_euler("y", 90, degrees=True)
    with h5py.File(tmp_path / "part1/fold_towel/0.hdf5", "a") as file:
        file["transforms/camera"][:, :3, :3] = turn.as_matrix()
    mine, (raw,) = Card.find("egodex_hands"), every(EgoDex(tmp_path))[0].values()
    episode = Mapper(mine).episode(raw).episode
    assert episode is not None and (episode.embodiment, episode.supervision) == ("human_hands", "hands")
    hands = load_embodiment("human_hands")
    parts = hands.state.unpack(episode.state)
    for side in ("left", "right"):
        joints = [f"{side}Hand", f"{side}ThumbTip", *(f"{side}{finger}FingerTip" for finger in FINGERS)]
        world = np.stack([raw.columns[f"transforms/{joint}"][:39, :3, 3] for joint in joints], axis=1).astype(np.float64)
        seen = (world - raw.columns["transforms/camera"][:39, None, :3, 3]) @ turn.as_matrix()
        np.testing.assert_allclose(parts[f"{side}_hand"], seen.reshape(39, 18), atol=1e-6)
    assert len(episode.state) == 39  # the last step has none that follows
    np.testing.assert_array_equal(episode.action[:-1], episode.state[1:])
    with ShardWriter(tmp_path / "out", mine.dataset_info()) as writer:
        writer.add(episode)
    sample = Pipeline(Mixture.of([tmp_path / "out"], val_fraction=0.0), {hands.name: hands}).sample(0)
    assert sample.observation.embodiment == "human_hands" and sample.action_TA.shape == (10, 36) and sample.valid_T.any()


def test_egodex_files_that_reach_outside_or_lie_are_refused(tmp_path):
    egodex(tmp_path, "t/0")
    egodex(tmp_path, "t/1")
    egodex(tmp_path, "t/2")
    egodex(tmp_path, "t/3", frames=20)
    with h5py.File(tmp_path / "t/0.hdf5", "a") as file:
        del file["transforms/leftHand"]
        file["transforms/leftHand"] = h5py.ExternalLink("1.hdf5", "transforms/leftHand")
    with h5py.File(tmp_path / "t/1.hdf5", "a") as file:
        del file["transforms/rightHand"]
        file["transforms/rightHand"] = np.zeros((39, 4, 4), np.float32)
    (tmp_path / "t/2.hdf5").write_bytes((tmp_path / "t/2.hdf5").read_bytes()[:3000])
    found, refused = every(EgoDex(tmp_path))
    assert list(found) == ["t-3"]
    assert "link to another place" in refused["t-0"] and "expected (40, 4, 4)" in refused["t-1"] and "2.hdf5" in refused["t-2"]
    with pytest.raises(SchemaError, match=r"holds no \.hdf5"):
        EgoDex(tmp_path / "t" / "..").source.joinpath("empty").mkdir() or EgoDex(tmp_path / "empty").parts()


CARDS = {
    "epic_kitchens_100": (epic, EpicKitchens, "open door"),
    "ego4d": (ego4d, Ego4D, '"does" {0.2}'),
    "something_something_v2": (something, SomethingSomething, "holding potato"),
    "egodex": (egodex, EgoDex, "Unfold the towel."),
    "egodex_hands": (egodex, EgoDex, "Unfold the towel."),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_cards_that_come_with_the_package_read_their_formats(tmp_path, name):
    make, reader_class, text = CARDS[name]
    make(tmp_path)
    mine = Card.find(name)
    assert find_reader(mine.format) is reader_class
    reader = open_reader(mine.format, tmp_path, mine.reader, None)
    left = check_against(mine, reader.features())
    assert all(column.startswith(("confidences/", "llm_", "task")) for column in left)
    reader.wanted = mine.wanted
    raw = next(episode for part in reader.parts() for episode in reader.episodes(part) if isinstance(episode, RawEpisode))
    episode = Mapper(mine).episode(raw).episode
    assert episode is not None and episode.supervision == mine.supervision and episode.instructions[0].text == text
    with ShardWriter(tmp_path / "out", mine.dataset_info()) as writer:
        writer.add(episode)
    stored = Dataset.open(tmp_path / "out").read(0)
    assert stored.licence == mine.licence and len(stored.frames[mine_camera(mine)].jpeg) >= 1
    assert (stored.state is None) == (not name.startswith("egodex"))


def mine_camera(mine):
    (camera,) = mine.cameras
    return camera
