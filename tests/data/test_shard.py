from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from vla.data.shard import Dataset, DatasetInfo, Pool, ShardWriter, decode, is_validation, verify
from vla.embodiment import Field, Space
from vla.errors import Damaged, SchemaError, UserError
from vla.types import Frames, Span

from .episodes import ROBOT, make_episode, make_video

INFO = DatasetInfo(name="arms", embodiment=ROBOT.to_json(), licence="CC-BY-4.0")


def write(folder, episodes, info=INFO, **options):
    with ShardWriter(folder, info, **options) as writer:
        for episode in episodes:
            writer.add(episode)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "arms", [make_episode(f"e{i}", 5 + i, i) for i in range(6)], max_shard_bytes=30_000)


def assert_same(stored, given):
    for name in ("id", "embodiment", "rate_hz", "supervision", "instructions", "source", "info"):
        assert getattr(stored, name) == getattr(given, name), name
    for name in ("time_s", "state", "action"):
        if getattr(given, name) is None:
            assert getattr(stored, name) is None
        else:
            np.testing.assert_array_equal(getattr(stored, name), getattr(given, name))
    assert set(stored.frames) == set(given.frames)
    for camera, frames in given.frames.items():
        np.testing.assert_array_equal(stored.frames[camera].step, frames.step)
        assert stored.frames[camera].jpeg == frames.jpeg


def members(path):
    with tarfile.open(path) as tar:
        return tar.getmembers()


def test_what_is_written_is_read(folder):
    dataset = Dataset.open(folder)
    assert len(dataset) == 6 and len(dataset.shard_names) > 1
    assert dataset.steps == dataset.anchors == sum(5 + i for i in range(6))
    for i in range(6):
        assert_same(dataset.read(i), make_episode(f"e{i}", 5 + i, i))
    assert dataset.read(0).licence == "CC-BY-4.0"
    assert dataset.info.recorded_action == ROBOT.command


def test_reasoning_is_kept_where_there_is_any_and_costs_nothing_elsewhere(tmp_path):
    plain = [make_episode(f"e{i}", 40, i) for i in range(3)]
    said = (Span("open the drawer first", 3, 30), Span("then the cup", 30, 38))
    given = [plain[0], dataclasses.replace(plain[1], reasoning=said), plain[2]]
    dataset = Dataset.open(write(tmp_path / "arms", given, max_shard_bytes=30_000))
    assert dataset.reasons and dataset.manifest["segments"] > len(dataset)  # episodes are cut, and joined again
    for number, episode in enumerate(given):
        assert dataset.read(number).reasoning == episode.reasoning and dataset.read(number).instructions == episode.instructions
    stored = dataset.episode(1)
    assert [stored.reasoning(step) for step in (2, 3, 29, 30, 38)] == ["", said[0].text, said[0].text, said[1].text, ""]
    assert dataset.record(1)["reasoning"][0] == {"text": "open the drawer first", "start": 3, "stop": dataset.record(1)["steps"]}
    silent = Dataset.open(write(tmp_path / "silent", plain, max_shard_bytes=30_000))
    assert not silent.reasons and "reasoning" not in silent.record(0)
    assert not any(b"reason" in path.read_bytes()[:4096] for path in silent.folder.glob("*.index"))
    with pytest.raises(SchemaError, match=r"reasoning span 3\.\.41 does not fit 40 steps"):
        write(tmp_path / "wrong", [dataclasses.replace(plain[0], reasoning=(Span("x", 3, 41),))])


def test_video_without_robot_state_or_actions(tmp_path):
    info = DatasetInfo(name="clips", supervision="none")
    dataset = Dataset.open(write(tmp_path / "v", [make_video("a", 4), make_video("b", 1)], info))
    assert_same(dataset.read(1), make_video("b", 1))
    assert dataset.episode(0).action is None and dataset.hours * 3600 == pytest.approx(5 * 1001 / 30000)


def test_anchors_are_steps_where_every_camera_has_a_frame(tmp_path):
    dataset = Dataset.open(write(tmp_path / "slow", [make_episode("a", 13, every=(2, 3)), make_episode("b", 4, every=(1, 4))]))
    assert dataset.episode(0).anchors.tolist() == [0, 6, 12]
    assert dataset.episode(1).anchors.tolist() == [0]
    assert dataset.anchors == 4 and dataset.anchors_E.tolist() == [3, 1]


