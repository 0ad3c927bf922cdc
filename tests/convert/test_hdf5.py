"""HDF5 files written by h5py in the published layouts (robomimic, LIBERO, ACT/ALOHA, DROID), and hostile ones."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

h5py = pytest.importorskip("h5py")
av = pytest.importorskip("av")

from tests.data.videos import number_of, write_video  # noqa: E402
from vla.convert.card import Card  # noqa: E402
from vla.convert.engine import Settings, convert  # noqa: E402
from vla.convert.hdf5 import Hdf5  # noqa: E402
from vla.convert.raw import Clip, Encoded, Pixels, Unreadable  # noqa: E402
from vla.data.shard import Dataset  # noqa: E402
from vla.data.video import images_at  # noqa: E402
from vla.errors import Damaged, UnknownName, UserError  # noqa: E402

LENGTHS = (6, 4, 1)


def picture(step: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    return np.full((*size, 3), (20 + 30 * step, 80, 40), np.uint8)


def encode(step: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(step)).save(buffer, kind)
    return buffer.getvalue()


def shown(data: bytes) -> float:
    return float(np.asarray(Image.open(io.BytesIO(data)))[..., 0].mean())


def write_demos(path: Path, lengths=LENGTHS, language: object = "open the drawer", names=None) -> Path:
    """As robomimic documents it, with LIBERO's attributes; demo_10 comes after demo_2 only if numbers are numbers."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_type": 1, "env_kwargs": {}})
        data.attrs["problem_info"] = json.dumps({"language_instruction": language, "problem_name": "x"})
        data.attrs["total"] = sum(lengths)
        for name, steps in zip(names or ("demo_1", "demo_2", "demo_10"), lengths, strict=True):
            demo = data.create_group(name)
            demo.attrs["num_samples"], demo.attrs["model_file"] = steps, "<mujoco/>" * 1000
            demo["actions"] = rng.normal(size=(steps, 7))
            demo["states"] = rng.normal(size=(steps, 20))
            demo["rewards"], demo["dones"] = np.zeros(steps), np.arange(steps) == steps - 1
            for group in ("obs", "next_obs"):
                demo[f"{group}/ee_pos"] = rng.normal(size=(steps, 3)).astype(np.float32)
                images = np.stack([picture(i) for i in range(steps)])
                demo.create_dataset(f"{group}/agentview_rgb", data=images, chunks=(2 if steps > 1 else 1, 32, 48, 3), compression="gzip")
        file["mask/train"] = np.array([b"demo_1", b"demo_10"])
    return path


def write_file(path: Path, steps: int = 5, compressed: bool = False, steps_name: str = "action") -> Path:
    """As ACT's and ALOHA's record_episodes.py: JPEGs are padded with zeros to the longest of the episode, `compress_len` beside."""
    rng = np.random.default_rng(steps)
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, compressed
        file[steps_name] = rng.normal(size=(steps, 14))
        for name in ("qpos", "qvel", "effort"):
            file[f"observations/{name}"] = rng.normal(size=(steps, 14))
        for camera in ("cam_high", "cam_left_wrist"):
            if compressed:
                jpegs = [np.frombuffer(encode(i), np.uint8) for i in range(steps)]
                width = max(map(len, jpegs)) + 5
                rows = np.stack([np.pad(jpeg, (0, width - len(jpeg))) for jpeg in jpegs])
                file.create_dataset(f"observations/images/{camera}", data=rows, chunks=(1, width))
            else:
                rows = np.stack([picture(i) for i in range(steps)])
                file.create_dataset(f"observations/images/{camera}", data=rows, chunks=(1, 32, 48, 3))
        if compressed:
            file["compress_len"] = np.full((2, steps), 700.0)
    return path


