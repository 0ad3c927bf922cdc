from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset

from vla.data.gop import Gop, as_video, cut_mp4, encode_mp4, join_mp4, packet_table
from vla.data.images import decode_frame, decoded
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.quarantine import BadSample
from vla.data.shard import Dataset, DatasetInfo, ShardWriter, decode, verify
from vla.data.video import probe
from vla.errors import Damaged, SchemaError, UserError
from vla.types import Frames, VideoFrames

from .episodes import ROBOT, make_episode
from .videos import number_of, numbered, sequential, write_video

INFO = DatasetInfo(name="arms", embodiment=ROBOT.to_json(), licence="CC-BY-4.0")
FROZEN = Path(__file__).parent / "frozen"


def with_video(name: str, steps: int, seed: int = 0, every: int = 1, gop_frames: int = 8, camera: str = "wrist"):
    """An episode whose one camera is video; its frames are numbered by step."""
    episode = make_episode(name, steps, seed, (1, every))
    seen = np.arange(0, steps, every)
    mp4 = encode_mp4([numbered(step) for step in seen], ROBOT.rate_hz / every, gop_frames)
    return replace(episode, frames={**episode.frames, camera: VideoFrames(seen, mp4)})


def write(folder, episodes, **options):
    with ShardWriter(folder, INFO, **options) as writer:
        for episode in episodes:
            writer.add(episode)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video") / "arms"
    return write(folder, [with_video("a", 30), with_video("b", 41, 1, every=3), with_video("c", 1)])


def frame_number(dataset, index, number, camera="wrist"):
    return number_of(decode_frame(dataset.frame(index, camera, number)))


def test_every_frame_is_the_one_written(dataset):
    assert dataset.video == {"wrist": "h264"} and dataset.manifest["format_version"] == 2
    for number in np.random.default_rng(0).integers(0, 30, 60):
        assert frame_number(dataset, 0, number) == number
    assert [frame_number(dataset, 1, number) for number in range(14)] == list(range(0, 41, 3))
    assert frame_number(dataset, 2, 0) == 0
    assert dataset.episode(1).anchors.tolist() == list(range(0, 41, 3))
    gop = dataset.frame(0, "wrist", 13)
    assert isinstance(gop, Gop) and len(gop.packets) == 6  # frames 8 to 13: its group so far, and no more
    assert isinstance(dataset.frame(0, "front", 13), bytes)


def test_an_episode_comes_back_whole(dataset):
    given, stored = with_video("b", 41, 1, every=3), dataset.read(1)
    assert stored.frames["wrist"].mp4 == given.frames["wrist"].mp4
    np.testing.assert_array_equal(stored.frames["wrist"].step, given.frames["wrist"].step)
    assert stored.frames["front"].jpeg == given.frames["front"].jpeg
    np.testing.assert_array_equal(stored.action, given.action)
    assert not verify(dataset.folder)


def test_a_long_episode_is_cut_at_key_frames(tmp_path):
    given = with_video("long", 120, every=2)
    dataset = write(tmp_path / "d", [with_video("a", 5), given, with_video("z", 5)], max_shard_bytes=30_000)
    segments = [json.loads(data) for data in records(tmp_path / "d") if json.loads(data)["segment"]["of"] == "long"]
    starts = [segment["segment"]["first_step"] for segment in segments]
    assert len(starts) > 3 and all((start + 1) // 2 % 8 == 0 for start in starts)  # the next frame, of every second step, is a key frame
    assert len(dataset) == 3 and not verify(tmp_path / "d")
    assert [frame_number(dataset, 1, number) for number in range(60)] == list(range(0, 120, 2))
    assert frame_number(dataset, 2, 4) == 4
    whole = dataset.read(1).frames["wrist"]
    np.testing.assert_array_equal(whole.step, np.arange(0, 120, 2))
    path = tmp_path / "joined.mp4"
    path.write_bytes(whole.mp4)
    assert [number_of(image) for image in sequential(path)] == list(range(0, 120, 2))


def records(folder):
    import tarfile

    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".episode.json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield file.read()


def test_stock_webdataset_reads_the_groups(dataset, tmp_path):
    groups = list(webdataset.WebDataset(sorted(map(str, dataset.folder.glob("*.tar"))), shardshuffle=False).decode(decode))
    assert [group["__key__"] for group in groups] == ["a", "b", "c"]
    np.testing.assert_array_equal(groups[1]["steps.npz"]["step.wrist"], np.arange(0, 41, 3))
    path = tmp_path / "b.mp4"
    path.write_bytes(groups[1]["wrist.mp4"])
    assert [number_of(image) for image in sequential(path)] == list(range(0, 41, 3))


def test_the_pipeline_sees_pixels(dataset):
    pipeline = Pipeline(Mixture.of([dataset.folder]), {"arm": ROBOT}, history_s=(-0.3, 0.0), cache_bytes=0)
    for sample in pipeline.samples(range(24)):
        before, now = (number_of(image) for image in sample.observation.images["wrist"])
        every = 3 if sample.episode == "b" else 1
        assert now == sample.step and before == max(sample.step - 3, 0) // every * every
        assert not sample.observation.images["wrist"].flags.writeable


def test_a_flipped_bit_is_named_and_never_decoded(dataset, tmp_path):
    folder = shutil.copytree(dataset.folder, tmp_path / "d")
    table = dataset.episode(0).cameras["wrist"]
    with (folder / "shard-00000.tar").open("r+b") as file:
        file.seek(int(table.offset[9]) + 6)
        file.write(b"\xa5")
    assert [(p.kind, p.member) for p in verify(folder)][-1] == ("altered", "a.wrist.mp4")
    spoiled = Dataset.open(folder)
    for number in (9, 15):  # the frame itself, and one whose group it is in
        with pytest.raises(Damaged, match=f"episode 'a' camera 'wrist' frame {number}"):
            spoiled.frame(0, "wrist", number)
    assert frame_number(spoiled, 0, 8) == 8 and frame_number(spoiled, 0, 16) == 16


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: {"key": table.key + 20},
        lambda table: {"key": table.key - 100},
        lambda table: {"size": -table.size},
        lambda table: {"size": table.size + (1 << 30)},
        lambda table: {"offset": table.offset[::-1].copy()},
        lambda table: {"offset": table.offset + (1 << 40)},
        lambda table: {"offset": table.offset + 3},
    ],
    ids=["key after", "key before", "negative size", "huge size", "offsets back", "offsets beyond", "offsets beside"],
)
def test_an_index_that_lies_is_damaged_and_reads_nothing_large(dataset, monkeypatch, spoil):
    lying = Dataset.open(dataset.folder)
    stored = lying.episode(0)
    tables = {**stored.cameras, "wrist": replace(stored.cameras["wrist"], **spoil(stored.cameras["wrist"]))}
    monkeypatch.setattr(lying, "episode", lambda index: replace(stored, cameras=tables))
    with pytest.raises(Damaged, match=r"camera 'wrist' frame 13|shard-00000"):
        lying.frame(0, "wrist", 13)