def test_a_long_episode_is_cut_and_joined(tmp_path):
    given = make_episode("long", 60, every=(1, 3))
    folder = write(tmp_path / "cut", [make_episode("a", 5), given, make_episode("z", 5)], max_shard_bytes=20_000)
    dataset = Dataset.open(folder)
    names = [m.name for path in sorted(folder.glob("*.tar")) for m in members(path) if m.name.endswith(".json")]
    assert len(names) > 5 and f"long-{len(names) - 3}.episode.json" in names
    assert all(path.stat().st_size <= 20_000 for path in folder.glob("*.tar"))
    assert len(dataset) == 3
    assert_same(dataset.read(1), given)
    assert_same(dataset.read(2), make_episode("z", 5))
    assert dataset.episode(1).anchors.tolist() == list(range(0, 60, 3))
    assert dataset.frame(1, "wrist", 15) == given.frames["wrist"].jpeg[15]
    assert not verify(folder)


def test_many_shards_are_opened_by_one_file(tmp_path):
    given = [make_episode(f"e{i}", 40 if i % 5 == 0 else 4, i) for i in range(30)]
    folder = write(tmp_path / "many", given, max_shard_bytes=20_000)
    manifest = json.loads((folder / "dataset.json").read_text())
    assert len(manifest["shards"]) >= 16 and manifest["segments_file"]["bytes"] == (folder / "dataset.segments").stat().st_size
    fast = Dataset.open(folder)
    del fast.manifest["segments_file"]  # type: ignore[attr-defined]
    slow = Dataset(folder, fast.manifest, Pool())
    for name in ("_shard_S", "_row_S", "_first_S", "key_E", "steps_E", "anchors_E", "shard_E"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))
    for i, episode in enumerate(given):
        assert_same(fast.read(i), episode)
    (folder / "dataset.segments").write_bytes(b"x" * manifest["segments_file"]["bytes"])
    with pytest.raises(Damaged, match=r"dataset\.segments is not the file"):
        Dataset.open(folder)
    assert [(p.kind, p.file) for p in verify(folder)] == [("altered", "dataset.segments")]
    assert not verify(folder, full=False)


def test_same_episodes_same_bytes(tmp_path):
    sums = []
    for name in ("one", "two"):
        folder = write(tmp_path / name, [make_episode(f"e{i}", 9, i) for i in range(3)])
        sums.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert sums[0] == sums[1]


def test_stock_webdataset_reads_the_groups(folder):
    paths = sorted(map(str, folder.glob("*.tar")))
    groups = list(webdataset.WebDataset(paths, shardshuffle=False).decode(decode))
    assert [group["__key__"] for group in groups] == [f"e{i}" for i in range(6)]
    for i, group in enumerate(groups):
        given = make_episode(f"e{i}", 5 + i, i)
        assert group["episode.json"]["instructions"][0] == {
            "text": f"begin e{i}",
            "start": 0,
            "stop": given.instructions[0].stop,
        }
        np.testing.assert_array_equal(group["steps.npz"]["action.position"], given.action[:, :3])
        np.testing.assert_array_equal(group["steps.npz"]["state.gripper"], given.state[:, 3:])
        np.testing.assert_array_equal(group["wrist.jpgs"].step, given.frames["wrist"].step)
        assert group["wrist.jpgs"].jpeg == given.frames["wrist"].jpeg


def test_file_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        folder = write(tmp_path / "m", [make_episode("a")])
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


def test_no_dataset_before_it_is_closed(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "x", INFO) as writer:
        writer.add(make_episode("a"))
        raise KeyboardInterrupt
    assert not list((tmp_path / "x").iterdir())
    with pytest.raises(UserError, match="no dataset"):
        Dataset.open(tmp_path / "x")
    with pytest.raises(UserError, match="no episode"), ShardWriter(tmp_path / "y", INFO):
        pass