def write_folder(folder: Path, steps: int = 5, frames: int | None = None, task: object = "wipe the table") -> Path:
    """As DROID publishes an episode raw: trajectory.h5, a metadata file, and mp4s by the cameras' serial numbers."""
    (folder / "recordings" / "MP4").mkdir(parents=True)
    (folder / "metadata_AB+1+x.json").write_text(json.dumps({"wrist_cam_serial": "123", "current_task": task, "success": True}))
    with h5py.File(folder / "trajectory.h5", "w") as file:
        rng = np.random.default_rng(1)
        for name, width in (("joint_position", 7), ("cartesian_position", 6)):
            file[f"action/{name}"] = rng.normal(size=(steps, width))
            file[f"observation/robot_state/{name}s"] = rng.normal(size=(steps, width))
        file["action/gripper_position"] = rng.uniform(size=steps)
        file["observation/timestamp/control/step_start"] = 1_700_000_000_000 + 67 * np.arange(steps)
        file["observation/controller_info/movement_enabled"] = np.ones(steps, bool)
    with av.open(str(folder / "recordings/MP4/123.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for step in range(steps if frames is None else frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(step), format="rgb24")))
        out.mux(stream.encode())
    return folder


def read(reader: Hdf5) -> list:
    """Every episode, with its columns and pictures read while it is the current one."""
    found = []
    for part in reader.parts():
        for episode in reader.episodes(part):
            if isinstance(episode, Unreadable):
                raise Damaged(episode.detail)
            columns = dict(episode.columns)
            pictures = {name: p if isinstance(p, Clip) else list(p.data) for name, p in episode.pictures.items()}
            found.append((episode, columns, pictures))
    return found


def test_demos(tmp_path):
    path = write_demos(tmp_path / "lift_demo.hdf5")
    reader = Hdf5(tmp_path, texts={"language": "/data@problem_info#language_instruction"})
    assert {f.name: (f.kind, f.shape) for f in reader.features()} == {
        "actions": ("column", (7,)),
        "states": ("column", (20,)),
        "rewards": ("column", ()),
        "dones": ("column", ()),
        "obs/ee_pos": ("column", (3,)),
        "obs/agentview_rgb": ("pictures", (32, 48, 3)),
        "language": ("text", ()),
    }
    assert reader.size().episodes == 3
    episodes = read(reader)
    assert [(e.id, e.steps) for e, _, _ in episodes] == [(f"lift_demo-demo_{n}", s) for n, s in zip((1, 2, 10), LENGTHS, strict=True)]
    with h5py.File(path) as file:
        for episode, columns, pictures in episodes:
            demo = file["data"][episode.facts["group"]]
            assert set(columns) == {"actions", "states", "rewards", "dones", "obs/ee_pos"}
            assert all((columns[name] == demo[name][()]).all() and columns[name].dtype == demo[name].dtype for name in columns)
            assert (np.stack(pictures["obs/agentview_rgb"]) == demo["obs/agentview_rgb"][()]).all()
            assert isinstance(episode.pictures["obs/agentview_rgb"], Pixels)
            assert episode.texts == {"language": ["open the drawer"]} and episode.facts["num_samples"] == episode.steps
            assert "model_file" not in episode.facts


def test_demos_of_a_filter_key(tmp_path):
    write_demos(tmp_path / "a.hdf5")
    assert [e.id for e, _, _ in read(Hdf5(tmp_path, only="mask/train"))] == ["a-demo_1", "a-demo_10"]
    assert Hdf5(tmp_path, only="mask/train").size().episodes == 2
    (tmp_path / "b.hdf5").write_bytes(b"cut")
    assert Hdf5(tmp_path).size().episodes is None  # what cannot be read is no number; reading it names the file


def test_only_what_is_wanted_is_read(tmp_path):
    write_demos(tmp_path / "a.hdf5")
    reader = Hdf5(tmp_path / "a.hdf5")
    reader.wanted = frozenset({"actions"})
    for _, columns, pictures in read(reader):
        assert set(columns) == {"actions"} and not pictures


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_an_episode(tmp_path, compressed):
    for number, steps in ((10, 5), (2, 3)):
        write_file(tmp_path / f"episode_{number}.hdf5", steps, compressed)
    episodes = read(Hdf5(tmp_path))
    assert [(e.id, e.steps) for e, _, _ in episodes] == [("episode_2", 3), ("episode_10", 5)]
    for episode, columns, pictures in episodes:
        with h5py.File(tmp_path / episode.facts["file"]) as file:
            assert set(columns) == {"action", "observations/qpos", "observations/qvel", "observations/effort"}
            assert all((columns[name] == file[name][()]).all() for name in columns)
        for name in ("observations/images/cam_high", "observations/images/cam_left_wrist"):
            if compressed:
                assert isinstance(episode.pictures[name], Encoded)
                assert pictures[name] == [encode(i) for i in range(episode.steps)]  # without the padding
            else:
                assert (np.stack(pictures[name]) == np.stack([picture(i) for i in range(episode.steps)])).all()
        assert episode.facts["left_out"] == ({"compress_len": [2, episode.steps]} if compressed else {})


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_of_variable_length(tmp_path, kind):
    path = write_file(tmp_path / "a.hdf5", 4)
    with h5py.File(path, "a") as file:
        del file["observations/images"]
        rows = file.create_dataset("observations/images/cam", (4,), h5py.vlen_dtype(np.uint8))
        for step in range(4):
            rows[step] = np.frombuffer(encode(step, kind), np.uint8)
        file["observations/images/fixed"] = np.array([encode(step, kind) for step in range(4)])
    ((episode, _, pictures),) = read(Hdf5(path))
    assert all(isinstance(p, Encoded) for p in episode.pictures.values())
    for name in ("observations/images/cam", "observations/images/fixed"):
        assert pictures[name] == [encode(step, kind) for step in range(4)]


def test_a_folder_an_episode(tmp_path):
    write_folder(tmp_path / "AUTOLab" / "success" / "day 1")
    layout = {"layout": "folder", "videos": {"wrist": "recordings/MP4/{wrist_cam_serial}.mp4"}, "texts": {"task": "metadata#current_task"}}
    reader = Hdf5(tmp_path, **layout)
    ((episode, columns, pictures),) = read(reader)
    assert episode.steps == 5 and len(episode.id) <= 80 and episode.id.replace("-", "").replace("_", "").isalnum()
    assert {"action/joint_position", "observation/robot_state/cartesian_positions", "observation/controller_info/movement_enabled"} < set(
        columns
    )
    assert columns["action/gripper_position"].shape == (5,) and episode.texts == {"task": ["wipe the table"]}
    assert episode.facts["success"] is True
    clip = pictures["wrist"]
    seen = [image[..., 0].mean() for image in images_at(clip.path, clip.time_s)]
    assert np.abs(np.array(seen) - [20 + 30 * step for step in range(5)]).max() < 6
    assert ("wrist", "pictures") in {(f.name, f.kind) for f in reader.features()}


@pytest.mark.parametrize(("frames", "surplus", "which"), [(4, 0, "shorter"), (7, 0, "longer"), (7, 1, "longer"), (7, 2, None)])
def test_a_video_fits_its_table(tmp_path, frames, surplus, which):
    write_folder(tmp_path, frames=frames)
    reader = Hdf5(tmp_path, layout="folder", videos={"wrist": "recordings/MP4/{wrist_cam_serial}.mp4"}, surplus_frames=surplus)
    if which is None:
        assert len(read(reader)[0][2]["wrist"].time_s) == 5
    else:
        with pytest.raises(Damaged, match=f"123.mp4 has {frames} frames, {which} than its table of 5 steps"):
            read(reader)


def test_a_video_that_keeps_no_rate_still_has_a_frame_for_each_step(tmp_path):
    """By an average rate, 17 of these 30 steps saw a neighbour's picture."""
    write_folder(tmp_path, steps=30)
    pts = np.cumsum([0, *(20 if i % 10 < 5 else 50 for i in range(29))])
    write_video(tmp_path / "recordings/MP4/123.mp4", 30, pts=pts.tolist(), time_base=Fraction(1, 1000), options={"bf": "2"})
    reader = Hdf5(tmp_path, layout="folder", videos={"wrist": "recordings/MP4/{wrist_cam_serial}.mp4"})
    clip = read(reader)[0][2]["wrist"]
    assert [number_of(image) for image in images_at(clip.path, clip.time_s)] == list(range(30))


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ("../{wrist_cam_serial}.mp4", "leads out of the dataset"),
        ("recordings/{no_such}.mp4", "uses 'no_such'"),
        ("recordings/{wrist_cam_serial.__class__}.mp4", "holds more than"),
        ("recordings/MP4/7.mp4", "is missing"),
    ],
)
def test_videos_are_found_by_name_and_inside(tmp_path, videos, message):
    write_folder(tmp_path)
    with pytest.raises(Damaged, match=message):
        read(Hdf5(tmp_path, layout="folder", videos={"wrist": videos}))


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("words", ["step 0", "step 1", "step 2", "step 3"]),
        ("@spoken", ["hello"]),
        ("/@spoken", ["hello"]),
        ("fixed", ["a", "b", "c", "d"]),
        ("one", ["all of it"]),
        ("in_json#task/name", ["open it now"]),
    ],
)
def test_texts_are_found_where_the_layout_says(tmp_path, place, text):
    path = write_file(tmp_path / "a.hdf5", 4)
    with h5py.File(path, "a") as file:
        file.attrs["spoken"] = "hello"
        file["words"] = [f"step {i}" for i in range(4)]
        file["fixed"] = np.array([b"a", b"b", b"c", b"d"])
        file["one"] = "all of it"
        file["in_json"] = json.dumps({"task": {"name": ["open", "it", "now"]}})
    ((episode, _, _),) = read(Hdf5(path, texts={"said": place}))
    assert episode.texts["said"] == text


