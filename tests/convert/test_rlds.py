"""RLDS: what tensorflow-datasets wrote is read exactly, without TensorFlow, and what is damaged is named."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.convert.tfrecord_write import example_bytes, record_bytes
from vla.cli import main
from vla.convert.raw import Encoded, Pixels, RawEpisode, Unreadable
from vla.convert.rlds import Rlds
from vla.convert.store import Store
from vla.convert.tfrecord import CHUNK_BYTES, Broken, parse_example, records
from vla.data.shard import Dataset, verify
from vla.errors import Damaged, UserError

GOLDEN = Path(__file__).parent / "golden" / "rlds"
"""Written by `rlds_write.py OUT 3 4 16 2` with tensorflow-datasets 4.9.10."""
FOLDER = GOLDEN / "mini" / "1.0.0"
NEEDS_TFDS = pytest.mark.skipif(importlib.util.find_spec("tensorflow_datasets") is None, reason="needs the extra tfds")
FIRST = "mini-train.tfrecord-00000-of-00002"


def number_of(episode: RawEpisode) -> int:
    return int(Path(episode.texts["episode_metadata/file_path"][0]).stem)


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "mini"))


def everything(reader: Rlds) -> list[RawEpisode]:
    return [episode for part in reader.parts() for episode in reader.episodes(part)]


def test_what_tfds_wrote_is_read_exactly():
    expected = np.load(GOLDEN / "expected.npz")
    episodes = everything(Rlds(FOLDER))
    assert [episode.id for episode in episodes][:1] == ["train-00000-000000"] and len({e.id for e in episodes}) == 3
    assert sorted(map(number_of, episodes)) == [0, 1, 2]
    for episode in episodes:
        n = number_of(episode)
        assert episode.steps == 4 + n % 3
        for name, key in (("observation/state", "state"), ("action/move", "move"), ("stamp", "stamp")):
            np.testing.assert_array_equal(episode.columns[name], expected[f"{n}/{key}"])
        assert episode.columns["observation/pose"].shape == (episode.steps, 4, 4)
        assert episode.columns["action/open_gripper"].tolist() == [bool(i % 2) for i in range(episode.steps)]
        assert episode.columns["is_first"].tolist() == [True] + [False] * (episode.steps - 1)
        assert episode.columns["is_last"].tolist() == episode.columns["is_terminal"].tolist() == [False] * (episode.steps - 1) + [True]
        assert episode.texts["language_instruction"] == [f"put block {n} into the bowl, später"] * episode.steps
        assert episode.columns["language_embedding"].dtype == np.float32 and episode.columns["phase"].dtype == np.int64
        assert episode.facts["episode_metadata/success"] is (n % 2 == 0) and len(episode.facts["episode_metadata/target"]) == 3


def test_pictures_stay_as_they_are_stored():
    import io

    from PIL import Image

    expected = np.load(GOLDEN / "expected.npz")
    episode = everything(Rlds(FOLDER))[0]
    image, wrist, tensor = (episode.pictures[f"observation/{name}"] for name in ("image", "wrist", "tensor"))
    assert isinstance(image, Encoded) and image.data[0][:2] == b"\xff\xd8" and image.step.tolist() == list(range(episode.steps))
    for data, want in zip(wrist.data, expected[f"{number_of(episode)}/wrist"], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), want)
    assert isinstance(tensor, Pixels) and tensor.data[0].shape == (8, 8, 3) and tensor.data[0].dtype == np.uint8
    assert isinstance(episode.pictures["observation/zlib"], Pixels) and isinstance(episode.pictures["observation/bytes"], Pixels)


def test_sizes_features_and_what_is_wanted():
    reader = Rlds(Store.of(FOLDER))
    kinds = {feature.name: (feature.kind, feature.shape) for feature in reader.features()}
    assert kinds["observation/image"] == ("pictures", (16, 16, 3)) and kinds["action/move"] == ("column", (3,))
    assert kinds["language_instruction"] == ("text", ()) and kinds["observation/history"] == ("column", (None, 2))
    size = reader.size()
    assert size.episodes == 3 and size.bytes == sum(path.stat().st_size for path in FOLDER.glob("*tfrecord*"))
    reader.wanted = frozenset({"observation/state"})
    episode = everything(reader)[0]
    assert set(episode.columns) == {"observation/state", "is_first"} and not episode.pictures
    assert episode.facts["file"] == FIRST
    reader.wanted = frozenset({"observation/history"})
    first = everything(reader)[0]
    assert isinstance(first, Unreadable) and "0 to 1 rows at different steps" in first.detail


@pytest.mark.slow
@NEEDS_TFDS
def test_tfds_itself_reads_the_same():
    from vla.convert.rlds_tfds import TfdsRlds

    ours, theirs = everything(Rlds(FOLDER)), everything(TfdsRlds(FOLDER))
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert (a.id, a.steps, a.facts, a.texts) == (b.id, b.steps, b.facts, b.texts)
        assert a.columns.keys() == b.columns.keys() and a.pictures.keys() == b.pictures.keys()
        for name in a.columns:
            assert a.columns[name].dtype == b.columns[name].dtype
            np.testing.assert_array_equal(a.columns[name], b.columns[name])
        for name in a.pictures:
            assert type(a.pictures[name]) is type(b.pictures[name])
            assert all(np.array_equal(x, y) for x, y in zip(a.pictures[name].data, b.pictures[name].data, strict=True))
    assert not {"tensorflow", "tensorflow_datasets"} & set(sys.modules)


@pytest.mark.slow
@NEEDS_TFDS
def test_the_installed_tfds_writes_what_is_frozen_here(tmp_path):
    script = Path(__file__).parent / "rlds_write.py"
    subprocess.run([sys.executable, str(script), str(tmp_path), "3", "4", "16", "2"], check=True, capture_output=True)
    assert json.loads((tmp_path / "mini" / "1.0.0" / "features.json").read_text()) == json.loads((FOLDER / "features.json").read_text())
    for a, b in zip(everything(Rlds(tmp_path / "mini" / "1.0.0")), everything(Rlds(FOLDER)), strict=True):
        assert a.id == b.id and a.texts == b.texts
        np.testing.assert_array_equal(a.columns["observation/state"], b.columns["observation/state"])


CARD = {
    "name": "mini",
    "title": "Mini",
    "homepage": "https://example.org",
    "licence": "CC0-1.0",
    "citation": "none",
    "facts": ["rlds_write.py"],
    "format": "rlds",
    "source": {"name": "mini", "version": "1.0.0"},
    "embodiment": "mini_arm",
    "rate_hz": 10,
    "supervision": "actions",
    "cameras": {"third_person": {"from": "observation/image"}, "wrist": {"from": "observation/wrist"}},
    "state": {"hand": {"from": "observation/pose", "index": [3, 7, 11]}},
    "action": {"hand": {"from": "action/move"}, "gripper": {"from": "action/open_gripper", "gripper": {"open": 1, "closed": 0}}},
    "instruction": {"from": "language_instruction"},
    "time": {"from": "stamp", "unit": "ns"},
    "drop": {"steps": [{"column": "is_last", "equals": True, "why": "RLDS gives it no action"}]},
}
ROBOT = """
from fractions import Fraction
from vla.embodiment import Embodiment, Field, Space
COMMAND = Space((Field("hand", 3, "m", "step"), Field("gripper", 1, "open01")))
STATE = Space((Field("hand", 3, "m"),))
EMBODIMENT = Embodiment("mini_arm", ("third_person", "wrist"), STATE, COMMAND, COMMAND, Fraction(10), 4, None)
"""


def convert(tmp_path: Path, source: str, *words: str) -> int:
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(CARD))
    (tmp_path / "robot.py").write_text(ROBOT)
    given = ["--card", str(tmp_path / "card.yaml"), "--embodiment", str(tmp_path / "robot.py"), "--out", str(tmp_path / "out")]
    return main(["convert", "rlds", source, *given, "--workers", "0", *words])


def test_from_tfrecords_to_shards(tmp_path, capsys):
    expected = np.load(GOLDEN / "expected.npz")
    assert convert(tmp_path, str(FOLDER)) == 0
    assert "3 steps: RLDS gives it no action" in capsys.readouterr().out
    assert not verify(tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert len(dataset) == 3 and dataset.cameras == ("third_person", "wrist")
    for index in range(3):
        episode = dataset.read(index)
        n = int(Path(episode.info["episode_metadata/file_path"]).stem)
        np.testing.assert_array_equal(episode.action[:, :3], expected[f"{n}/move"][:-1].astype(np.float64))
        assert episode.action[:, 3].tolist() == [i % 2 for i in range(3 + n % 3)]
        np.testing.assert_allclose(episode.time_s, np.arange(3 + n % 3) / 10)
        assert episode.instructions[0].text == f"put block {n} into the bowl, später" and episode.rate_hz == Fraction(10)


def test_from_a_url_nothing_stays_behind(tmp_path):
    assert convert(tmp_path, f"file://{FOLDER}", "--cache", str(tmp_path / "cache")) == 0
    assert len(Dataset.open(tmp_path / "out")) == 3
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    shutil.rmtree(tmp_path / "out")
    assert convert(tmp_path, f"file://{FOLDER}") == 0
    assert not (tmp_path / "out.cache").exists()


def test_folders_that_are_none(tmp_path, copy):
    with pytest.raises(UserError, match="there is one in mini/1.0.0: give that folder"):
        Rlds(GOLDEN).features()
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        Rlds(copy, splits=["test"]).parts()
    with pytest.raises(UserError, match="no nested `frames`; they have episode_metadata, steps"):
        Rlds(copy, steps="frames").features()
    (copy / FIRST).unlink()
    with pytest.raises(UserError, match="1 of its 2 files are there.*partial"):
        Rlds(copy).parts()
    assert len(everything(Rlds(copy, partial=True))) in (1, 2)
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "array_record"}))
    with pytest.raises(UserError, match="--reader tfds"):
        Rlds(copy).parts()
    text = (copy / "features.json").read_text()
    for size, message in (("999999999999", "claims more than"), ("many", "is not as tensorflow-datasets writes it")):
        (copy / "features.json").write_text(text.replace('"8"', f'"{size}"'))
        with pytest.raises(Damaged, match=message):
            Rlds(copy).features()
    (copy / "features.json").write_text("[" * 100_000)
    with pytest.raises(Damaged, match="features.json is no JSON"):
        Rlds(copy).features()


def test_every_episode_that_a_cut_file_has_lost_is_named(copy):
    whole, ids = (copy / FIRST).read_bytes(), [episode.id for episode in Rlds(copy).episodes(FIRST)]
    counts = json.loads((copy / "dataset_info.json").read_text())["splits"][0]["shardLengths"]
    boundaries = [0]
    while boundaries[-1] < len(whole):
        boundaries.append(boundaries[-1] + 16 + int.from_bytes(whole[boundaries[-1] : boundaries[-1] + 8], "little"))
    assert len(boundaries) == int(counts[0]) + 1
    for cut in sorted({*np.linspace(0, len(whole) - 1, 60).astype(int).tolist(), *boundaries[:-1]}):
        (copy / FIRST).write_bytes(whole[:cut])
        found = list(Rlds(copy).episodes(FIRST))
        kept = sum(end <= cut for end in boundaries[1:])
        assert [isinstance(episode, Unreadable) for episode in found] == [False] * kept + [True] * (int(counts[0]) - kept)
        assert FIRST in found[-1].detail and ids == [episode.id for episode in found]


def test_more_records_than_were_declared_are_no_whole_file(copy):
    data = (copy / FIRST).read_bytes()
    (copy / FIRST).write_bytes(data + data)
    with pytest.raises(Damaged, match="dataset_info.json says"):
        list(Rlds(copy).episodes(FIRST))


def test_lost_episodes_count_against_the_rate(tmp_path, copy, capsys):
    (copy / FIRST).write_bytes((copy / FIRST).read_bytes()[:-1])
    assert convert(tmp_path, str(copy), "--json") == 0
    assert json.loads(capsys.readouterr().out)["bad"] == {"damaged": 1}
    (copy / FIRST).write_bytes(b"")
    shutil.rmtree(tmp_path / "out")
    assert convert(tmp_path, str(copy), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bad"]["damaged"] + found["episodes"] == 3


def test_every_flipped_bit_is_noticed(copy):
    whole = (copy / FIRST).read_bytes()
    good = [episode.id for episode in Rlds(copy).episodes(FIRST)]
    for place in np.random.default_rng(0).integers(0, len(whole), 150).tolist():
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        (copy / FIRST).write_bytes(broken)
        found = list(Rlds(copy).episodes(FIRST))
        bad = [episode for episode in found if isinstance(episode, Unreadable)]
        assert bad and [episode.id for episode in found] == good
        assert all("fails its checksum" in episode.detail for episode in bad)


def test_a_giant_length_allocates_nothing(tmp_path):
    head = (1 << 62).to_bytes(8, "little")
    framed = record_bytes(b"")
    path = tmp_path / "x.tfrecord"
    path.write_bytes(head + framed[8:])
    with pytest.raises(Damaged, match="the length of record 0 .byte 0. fails its checksum"):
        list(records(path))
    from google_crc32c import value

    from vla.convert.tfrecord import _masked

    path.write_bytes(head + _masked(value(head)).to_bytes(4, "little") + bytes(100))
    with pytest.raises(Damaged, match=f"claims {1 << 62} bytes; 96 are left"):
        list(records(path))


def test_records_come_back(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(record_bytes(b"a") + record_bytes(b"")[:-1] + b"\0" + record_bytes(b"c" * 1000))
    first, second, third = records(path)
    assert first == b"a" and third == b"c" * 1000 and isinstance(second, Broken) and "record 1 (byte 17)" in second.detail


FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(lambda row: np.array(row, np.float32))
INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8).map(lambda row: np.array(row, np.int64))
STRINGS = st.lists(st.binary(max_size=300), max_size=4)


@given(st.dictionaries(st.text(max_size=8), st.one_of(FLOATS, INTEGERS, STRINGS), max_size=5))
@settings(max_examples=60, deadline=None)
def test_examples_come_back(values):
    found = parse_example(example_bytes(values))
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert (found[name] == value) if isinstance(value, list) else np.array_equal(found[name], value)
        assert isinstance(value, list) or not len(value) or found[name].dtype == value.dtype


def test_integers_take_the_room_of_their_own_type():
    values = np.random.default_rng(0).integers(0, 256, 600_000)
    data = example_bytes({"a": values})
    tracemalloc.start()
    found = parse_example(data, {"a": np.dtype(np.uint8)})["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.dtype == np.uint8 and np.array_equal(found, values)
    assert peak < 3 * len(values) + 60 * CHUNK_BYTES, peak
    with pytest.raises(Damaged, match="no uint8"):
        parse_example(example_bytes({"a": np.array([1, 256])}), {"a": np.dtype(np.uint8)})
    with pytest.raises(Damaged, match="no uint8"):
        parse_example(example_bytes({"a": np.array([-1])}), {"a": np.dtype(np.uint8)})


@given(st.binary(max_size=120))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_example_are_refused_or_understood(data):
    try:
        found = parse_example(data)
    except Damaged:
        return
    assert all(isinstance(name, str) for name in found)


def test_hostile_sizes_inside_an_example():
    entry = b"\x0a\x01a\x12"  # key "a", then the feature with a length that is not there
    for body, message in (
        (entry + b"\xff\xff\xff\xff\x7f", "claims"),
        (entry + b"\xff" * 11, "more than 10 bytes"),
        (b"\x0b\x00", "of kind 3"),
    ):
        inner = b"\x0a" + bytes([len(body)]) + body
        with pytest.raises(Damaged, match=message):
            parse_example(b"\x0a" + bytes([len(inner)]) + inner)


def tiny(tmp_path: Path, features: dict, values: dict) -> Rlds:
    """A one-record dataset with hand-made features and content."""

    def node(spec):
        name = "tensorflow_datasets.core.features"
        return {"pythonClassName": name, **spec}

    steps = {name: node(spec) for name, spec in features.items()}
    nested = {"sequence": {"feature": node({"featuresDict": {"features": steps}}), "length": "-1"}}
    root = node({"featuresDict": {"features": {"steps": node(nested)}}})
    (tmp_path / "features.json").write_text(json.dumps(root))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "t", "splits": [{"name": "train", "shardLengths": ["1"]}]}))
    (tmp_path / "t-train.tfrecord-00000-of-00001").write_bytes(record_bytes(example_bytes(values)))
    return Rlds(tmp_path)


def tensor(shape: list, dtype: str = "float32", encoding: str = "none") -> dict:
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": encoding}}


@pytest.mark.parametrize(
    ("features", "values", "message"),
    [
        ({"a": tensor([3]), "t": {"text": {}}}, {"steps/a": np.zeros(7, np.float32), "steps/t": [b"x"] * 2}, "holds 7 numbers for 2 steps"),
        ({"a": tensor([1]), "t": {"text": {}}}, {"steps/a": np.zeros(3, np.float32), "steps/t": [b"x"]}, "holds 1 values for 3 steps"),
        ({"a": tensor([1]), "b": tensor([1])}, {"steps/a": np.zeros(3, np.float32), "steps/b": [b"x"] * 3}, "holds strings"),
        ({"a": tensor([1]), "b": tensor([1])}, {"steps/a": np.zeros(3, np.float32)}, "'b' holds 0 numbers for 3 steps"),
        ({"a": tensor([8, 8, 3], "uint8", "zlib")}, {"steps/a": [zlib.compress(bytes(10**7))]}, "holds 193 bytes; uint8"),
        ({"a": tensor([8, 8, 3], "uint8", "zlib")}, {"steps/a": [b"no"]}, "does not decompress"),
        ({"a": tensor([2], "float64", "bytes")}, {"steps/a": [b"123"]}, "holds 3 bytes"),
    ],
    ids=["width", "text-count", "kind", "missing", "bomb", "zlib", "bytes"],
)
def test_records_that_are_not_what_the_features_say(tmp_path, features, values, message):
    (found,) = everything(tiny(tmp_path, features, values))
    assert isinstance(found, Unreadable) and message in found.detail


def test_bytes_that_are_no_text_survive(tmp_path):
    packed = zlib.compress(np.arange(3, dtype="<f4").tobytes())
    (episode,) = everything(tiny(tmp_path, {"t": {"text": {}}}, {"steps/t": [packed, b"\xff\x00"]}))
    assert [text.encode("utf-8", "surrogateescape") for text in episode.texts["t"]] == [packed, b"\xff\x00"]


def test_a_folder_that_says_how_many_files_and_not_how_many_records(tmp_path):
    reader = tiny(tmp_path, {"a": tensor([3])}, {"steps/a": np.zeros(6, np.float32)})
    (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "t", "splits": [{"name": "train", "numShards": "1"}]}))
    assert reader.size().episodes is None and [episode.steps for episode in everything(reader)] == [2]


def test_a_file_name_that_leads_elsewhere_is_no_file_of_the_dataset(tmp_path, copy):
    info = json.loads((copy / "dataset_info.json").read_text())
    shutil.copy(copy / FIRST, tmp_path / "secret")
    for template in ("../secret", str(tmp_path / "secret")):
        info["splits"][0]["filepathTemplate"] = template
        (copy / "dataset_info.json").write_text(json.dumps(info))
        with pytest.raises(UserError, match="none of its 2 files is there"):
            Rlds(copy).parts()
    info["splits"][0]["filepathTemplate"] = "{DATASET.__class__}"
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="path template"):
        Rlds(copy).parts()


def test_an_episode_without_steps_is_one_of_none(tmp_path):
    (episode,) = everything(tiny(tmp_path, {"a": tensor([3])}, {"steps/a": np.zeros(0, np.float32)}))
    assert episode.steps == 0