@pytest.mark.thorough
def test_a_killed_writer_resumes_without_repeating(tmp_path):
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from tests.data.test_shard import *\n"
        "writer = ShardWriter(sys.argv[1], INFO, max_shard_bytes=20_000)\n"
        "for i in range(9): writer.add(make_episode(f'e{i}', 40 if i == 8 else 10, i))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    folder = tmp_path / "killed"
    subprocess.run([sys.executable, "-c", code, str(folder), os.getcwd()], check=False)
    with pytest.raises(UserError, match="unfinished"):
        ShardWriter(folder, INFO)
    with ShardWriter(folder, INFO, max_shard_bytes=20_000, resume=True) as writer:
        kept = [i for i in range(9) if writer.has(f"e{i}")]
        assert 0 < len(kept) < 9
        for i in range(9):
            if i not in kept:
                writer.add(make_episode(f"e{i}", 40 if i == 8 else 10, i))
    dataset = Dataset.open(folder)
    assert sorted(dataset.episode(i).id for i in range(len(dataset))) == [f"e{i}" for i in range(9)]
    assert not verify(folder)
    with pytest.raises(UserError, match="already holds"):
        ShardWriter(folder, INFO, resume=True)


def change(**fields):
    return lambda episode: dataclasses.replace(episode, **{k: v(episode) if callable(v) else v for k, v in fields.items()})


def poke(name, value):
    def edit(episode):
        rows = getattr(episode, name).copy()
        rows[(3, 0) if rows.ndim == 2 else 3] = value
        return rows

    return change(**{name: edit})


def cmyk():
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