@pytest.mark.parametrize("place", ["@nothing", "nowhere", "action", "@sim#x", "metadata#x", "observations"])
def test_a_text_that_is_not_there_is_named(tmp_path, place):
    with pytest.raises(Damaged):
        read(Hdf5(write_file(tmp_path / "a.hdf5"), texts={"said": place}))


def hostile(path: Path, kind: str) -> Path:
    write_file(path, 4)
    with h5py.File(path, "a") as file:
        if kind == "external link":
            file["x"] = h5py.ExternalLink("other.hdf5", "/secret")
        elif kind == "soft link":
            file["x"] = h5py.SoftLink("/action")
        elif kind == "link to a group elsewhere":
            file["observations/x"] = h5py.ExternalLink("other.hdf5", "/")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4, 2), "f8")
            layout[:] = h5py.VirtualSource("other.hdf5", "secret", (4, 2))
            file.create_virtual_dataset("x", layout)
        elif kind == "external storage":
            file.create_dataset("x", (4, 2), "f8", external=[("secret.bin", 0, 64)])
        elif kind == "references":
            file.create_dataset("x", (4,), h5py.ref_dtype)
        elif kind == "compound":
            file["x"] = np.zeros(4, [("a", "f4"), ("b", "i4")])
        elif kind == "opaque":
            file["x"] = np.zeros(4, "V8")
        elif kind == "numbers of variable length":
            file.create_dataset("x", (4,), h5py.vlen_dtype(np.float64))
        elif kind == "huge chunk":
            file.create_dataset("x", (4, 1 << 27), "f8", chunks=(4, 1 << 26))
        elif kind == "nothing":
            file["x"] = h5py.Empty("f8")
        elif kind == "loop":
            file["observations/again"] = file["observations"]
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external link", "is a link to another place"),
        ("soft link", "is a link to another place"),
        ("link to a group elsewhere", "is a link to another place"),
        ("virtual", "lies in other files"),
        ("external storage", "lies in other files"),
        ("references", "objects and references are not"),
        ("compound", "objects and references are not"),
        ("opaque", "objects and references are not"),
        ("numbers of variable length", "objects and references are not"),
        ("huge chunk", "claims chunks of 2147483648 bytes"),
        ("nothing", "holds nothing"),
        ("loop", "has no end"),
    ],
)
def test_hostile_files_are_refused(tmp_path, kind, message):
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    path = hostile(tmp_path / "a.hdf5", kind)
    with pytest.raises(Damaged, match=message):
        read(Hdf5(path))


