"""MCAP recordings written by mcap's own ROS 2 writer: what each tick sees, and every way in which a recording may be broken."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mcap", reason="pip install 'vla[mcap]'")
mcap_ros2 = pytest.importorskip("mcap_ros2.writer", reason="pip install 'vla[mcap]'")

from mcap.writer import CompressionType, Writer  # noqa: E402

from vla.convert.mcap import Mcap  # noqa: E402
from vla.convert.raw import Encoded, Pixels, Unreadable  # noqa: E402
from vla.errors import Damaged, UnknownName, UserError  # noqa: E402

HEADER = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec"""
JOINTS = "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort" + HEADER
TWIST = """geometry_msgs/Vector3 linear
geometry_msgs/Vector3 angular
================================================================================
MSG: geometry_msgs/Vector3
float64 x
float64 y
float64 z"""
COMPRESSED = "std_msgs/Header header\nstring format\nuint8[] data" + HEADER
IMAGE = "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\nuint8[] data" + HEADER
RAW = {"encoding": "rgb8", "is_bigendian": 0}
START_NS = 1_700_000_000_000_000_000
MS = 1_000_000


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def header(time_ns: int) -> dict:
    return {"stamp": {"sec": time_ns // 10**9, "nanosec": time_ns % 10**9}, "frame_id": "base"}


def write(path: Path, seconds: float = 1.0, compression: CompressionType = CompressionType.ZSTD, change=None) -> Path:
    """Joints at 100 Hz, commands at 25 Hz, a compressed camera at 30 Hz, a raw one at 10 Hz, and one text after 50 ms.

    Numbers are the milliseconds since the start. `change(topic, ms, message)` returns a message, None to leave it out.
    """
    rows: list[tuple[int, str, dict]] = []
    for topic, rate_hz in (("/joints", 100), ("/cmd", 25), ("/cam/compressed", 30), ("/cam/raw", 10)):
        rows += [(round(1000 * i / rate_hz), topic, {}) for i in range(round(seconds * rate_hz))]
    rows.append((50, "/instruction", {}))
    with path.open("wb") as file:
        writer = mcap_ros2.Writer(file, chunk_size=20_000, compression=compression)
        kinds = {
            "/joints": writer.register_msgdef("sensor_msgs/msg/JointState", JOINTS),
            "/cmd": writer.register_msgdef("geometry_msgs/msg/Twist", TWIST),
            "/cam/compressed": writer.register_msgdef("sensor_msgs/msg/CompressedImage", COMPRESSED),
            "/cam/raw": writer.register_msgdef("sensor_msgs/msg/Image", IMAGE),
            "/instruction": writer.register_msgdef("std_msgs/msg/String", "string data"),
        }
        for ms, topic, _ in sorted(rows, key=lambda row: row[:2]):
            stamp = header(START_NS + ms * MS)
            vector = {"x": float(ms), "y": 0.0, "z": -1.0}
            pixels = np.full((4, 6, 3), (ms % 256, 0, 7), np.uint8)
            message = {
                "/joints": {"header": stamp, "name": ["a", "b"], "position": [ms, -ms], "velocity": [0, 0], "effort": []},
                "/cmd": {"linear": vector, "angular": vector},
                "/cam/compressed": {"header": stamp, "format": "jpeg", "data": jpeg(ms * 255 // 1000)},
                "/cam/raw": {
                    "header": stamp,
                    "height": 4,
                    "width": 6,
                    "encoding": "rgb8",
                    "is_bigendian": 0,
                    "step": 18,
                    "data": pixels.tobytes(),
                },
                "/instruction": {"data": "pick the cube"},
            }[topic]
            message = change(topic, ms, message) if change else message
            if message is not None:
                time_ns = START_NS + message.pop("at", ms) * MS
                writer.write_message(topic, kinds[topic], message, log_time=time_ns, publish_time=time_ns)
        writer.finish()
    return path


def read(source: Path, wanted: set[str] | None = None, **options) -> list:
    reader = Mcap(source, **{"rate_hz": 20, **options})
    reader.wanted = frozenset(wanted) if wanted is not None else None
    found = [episode for part in reader.parts() for episode in reader.episodes(part)]
    for episode in found:
        if isinstance(episode, Unreadable):
            raise Damaged(episode.detail)
    return found


@pytest.mark.parametrize("compression", list(CompressionType))
def test_a_recording(tmp_path, compression):
    path = write(tmp_path / "run 1.mcap", compression=compression)
    features = {f.name: (f.kind, f.shape) for f in Mcap(path, 20).features()}
    assert features["joints/position"] == ("column", (2,)) and features["cmd/linear/x"] == ("column", ())
    assert features["cam/compressed"][0] == "pictures" and features["cam/raw"] == ("pictures", (4, 6, 3))
    assert features["instruction/data"][0] == "text" and not any("header" in name or name == "joints/effort" for name in features)
    (episode,) = read(path)
    # Ticks from the last topic to begin (the text, 50 ms) every 50 ms, to the first to end (the slow camera, 900 ms).
    ticks = 50 + 50 * np.arange(18)
    assert episode.steps == 18 and np.allclose(episode.time_s, np.arange(18) / 20)
    assert (episode.columns["joints/position"] == np.stack([ticks // 10 * 10, -(ticks // 10 * 10)], -1)).all()
    assert (episode.columns["cmd/linear/x"] == ticks // 40 * 40).all()
    assert episode.texts == {"instruction/data": ["pick the cube"]}
    assert episode.facts["orders"] == {
        "joints/position": ["a", "b"],
        "joints/velocity": ["a", "b"],
    }
    raw, encoded = episode.pictures["cam/raw"], episode.pictures["cam/compressed"]
    assert isinstance(raw, Pixels) and isinstance(encoded, Encoded)
    # The slow camera's picture of 100 k ms is first the latest at the tick of 100 k ms; at the first tick it is that of 0 ms.
    assert raw.step.tolist() == [0, *range(1, 18, 2)]
    assert [int(image[0, 0, 0]) for image in raw.data] == [0, *(100 * k % 256 for k in range(1, 10))] and raw.data[0].shape == (4, 6, 3)
    seen = [round(1000 * (tick * 30 // 1000) / 30) for tick in ticks]
    assert encoded.step.tolist() == list(range(18)) and list(encoded.data) == [jpeg(ms * 255 // 1000) for ms in seen]
    assert set(episode.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


def write_two_cameras(path: Path, camera_hz: int, second_after_ms: int, jitter_ms: int = 0, seconds: int = 2) -> Path:
    """Joints at 100 Hz and two cameras, the second so much later; a picture says its camera's count."""
    rng = np.random.default_rng(0)
    rows = [(10 * i, "/joints", i) for i in range(100 * seconds)]
    for topic, phase_ms in (("/a", 0), ("/b", second_after_ms)):
        late_ms = rng.integers(0, jitter_ms + 1, camera_hz * seconds)
        rows += [(round(1000 * i / camera_hz) + phase_ms + int(late_ms[i]), topic, i) for i in range(camera_hz * seconds)]
    with path.open("wb") as file:
        writer = mcap_ros2.Writer(file)
        kinds = {topic: writer.register_msgdef("sensor_msgs/msg/CompressedImage", COMPRESSED) for topic in ("/a", "/b")}
        kinds["/joints"] = writer.register_msgdef("sensor_msgs/msg/JointState", JOINTS)
        for ms, topic, number in sorted(rows):
            time_ns = START_NS + ms * MS
            message = {"header": header(time_ns), "format": "jpeg", "data": jpeg(4 * (number % 60))}
            if topic == "/joints":
                message = {"header": header(time_ns), "name": ["a"], "position": [ms], "velocity": [0], "effort": []}
            writer.write_message(topic, kinds[topic], message, log_time=time_ns, publish_time=time_ns)
        writer.finish()
    return path


@pytest.mark.parametrize(("after_ms", "jitter_ms"), [(0, 0), (5, 0), (5, 6), (17, 4)])
def test_cameras_that_tremble_around_the_ticks_lose_no_picture(tmp_path, after_ms, jitter_ms):
    (episode,) = read(write_two_cameras(tmp_path / "run.mcap", 30, after_ms, jitter_ms), rate_hz=30)
    for camera in ("a", "b"):
        pictures = episode.pictures[camera]
        assert pictures.step.tolist() == list(range(episode.steps)) and episode.steps >= 58
        counts = [int(np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0]) for data in pictures.data]
        assert np.abs(np.diff(counts) - 4).max() <= 3  # each once, as JPEG keeps it


def test_cameras_that_take_turns_are_both_seen_where_the_slower_is(tmp_path):
    """At 15 Hz each, half a period apart: steps at 30 Hz see a new picture of one of them at a time."""
    (episode,) = read(write_two_cameras(tmp_path / "run.mcap", 15, 33), rate_hz=30)
    both = np.intersect1d(episode.pictures["a"].step, episode.pictures["b"].step)
    assert len(both) >= 28 and min(len(episode.pictures[camera].step) for camera in "ab") == len(both)
    assert (np.diff(both[1:]) == 2).all()  # at the first step both are known


def test_only_what_is_wanted_is_synchronised(tmp_path):
    path = write(tmp_path / "a.mcap")
    (episode,) = read(path, {"joints/position", "cam/compressed"})
    assert set(episode.columns) == {"joints/position"} and set(episode.pictures) == {"cam/compressed"} and not episode.texts
    assert episode.steps == 20  # no longer waits for the text, nor ends with the slow camera
    assert [len(e.pictures) for e in read(tmp_path, {"joints/position"})] == [0]


def test_the_messages_own_stamps(tmp_path):
    def late(topic, ms, message):
        return {**message, "at": ms + 30} if topic == "/joints" else message  # received 30 ms after it was measured

    path = write(tmp_path / "a.mcap", change=late)
    wanted = {"joints/position", "cam/compressed"}
    (by_log,), (by_header,) = read(path, wanted), read(path, wanted, clock="header")
    assert by_header.columns["joints/position"][:3, 0].tolist() == [0, 50, 100]
    assert by_log.columns["joints/position"][:3, 0].tolist() == [0, 50, 100] and by_log.facts["start_ns"] == START_NS + 30 * MS
    with pytest.raises(Damaged, match="no header with a stamp"):
        read(path, {"cmd/linear/x"}, clock="header")


def test_a_latched_topic_is_held(tmp_path):
    path = write(tmp_path / "a.mcap", change=lambda topic, ms, message: None if topic == "/cmd" and ms > 100 else message)
    wanted = {"cmd/linear/x", "joints/position"}
    with pytest.raises(Damaged, match="'cmd/linear/x' ends 0.9 s before 'joints/position'; if it is latched, say so"):
        read(path, wanted, max_age_s=0.5)
    (episode,) = read(path, wanted, max_age_s=0.5, latched=["/cmd"])
    assert episode.steps == 20 and episode.columns["cmd/linear/x"][-1] == 80


def test_a_gap_is_named(tmp_path):
    path = write(tmp_path / "a.mcap", change=lambda topic, ms, message: None if topic == "/joints" and 300 <= ms < 700 else message)
    with pytest.raises(Damaged, match="joints/position is 0.3[69] s old at step 13; at most 0.2 s"):
        read(path, {"joints/position"}, max_age_s=0.2)
    assert read(path, {"joints/position"})[0].steps == 20


def test_texts_may_change(tmp_path):
    def change(topic, ms, message):
        return {"data": "first" if topic == "/instruction" else ""} if topic == "/instruction" else message

    path = write(tmp_path / "a.mcap", change=change)
    assert read(path)[0].texts["instruction/data"] == ["first"]


def test_the_order_of_joints_may_not_change(tmp_path):
    def change(topic, ms, message):
        return {**message, "name": ["b", "a"]} if topic == "/joints" and ms > 500 else message

    with pytest.raises(Damaged, match=r"joints/position: the names of its numbers change from \('a', 'b'\) to \('b', 'a'\)"):
        read(write(tmp_path / "a.mcap", change=change))


@pytest.mark.parametrize(
    ("change", "wanted", "error", "message"),
    [
        (lambda t, ms, m: {**m, "position": [1.0]} if t == "/joints" and ms > 500 else m, {"joints/position"}, Damaged, "vary within"),
        (lambda t, ms, m: {**m, "data": b"short"} if t == "/cam/raw" else m, {"cam/raw"}, Damaged, "5 bytes for a picture of 4 x 6 x 3"),
        (lambda t, ms, m: {**m, "height": 1 << 31, "width": 1 << 30} if t == "/cam/raw" else m, {"cam/raw"}, Damaged, "for a picture of"),
        (lambda t, ms, m: None, {"joints/position"}, Damaged, "no topic that runs with the robot"),
        (
            lambda t, ms, m: {**m, "header": header(START_NS - ms * MS)} if t == "/joints" else m,
            {"joints/position"},
            Damaged,
            "time goes back",
        ),
    ],
)
def test_bad_messages_are_named(tmp_path, change, wanted, error, message):
    path = write(tmp_path / "a.mcap", change=change)
    with pytest.raises(error, match=message):
        read(path, wanted, clock="header" if "time goes" in message else "log")


def test_json_messages_and_encodings_that_are_not_read(tmp_path):
    path = tmp_path / "a.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("state", "jsonschema", b"{}")
        state = writer.register_channel("/state", "json", schema)
        camera = writer.register_channel("/camera", "json", schema)
        other = writer.register_channel("/proto", "protobuf", writer.register_schema("x", "protobuf", b""))
        for i in range(10):
            data = json.dumps({"q": [i, 2.5], "mode": "auto", "ok": True}).encode()
            film = json.dumps({"format": "jpeg", "data": base64.b64encode(jpeg(i)).decode()}).encode()
            writer.add_message(camera, START_NS + 50 * MS * i, film, START_NS + 50 * MS * i)
            writer.add_message(state, START_NS + 50 * MS * i, data, START_NS + 50 * MS * i)
            writer.add_message(other, START_NS + 50 * MS * i, b"\x08\x01", START_NS + 50 * MS * i)
        writer.finish()
    (episode,) = read(path)
    assert (episode.columns["state/q"] == np.stack([np.arange(10), np.full(10, 2.5)], -1)).all() and episode.columns["state/ok"].all()
    assert episode.texts == {"state/mode": ["auto"]}
    assert episode.pictures["camera"].data == [jpeg(i) for i in range(10)]
    with pytest.raises(Damaged, match="/proto at .* messages in protobuf of schema protobuf; cdr of ros2msg, and json, are read"):
        read(path, {"proto/x"})


@pytest.mark.parametrize(
    ("values", "kinds"), [([1.5, "n/a"], "text at .* ns, and was column"), (["auto", 3], "column at .* ns, and was text")]
)
def test_a_field_of_json_that_changes_its_kind_is_named(tmp_path, values, kinds):
    with (tmp_path / "a.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("state", "jsonschema", b"{}")
        state = writer.register_channel("/state", "json", schema)
        for i in range(10):
            at_ns = START_NS + 50 * MS * i
            writer.add_message(state, at_ns, json.dumps({"q": i, "v": values[i == 5]}).encode(), at_ns)
        writer.finish()
    with pytest.raises(Damaged, match=f"state/v is {kinds} before"):
        read(tmp_path / "a.mcap")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.6, 0.999])
def test_a_cut_recording_is_damaged(tmp_path, keep):
    path = write(tmp_path / "a.mcap")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(Damaged, match="a.mcap"):
        read(path)


@pytest.mark.parametrize("compression", list(CompressionType))
def test_flipped_bytes_are_found_or_mean_nothing(tmp_path, compression):
    """What no checksum covers (indices, times of chunks) is not used: the recording then reads as it was."""
    path = write(tmp_path / "a.mcap", seconds=0.4, compression=compression)
    (whole,) = read(path)
    data, found = path.read_bytes(), 0
    for place in np.random.default_rng(0).integers(8, len(data), 40).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            (episode,) = read(path)
        except Damaged:
            found += 1
            continue
        assert all((episode.columns[name] == values).all() for name, values in whole.columns.items())
        assert episode.pictures["cam/compressed"].data == whole.pictures["cam/compressed"].data
    assert found > 10


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_chunk_that_unpacks_to_more_than_it_claims_is_refused(tmp_path, monkeypatch, compression):
    path = write(tmp_path / "a.mcap", compression=CompressionType[compression.upper()])
    monkeypatch.setattr("vla.convert.mcap_records.MAX_CHUNK_BYTES", 1000)
    with pytest.raises(Damaged, match="a chunk claims .* bytes unpacked; at most 1000"):
        read(path)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no file like"):
        Mcap(tmp_path, 20)
    write(tmp_path / "a.mcap", seconds=0.2)
    with pytest.raises(UnknownName, match="header, log, publish"):
        Mcap(tmp_path, 20, clock="wall")
    with pytest.raises(UserError, match="0 is no rate of steps"):
        Mcap(tmp_path, 0)
    assert Mcap(tmp_path).features()
    with pytest.raises(UserError, match="Give the reader's option rate_hz"):
        next(Mcap(tmp_path).episodes("a.mcap"))


@pytest.mark.parametrize(("encoding", "first"), [("rgb8", 200), ("bgr8", 7), ("8UC3", 200)])
def test_an_image_that_says_its_order_of_colours_comes_as_rgb(tmp_path, encoding, first):
    """The commonest encoding of ROS drivers is bgr8: red and blue were exchanged, without a word."""
    pixels = np.full((4, 6, 3), (200, 0, 7), np.uint8).tobytes()
    path = write(tmp_path / "a.mcap", 0.5, change=lambda topic, ms, m: {**m, "encoding": encoding, "data": pixels} if "raw" in topic else m)
    (episode,) = read(path)
    assert np.asarray(episode.pictures["cam/raw"].data[0])[0, 0].tolist() == [first, 0, 207 - first]