def test_a_packet_that_does_not_decode_is_a_bad_sample():
    mp4 = encode_mp4([numbered(i) for i in range(9)], 10)
    table = packet_table(mp4)
    packets = [mp4[start : start + size] for start, size in zip(table.start, table.size, strict=True)]
    assert number_of(Gop(table.codec, table.head, tuple(packets[:6])).decode()) == 5
    for spoiled in (packets[1:6], [packets[0][:40]], [b"\0" * 200], [*packets[:5], b"\0\0\0\4zzzz"], [b""]):
        with pytest.raises(BadSample):
            Gop(table.codec, table.head, tuple(spoiled)).decode()
    assert number_of(Gop(table.codec, table.head, tuple(packets[:3])).decode()) == 2  # nothing of that is left behind
    with pytest.raises(BadSample, match="codec 'mpeg4'"):
        Gop("mpeg4", b"", tuple(packets)).decode()


def test_only_video_that_can_be_read_frame_by_frame_is_taken(tmp_path):
    bad = {
        "B-frames": write_video(tmp_path / "b.mp4", 20, options={"g": "8", "bf": "2"}),
        "key frame": write_video(tmp_path / "g.mp4", 80, options={"g": "80", "bf": "0"}),
        "to be turned": write_video(tmp_path / "r.mp4", 20, options={"g": "8", "bf": "0"}, rotation=90),
        "codec mpeg4": write_video(tmp_path / "m.mp4", 20, "mpeg4"),
        "no readable mp4": write_video(tmp_path / "w.mkv", 20),
    }
    for message, path in bad.items():
        with pytest.raises(SchemaError, match=message):
            packet_table(path.read_bytes())
        episode = with_video("a", 20)
        episode = replace(episode, frames={**episode.frames, "wrist": VideoFrames(np.arange(20), path.read_bytes())})
        with ShardWriter(tmp_path / "d", INFO) as writer:
            writer.add(with_video("ok", 3))
            with pytest.raises(SchemaError, match=f"'a' camera 'wrist'.*{message}"):
                writer.add(episode)
        shutil.rmtree(tmp_path / "d")
    with pytest.raises(SchemaError, match="20 step numbers for 19 images"), ShardWriter(tmp_path / "e", INFO) as writer:
        short = encode_mp4([numbered(i) for i in range(19)], 10)
        episode = with_video("a", 20)
        writer.add(replace(episode, frames={**episode.frames, "wrist": VideoFrames(np.arange(20), short)}))


def test_a_camera_is_jpeg_or_video_in_all_of_a_dataset(tmp_path):
    with ShardWriter(tmp_path / "d", INFO) as writer:
        writer.add(with_video("a", 3))
        with pytest.raises(SchemaError, match="'b' has video from"):
            writer.add(make_episode("b", 3))
    assert len(Dataset.open(tmp_path / "d")) == 1