def test_a_huge_claim_without_storage_is_not_read(tmp_path):
    path = write_file(tmp_path / "a.hdf5", 4)
    with h5py.File(path, "a") as file:
        file.create_dataset("x", (4, 1 << 30), "f8", chunks=(1, 1 << 20))
    reader = Hdf5(path)
    with pytest.raises(Damaged, match="claims 34359738368 bytes"):
        read(reader)
    assert path.stat().st_size < 1 << 20


def test_the_layout_is_not_looked_for_through_links(tmp_path):
    write_demos(tmp_path / "other.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["data"] = h5py.ExternalLink("other.hdf5", "/data")
    with pytest.raises(UserError, match="no layout known here"):
        Hdf5(tmp_path / "a.hdf5")
    with pytest.raises(Damaged, match="is a link to another place"):
        read(Hdf5(tmp_path / "a.hdf5", layout="demos"))


def test_steps_must_be_plausible(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("action", (1 << 40, 2), "f8", chunks=(1024, 2))
    with pytest.raises(Damaged, match="does not count steps"):
        read(Hdf5(tmp_path))


def test_a_column_of_another_length(tmp_path):
    path = write_file(tmp_path / "a.hdf5", 4)
    with h5py.File(path, "a") as file:
        file["observations/late"] = np.zeros((5, 3))
    reader = Hdf5(path)
    ((episode, columns, _),) = read(reader)
    assert "observations/late" not in columns and episode.facts["left_out"] == {"observations/late": [5, 3]}
    reader.wanted = frozenset({"observations/late"})
    with pytest.raises(Damaged, match=r"observations/late has shape \(5, 3\); the episode has 4 steps"):
        read(reader)


def test_an_episode_without_steps_is_handed_on_empty(tmp_path):
    ((episode, columns, _),) = read(Hdf5(_empty(tmp_path / "a.hdf5")))
    assert episode.steps == 0 and columns["action"].shape == (0, 14)


def _empty(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["action"] = np.zeros((0, 14))
    return path


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9])
def test_a_cut_file_is_damaged(tmp_path, keep):
    path = write_demos(tmp_path / "a.hdf5")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(Damaged, match="does not read as HDF5"):
        read(Hdf5(path))


def test_a_flipped_chunk_is_damaged(tmp_path):
    path = write_demos(tmp_path / "a.hdf5")
    with h5py.File(path) as file:
        place = file["data/demo_2/obs/agentview_rgb"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[place.byte_offset + 4 : place.byte_offset + place.size] = bytes(place.size - 4)
    path.write_bytes(bytes(data))
    with pytest.raises(Damaged, match="data/demo_2/obs/agentview_rgb does not read"):
        read(Hdf5(path))


def test_altered_bytes_end_in_an_error_of_ours_or_in_nothing(tmp_path):
    path = write_demos(tmp_path / "a.hdf5")
    rng, whole, refused = np.random.default_rng(7), path.read_bytes(), 0
    reader = Hdf5(path, layout="demos", texts={"language": "/data@problem_info#language_instruction"})
    for _ in range(60):
        altered = bytearray(whole)
        for place in rng.integers(8000, size=3):  # where the structure lies
            altered[place] = int(rng.integers(256))
        path.write_bytes(bytes(altered))
        try:
            read(reader)
        except Damaged:
            refused += 1
    assert refused > 10


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no file like"):
        Hdf5(tmp_path)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["things"] = np.zeros(3)
    with pytest.raises(UserError, match="no layout known here; give `layout`"):
        Hdf5(tmp_path)
    with pytest.raises(UnknownName, match="demos, file, folder"):
        Hdf5(tmp_path, layout="robomimic")
    with pytest.raises(UnknownName, match="entry of an HDF5 layout 'step'"):
        Hdf5(tmp_path, step="things")
    with pytest.raises(Damaged, match=r"has no 'action': at 'action' there is \['things'\]"):
        read(Hdf5(tmp_path, layout="file"))
    assert [e.steps for e, _, _ in read(Hdf5(tmp_path, steps="things"))] == [3]


def test_a_file_of_many_episodes_has_work_for_every_worker(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for number in range(200):
            file[f"data/demo_{number}/actions"] = np.full((2, 7), number, np.float32)
    reader = Hdf5(tmp_path / "a.hdf5")
    found = [[episode.id for episode in reader.episodes(part)] for part in reader.parts()]
    assert len(found) == 50 and {len(ids) for ids in found} == {4}
    assert [name for ids in found for name in ids] == [f"a-demo_{number}" for number in range(200)]
    with pytest.raises(UnknownName, match="a.hdf5#0, a.hdf5#12"):
        next(reader.episodes("a.hdf5"))


def test_the_episodes_after_a_bad_one_are_read(tmp_path):
    path = write_demos(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_2/link"] = h5py.ExternalLink("other.hdf5", "/")
    reader = Hdf5(path)
    first, second, third = (episode for part in reader.parts() for episode in reader.episodes(part))
    assert isinstance(second, Unreadable) and second.id == "a-demo_2" and "is a link" in second.detail
    assert (first.id, third.id) == ("a-demo_1", "a-demo_10")


CARD = {
    "name": "insertion",
    "title": "Insertion",
    "homepage": "https://example.org",
    "licence": "MIT",
    "citation": "none",
    "facts": ["this test"],
    "format": "hdf5",
    "source": {"name": "insertion"},
    "embodiment": "aloha",
    "rate_hz": 50,
    "supervision": "actions",
    "cameras": {
        "third_person": {"from": "observations/images/cam_high"},
        "wrist_right": {"from": "observations/images/cam_left_wrist"},
    },
    "state": {},
    "action": {},
    "instruction": {"text": "insert the peg"},
}
for kind, column in (("state", "observations/qpos"), ("action", "action")):
    for side, start in (("left", 0), ("right", 7)):
        CARD[kind][f"{side}_arm"] = {"from": column, "slice": [start, start + 6]}
        CARD[kind][f"{side}_gripper"] = {"from": column, "index": start + 6, "gripper": {"open": 1, "closed": 0, "clip": True}}


@pytest.mark.parametrize("compressed", [False, True])
def test_conversion_end_to_end(tmp_path, compressed):
    (tmp_path / "in").mkdir()
    for number in range(4):
        write_file(tmp_path / "in" / f"episode_{number}.hdf5", 5 + number, compressed)
    bad = tmp_path / "in" / "episode_1.hdf5"
    bad.write_bytes(bad.read_bytes()[:3000])
    report = convert(partial(Hdf5, tmp_path / "in"), Card.from_json(CARD), tmp_path / "out", Settings(workers=0, max_bad=0.5))
    assert report.episodes == 3 and dict(report.bad) == {"damaged": 1}
    dataset = Dataset.open(tmp_path / "out")
    for index, number in enumerate((0, 2, 3)):
        episode = dataset.read(index)
        with h5py.File(tmp_path / "in" / f"episode_{number}.hdf5") as file:
            want = file["action"][()]
        arms = [*range(6), *range(7, 13)]
        assert (episode.action[:, arms] == want[:, arms]).all() and episode.steps == 5 + number
        reds = [simplejpeg.decode_jpeg(data)[..., 0].mean() for data in episode.frames["third_person"].jpeg]
        assert np.abs(np.array(reds) - [20 + 30 * step for step in range(episode.steps)]).max() < 4


@pytest.mark.parametrize("first", ["empty", "ragged", "cut"])
def test_an_odd_first_file_speaks_for_no_other(tmp_path, first):
    """A recording that was begun and not made has no pictures yet: its cameras were columns, and a card that fits was refused."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_file(tmp_path / "in" / f"episode_{number}.hdf5")
    path = tmp_path / "in/episode_0.hdf5"
    with h5py.File(path, "r+") as file:
        lengths = {"empty": 0, "ragged": 4, "cut": 5}
        images = [f"observations/images/{camera}" for camera in ("cam_high", "cam_left_wrist")]
        for name in ("observations/qpos", *(["action", *images] if first == "empty" else [])):
            rows = file[name][: lengths[first]]
            del file[name]
            file[name] = rows
    if first == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    report = convert(partial(Hdf5, tmp_path / "in"), Card.from_json(CARD), tmp_path / "out", Settings(workers=0, max_bad=0.5))
    assert report.episodes == 2 and Dataset.open(tmp_path / "out").steps == 10
    if first == "empty":
        assert not report.bad and report.dropped == {"episodes: shorter than 1 steps": 1}
    else:
        assert report.bad == {"damaged": 1}


def test_what_was_not_measured_or_is_oddly_written_is_no_reason_to_leave_an_episode_out(tmp_path):
    """Attributes are facts for people; those that JSON has not, every episode was refused for."""
    (tmp_path / "in").mkdir()
    with h5py.File(write_file(tmp_path / "in/episode_0.hdf5"), "r+") as file:
        file.attrs["score"], file.attrs["length_m"], file.attrs["operator"] = np.nan, np.float32(2), "José".encode("latin-1")
    report = convert(partial(Hdf5, tmp_path / "in"), Card.from_json(CARD), tmp_path / "out", Settings(workers=0))
    assert report.episodes == 1 and not report.bad
    facts = Dataset.open(tmp_path / "out").read(0).info
    assert (facts["score"], facts["length_m"], facts["operator"], facts["sim"]) == (None, 2.0, "Jos?", False)


def test_names_are_unique_and_plain(tmp_path):
    long = "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet_and_put_the_black_bowl_on_top_of_it"
    for name in (f"{long}_demo", f"{long}_demp", "a b", "a.b"):
        write_demos(tmp_path / f"{name}.hdf5", (1, 1), names=("demo_0", "demo_1"))
    names = [e.id for e, _, _ in read(Hdf5(tmp_path))]
    assert len(set(names)) == 8 and all(
        len(name) <= 80 and set(name) < set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for name in names
    )
    assert names == [e.id for e, _, _ in read(Hdf5(tmp_path))]