BAD = {
    "NaN action": (poke("action", np.nan), "NaN"),
    "infinite state": (poke("state", np.inf), "NaN or infinity"),
    "NaN time": (poke("time_s", np.nan), "rising"),
    "time goes back": (poke("time_s", 0.0), "rising"),
    "narrow action": (change(action=lambda e: e.action[:, :3]), "last axis must be 4"),
    "too few actions": (change(action=lambda e: e.action[1:]), "11 rows of action for 12 steps"),
    "no action": (change(action=None), "lacks action"),
    "dot in id": (change(id="a.b"), "no dot"),
    "path in id": (change(id="../a"), "episode id"),
    "other robot": (change(embodiment="leg"), "declares 'arm'"),
    "other supervision": (change(supervision="hands"), "has 'actions'"),
    "camera gone": (change(frames=lambda e: {"front": e.frames["front"]}), r"the dataset has \['front', 'wrist'\]"),
    "no JPEG": (
        change(frames=lambda e: {**e.frames, "wrist": Frames(np.array([0]), (b"GIF89a",))}),
        "camera 'wrist': an image is no",
    ),
    "CMYK": (change(frames=lambda e: {**e.frames, "wrist": Frames(np.array([0]), (cmyk(),))}), "CMYK image; convert to RGB"),
    "frame beyond": (
        change(frames=lambda e: {**e.frames, "wrist": Frames(np.array([12]), e.frames["wrist"].jpeg[:1])}),
        "rise within",
    ),
    "no anchor": (
        change(frames=lambda e: {c: Frames(np.array([i]), f.jpeg[:1]) for i, (c, f) in enumerate(e.frames.items())}),
        "no step",
    ),
    "span beyond": (change(instructions=(Span("x", 0, 13),)), "does not fit"),
    "gap in spans": (change(instructions=(Span("x", 0, 5), Span("y", 6, 12))), "step 5 has no instruction"),
    "not JSON": (change(info={"x": np.float32(1)}), "not plain JSON"),
    "again": (change(id="first"), "already added"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_episodes_are_refused_by_name(tmp_path, name):
    spoil, message = BAD[name]
    bad = spoil(make_episode("bad"))
    with ShardWriter(tmp_path / "d", INFO) as writer:
        writer.add(make_episode("first"))
        with pytest.raises(SchemaError, match=message) as error:
            writer.add(bad)
        assert repr(bad.id) in str(error.value)
        writer.add(make_episode("last"))
    assert len(Dataset.open(tmp_path / "d")) == 2


def test_segment_names_cannot_collide(tmp_path):
    with ShardWriter(tmp_path / "d", INFO, max_shard_bytes=20_000) as writer:
        writer.add(make_episode("a-1", 4))
        with pytest.raises(SchemaError, match="is taken"):
            writer.add(make_episode("a", 60))


def test_supervision_none_stores_no_actions():
    with pytest.raises(SchemaError, match="neither actions nor state"):
        DatasetInfo(name="x", supervision="none", action_space=Space((Field("a", 1, "m"),)).to_json())
    with pytest.raises(SchemaError, match="needs the embodiment"):
        DatasetInfo(name="x")


def test_info_update_reaches_the_manifest(tmp_path):
    with ShardWriter(tmp_path / "d", INFO) as writer:
        writer.add(make_episode("a"))
        writer.info_update(yields={"door-open": {"kept": 1, "tried": 2}})
    assert Dataset.open(tmp_path / "d").info.info["yields"]["door-open"]["tried"] == 2


def copy(folder, to):
    if to.exists():
        shutil.rmtree(to)
    return shutil.copytree(folder, to)


def test_every_cut_of_a_tar_is_found(folder, tmp_path):
    data = (folder / "shard-00000.tar").read_bytes()
    boundaries = [member.offset for member in members(folder / "shard-00000.tar")]
    cuts = {*boundaries, *np.random.default_rng(0).integers(0, len(data), 200).tolist(), len(data) - 1, len(data) - 1024}
    broken = copy(folder, tmp_path / "broken")
    for cut in sorted(cuts):
        (broken / "shard-00000.tar").write_bytes(data[:cut])
        problems = verify(broken, full=False)
        assert [p.kind for p in problems if not p.member] == ["truncated"], cut
        lost = [p.member for p in problems if p.member]
        assert len(lost) == sum(member.offset_data + member.size > cut for member in members(folder / "shard-00000.tar"))
        with pytest.raises(Damaged, match=r"shard-00000\.tar"):
            Dataset.open(broken)


def test_every_flipped_bit_is_found(folder, tmp_path):
    rng = np.random.default_rng(1)
    broken = copy(folder, tmp_path / "broken")
    paths = sorted(broken.iterdir())
    for _ in range(120):
        path = paths[rng.integers(len(paths))]
        data = path.read_bytes()
        at = int(rng.integers(len(data)))
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        problems = verify(broken)
        assert problems and problems[0].file == path.name, (path.name, at)
        path.write_bytes(data)
    assert not verify(broken)


def test_an_altered_member_is_named_and_an_altered_frame_is_never_returned(folder):
    dataset = Dataset.open(folder)
    table = dataset.episode(1).cameras["wrist"]
    path = folder / f"{dataset.shard_names[int(table.shard[2])]}.tar"
    with path.open("r+b") as file:
        file.seek(int(table.offset[2]) + int(table.size[2]) // 2)
        file.write(b"\x00\xff\x00")
    assert [(p.kind, p.file, p.member) for p in verify(folder)][-1] == ("altered", path.name, "e1.wrist.jpgs")
    with pytest.raises(Damaged, match="episode 'e1' camera 'wrist' frame 2"):
        dataset.frame(1, "wrist", 2)
    dataset.frame(1, "wrist", 1)


def test_missing_overlong_and_unlisted_files(folder):
    (folder / "shard-00001.columns").unlink()
    with (folder / "shard-00000.tar").open("ab") as file:
        file.write(b"more")
    (folder / "shard-00009.tar").write_bytes(b"")
    found = {(p.file, p.kind) for p in verify(folder, full=False) if not p.member}
    assert found == {("shard-00001.columns", "missing"), ("shard-00000.tar", "overlong"), ("shard-00009.tar", "unlisted")}


def test_an_edited_or_newer_manifest_is_refused(folder):
    path = folder / "dataset.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "steps": 7}))
    with pytest.raises(Damaged, match="digest"):
        Dataset.open(folder)
    path.write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Dataset.open(folder)
    path.write_text(path.read_text()[:100])
    assert [p.file for p in verify(folder)] == ["dataset.json"]


def test_memory_of_the_pool_is_bounded(folder):
    pool = Pool(shards=1, episode_bytes=4_000)
    dataset = Dataset.open(folder, pool)
    for i in [*range(6), *range(6)]:
        assert dataset.episode(i).id == f"e{i}"
        dataset.frame(i, "front", 0)
    assert len(pool._open) == 1 and pool._held <= 4_000 + dataset.episode(5).nbytes


def test_held_out_split_is_a_function_of_the_name():
    names = [f"episode-{i}" for i in range(20_000)]
    held = [is_validation("arms", name, 0.02) for name in names]
    assert 320 < sum(held) < 480  # 400 expected, sd 20
    assert held != [is_validation("legs", name, 0.02) for name in names]
    assert all(is_validation("arms", name, 0.1) for name, h in zip(names, held, strict=True) if h)
    assert not any(is_validation("arms", name, 0.0) for name in names)
    # Frozen: changing the rule would move episodes between training and validation under people's feet.
    assert [i for i in range(400) if is_validation("arms", f"episode-{i}", 0.02)] == FROZEN_SPLIT


FROZEN_SPLIT = [77, 123, 150, 232, 235, 237, 270, 275, 284, 369, 377]