def test_a_resumed_writer_goes_on_with_video(tmp_path):
    folder = tmp_path / "d"
    writer = ShardWriter(folder, INFO, max_shard_bytes=20_000)
    for i in range(4):
        writer.add(with_video(f"e{i}", 12, i))
    writer.abandon()
    with ShardWriter(folder, INFO, max_shard_bytes=20_000, resume=True) as writer:
        kept = [i for i in range(4) if writer.has(f"e{i}")]
        assert 0 < len(kept) < 4
        with pytest.raises(SchemaError, match="has video from"):
            writer.add(make_episode("jpeg", 3))
        for i in set(range(4)) - set(kept):
            writer.add(with_video(f"e{i}", 12, i))
    dataset = Dataset.open(folder)
    assert dataset.video == {"wrist": "h264"} and not verify(folder)
    assert all(frame_number(dataset, index, 11) == 11 for index in range(4))


def test_encoding_is_repeatable_and_keeps_colour_and_odd_sizes():
    rng = np.random.default_rng(5)
    flat = [np.full((33, 47, 3), colour, np.uint8) for colour in rng.integers(0, 256, (12, 3))]
    first, second = encode_mp4(flat, Fraction(30)), encode_mp4(iter(flat), Fraction(30))
    assert first == second
    table = packet_table(first)
    assert table.shape == (33, 47) and table.key.tolist() == [0] * 8 + [8] * 4
    for number in (0, 5, 11):
        low = int(table.key[number])
        packets = tuple(first[table.start[i] : table.start[i] + table.size[i]] for i in range(low, number + 1))
        image = Gop(table.codec, table.head, packets).decode(np.empty((33, 47, 3), np.uint8))
        assert np.abs(image.astype(int) - flat[number]).max() <= 4
    with pytest.raises(SchemaError, match="frame 1 is"):
        encode_mp4([flat[0], flat[1][:30]], 30)
    with pytest.raises(SchemaError, match="without a frame"):
        encode_mp4([], 30)


def test_cutting_and_joining_loses_nothing():
    mp4 = encode_mp4([numbered(i) for i in range(40)], Fraction(30000, 1001))
    pieces = cut_mp4(mp4, [0, 8, 8, 24])
    assert [len(packet_table(piece).key) for piece in pieces] == [8, 0, 16, 16]
    whole, table = packet_table(join_mp4(pieces)), packet_table(mp4)
    assert whole.size.tolist() == table.size.tolist() and whole.key.tolist() == table.key.tolist() and whole.head == table.head
    with pytest.raises(SchemaError, match="frame 9 is no key frame"):
        cut_mp4(mp4, [0, 9])


def test_jpegs_become_video(tmp_path):
    images = [numbered(i) for i in range(20)]
    frames = Frames(np.arange(0, 40, 2), tuple(simplejpeg.encode_jpeg(image, quality=95) for image in images))
    video = as_video(frames, ROBOT.rate_hz)
    path = tmp_path / "a.mp4"
    path.write_bytes(video.mp4)
    assert [number_of(image) for image in sequential(path)] == list(range(20))
    assert probe(path).rate_hz == ROBOT.rate_hz / 2 and video.step.tolist() == frames.step.tolist()
    assert len(video.mp4) < sum(map(len, frames.jpeg)) / 2
    assert [number_of(image) for image in decoded(video)] == [number_of(image) for image in decoded(frames)] == list(range(20))
    none = as_video(Frames(np.zeros(0, int), ()), 10)
    assert none.mp4 == b"" and list(decoded(none)) == []


def test_datasets_of_the_first_version_stay_readable(tmp_path):
    dataset = Dataset.open(FROZEN / "version1")
    assert dataset.manifest["format_version"] == 1 and dataset.video == {} and not verify(dataset.folder)
    long = make_episode("long", 9, every=(1, 3))
    assert [dataset.episode(i).id for i in range(2)] == ["e0", "long"]
    np.testing.assert_array_equal(dataset.read(1).action, long.action)
    np.testing.assert_array_equal(dataset.episode(1).cameras["wrist"].step, [0, 3, 6])
    assert decode_frame(dataset.frame(1, "front", 7))[..., 0].mean() == pytest.approx(7, abs=2)
    assert isinstance(dataset.read(0).frames["wrist"], Frames)


def test_a_dataset_without_video_is_written_as_the_first_version(tmp_path):
    with ShardWriter(tmp_path / "d", INFO, max_shard_bytes=14_000) as writer:
        writer.add(make_episode("e0", 3))
        writer.add(make_episode("long", 9, every=(1, 3)))
    names = sorted(path.name for path in (FROZEN / "version1").iterdir())
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == names
    old, new = (json.loads((folder / "dataset.json").read_text()) for folder in (FROZEN / "version1", tmp_path / "d"))
    assert new["format_version"] == 1 and set(old) == set(new)
    assert {path.stem for path in (tmp_path / "d").glob("*.columns")} == {path.stem for path in (FROZEN / "version1").glob("*.columns")}
    for path in (FROZEN / "version1").glob("*.columns"):
        assert path.read_bytes() == (tmp_path / "d" / path.name).read_bytes()
    with pytest.raises(UserError, match="no dataset"):
        Dataset.open(FROZEN)
