from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter

import numpy as np
import pytest
import simplejpeg
import webdataset
import yaml
from PIL import Image

from vla.cli import main
from vla.data.foreign import open_foreign
from vla.data.key_map import KeyMap
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.remote import Cache
from vla.data.statistics import compute_stats
from vla.data.tarscan import members
from vla.errors import Damaged, SchemaError, UnknownName, UserError

from .episodes import ROBOT, jpeg, make_episode

STEPS = {
    "name": "theirs",
    "shards": "theirs/*.tar",
    "embodiment": ROBOT.to_json(),
    "rate_hz": 10,
    "sample": "step",
    "cameras": {"front": "jpg", "wrist": "wrist.jpg"},
    "state": [{"member": "json", "field": "obs.state", "start": 0, "stop": 4}],
    "action": [{"member": "action.npy"}],
    "instruction": {"member": "txt"},
    "episode": {"member": "json", "field": "episode"},
    "step": {"member": "json", "field": "step"},
    "licence": "MIT",
}
CHUNKS = {k: v for k, v in STEPS.items() if k not in ("step", "episode")} | {"sample": "chunk"}


def npy(rows):
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def step_sample(episode, i, key):
    facts = {"episode": episode.id, "step": i, "obs": {"state": [*episode.state[i].tolist(), 99.0]}}
    return {
        "__key__": key,
        "jpg": episode.frames["front"].jpeg[i],
        "wrist.jpg": episode.frames["wrist"].jpeg[i],
        "json": json.dumps(facts).encode(),
        "action.npy": npy(episode.action[i].astype(np.float32)),
        "txt": f"  do {episode.id} {i // 5}\n".encode(),
        "depth.png": b"not read",
    }


def write(path, samples):
    """By the stock package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


@pytest.fixture
def given():
    return [make_episode(f"e{i}", n, i) for i, n in enumerate((12, 7, 1, 9))]


@pytest.fixture
def root(tmp_path, given):
    """Two shards, the third step of which cuts an episode: its rest lies in the second."""
    rows = [(episode, i) for episode in given for i in range(episode.steps)]
    samples = [step_sample(episode, i, f"{n:06d}") for n, (episode, i) in enumerate(rows)]
    write(tmp_path / "theirs" / "000.tar", samples[:15])
    write(tmp_path / "theirs" / "001.tar", samples[15:])
    return tmp_path


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 10**9)


def opened(root, cache, **changes):
    return open_foreign(KeyMap.of({**STEPS, **changes}, "map"), root, cache=cache)


def bytes_of(root):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (root / "theirs").iterdir()}


def test_steps_written_by_the_stock_package_train_in_place(root, cache, given):
    before = bytes_of(root)
    dataset = opened(root, cache)
    assert len(dataset) == 4 and dataset.anchors == 29 and dataset.info.licence == "MIT"
    pipeline = Pipeline(Mixture("m", (_source(dataset),), 0.0), {"arm": ROBOT}, block=29)
    mine = {episode.id: episode for episode in given}
    seen = set()
    for sample in pipeline.samples(range(29)):
        episode, i = mine[sample.episode], sample.step
        seen.add((sample.episode, i))
        for camera, image in sample.observation.images.items():
            np.testing.assert_array_equal(image[0], simplejpeg.decode_jpeg(episode.frames[camera].jpeg[i]))
        np.testing.assert_allclose(sample.observation.state, episode.state[[i]])
        left = min(4, episode.steps - i)
        assert sample.valid_T.sum() == left  # also over the border of the two shards
        np.testing.assert_allclose(sample.action_TA[:left, :3], episode.action[i : i + left, :3] - episode.state[i, :3], atol=1e-6)
        assert sample.observation.instruction == f"do {sample.episode} {i // 5}"
    assert len(seen) == 29 and pipeline.quarantine.bad == 0
    assert compute_stats([dataset], {"arm": ROBOT}, 0.0)["arm"].state.count == 29
    assert bytes_of(root) == before
    assert dataset.manifest["info"]["info"]["unread"] == {"depth.png": 29}


def _source(dataset):
    from vla.data.mixture import Source

    return Source(dataset.info.name, dataset, 1.0)


def test_the_index_is_built_once_and_anew_when_a_shard_changes(root, cache, monkeypatch):
    built = []
    from vla.data import foreign

    build = foreign._build
    monkeypatch.setattr(foreign, "_build", lambda *args: built.append(1) or build(*args))
    assert opened(root, cache).digest == opened(root, cache).digest
    assert len(built) == 1
    (root / "theirs" / "001.tar").write_bytes((root / "theirs" / "001.tar").read_bytes())  # touched
    dataset = opened(root, cache)
    assert len(built) == 2
    with (root / "theirs" / "000.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(Damaged, match=r"000.tar has \d+ bytes, and had"):
        type(dataset)(dataset.folder, dataset.manifest, dataset.pool, dataset.tars)


def test_fetching_leaves_an_index_alone_and_what_is_gone_of_it_is_made_again(root, tmp_path):
    cache = Cache(tmp_path / "cache", 40_000)
    dataset = opened(root, cache)
    there = {path.name: path.read_bytes() for path in dataset.folder.iterdir()}
    codes = dataset.folder / "latents" / "kept"
    codes.parent.mkdir()
    codes.write_bytes(b"made by hours of labelling")
    for number in range(2):
        data = bytes([number]) * 39_000  # nothing else has room beside it
        source = tmp_path / f"shard-{number:05d}.tar"
        source.write_bytes(data)
        cache.bring(f"file://{source}", f"remote/{source.name}", len(data), hashlib.sha256(data).hexdigest(), "source 'remote'")
    assert [path.name for path in (cache.folder / "remote").iterdir()] == ["shard-00001.tar"]
    assert {name: (dataset.folder / name).read_bytes() for name in there} == there
    (dataset.folder / "shard-00001.index").unlink()
    assert opened(root, cache).digest == dataset.digest
    assert {name: (dataset.folder / name).read_bytes() for name in there} == there and codes.is_file()
    assert [path.name for path in dataset.folder.parent.iterdir()] == [dataset.folder.name]


def test_an_image_that_changed_since_is_never_shown(root, cache):
    dataset = opened(root, cache)
    table = dataset.episode(0).cameras["front"]
    with (root / "theirs" / "000.tar").open("r+b") as file:
        file.seek(int(table.offset[3]) + 50)
        file.write(b"\x00\x01\x02")
    with pytest.raises(Damaged, match="episode 'e0' camera 'front' frame 3"):
        dataset.frame(0, "front", 3)


def test_the_doctor_compares_every_picture(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({**STEPS, "name": "theirs"}))
    (tmp_path / "m.yaml").write_text("val_fraction: 0\nsources: [{foreign: map.yaml}]")
    say = ["check", str(tmp_path / "m.yaml"), "--data-root", str(root), "--json"]
    assert main(say) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["sources"]["theirs"]["checked"] == "every picture, as indexed"
    path = root / "theirs" / "001.tar"
    data, facts = bytearray(path.read_bytes()), path.stat()
    data[data.index(b"\xff\xd8") + 300] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # neither size nor time tell it
    assert main(say) == 1
    (found,) = [row for row in json.loads(capsys.readouterr().out)["findings"] if row["kind"] == "altered"]
    assert found["severity"] == "error" and "001.tar: episode" in found["detail"]


def test_samples_with_chunks_stand_alone(tmp_path, cache):
    rng = np.random.default_rng(0)
    chunks = rng.uniform(size=(6, 4, 4))
    samples = [
        {
            "__key__": f"part/{i}",
            "jpg": jpeg(i),
            "wrist.jpg": jpeg(i, camera=1),
            "json": json.dumps({"obs": {"state": [0.5 * i, 1, 2, 0.25]}, "task": f"task {i}"}).encode(),
            "action.npy": npy(chunks[i][: 4 if i else 2]),
        }
        for i in range(6)
    ]
    write(tmp_path / "theirs" / "0.tar", samples)
    changes = {**CHUNKS, "instruction": {"member": "json", "field": "task"}}
    dataset = open_foreign(KeyMap.of(changes, "map"), tmp_path, cache=cache)
    assert len(dataset) == dataset.anchors == 6
    pipeline = Pipeline(Mixture("m", (_source(dataset),), 0.0), {"arm": ROBOT}, block=6)
    found = set()
    for sample in pipeline.samples(range(6)):
        i = int(sample.observation.instruction.split()[1])
        found.add(i)
        assert sample.step == 0 and sample.valid_T.sum() == (4 if i else 2)
        np.testing.assert_allclose(sample.action_TA[sample.valid_T, 3], chunks[i, : sample.valid_T.sum(), 3])
        np.testing.assert_allclose(sample.observation.state, [[0.5 * i, 1, 2, 0.25]])
    assert found == set(range(6))


@pytest.mark.parametrize("sample", ["step", "chunk"])
def test_reasoning_comes_along_where_there_is_any(tmp_path, cache, given, sample):
    """What is said changes within an episode, over the border of two tars, and at some steps nothing is."""
    said = {"e0": lambda i: "reach" if 2 <= i < 9 else "", "e1": lambda i: "grasp" if i < 5 else "lift"}
    samples = []
    for episode in given[:3]:
        for i in range(episode.steps):
            one = step_sample(episode, i, f"{episode.id}-{i:02d}")
            one["json"] = json.dumps({**json.loads(one["json"]), "why": f" {said.get(episode.id, lambda i: '')(i)}\n"}).encode()
            samples.append(one if sample == "step" else {**one, "action.npy": npy(episode.action[i:])})
    write(tmp_path / "theirs/0.tar", samples[:6])
    write(tmp_path / "theirs/1.tar", samples[6:])
    key_map = KeyMap.of({**(STEPS if sample == "step" else CHUNKS), "reasoning": {"member": "json", "field": "why"}}, "map")
    dataset = open_foreign(key_map, tmp_path, cache=cache)
    assert dataset.reasons and not opened(tmp_path, cache, **({} if sample == "step" else {"sample": "chunk", "step": None})).reasons
    seen = {}
    for found in Pipeline(Mixture("m", (_source(dataset),), 0.0), {"arm": ROBOT}, block=20).samples(range(20)):
        name, _, number = found.episode.rpartition("/")[2].partition("-")
        seen[name, int(number or found.step)] = found.reasoning
    assert seen == {(e.id, i): said.get(e.id, lambda i: "")(i) for e in given[:3] for i in range(e.steps)}


def test_tars_elsewhere_and_what_is_counted(root, tmp_path, cache, given):
    """A pattern may begin at `/`; an episode of which a step is lost at the border of two tars stays one of them, as far as it goes."""
    assert len(opened(tmp_path / "none", cache, shards=str(root / "theirs" / "*.tar"))) == 4
    rows = [(episode, i) for episode in given for i in range(episode.steps)]
    samples = [step_sample(episode, i, f"{n:06d}") for n, (episode, i) in enumerate(rows)]
    write(root / "theirs" / "001.tar", samples[16:])
    dataset = opened(root, cache)
    assert dataset.manifest["info"]["info"]["bad"] == {"schema": 1}
    assert dataset.manifest["episodes"] == len(dataset) == 4 and dataset.steps_E.tolist() == [12, 3, 1, 9]


def test_a_mixture_names_a_key_map(root, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(STEPS))
    (tmp_path / "m.yaml").write_text("sources: [{foreign: theirs.yaml, weight: 1}]")
    mixture = Mixture.load(tmp_path / "m.yaml", root)
    assert mixture.sources[0].name == "theirs" and mixture.sources[0].dataset.anchors == 29
    (tmp_path / "m.yaml").write_text("sources: [{foreign: none.yaml, weight: 1}]")
    with pytest.raises(UserError, match="source 1 \\('none.yaml'\\): no key map"):
        Mixture.load(tmp_path / "m.yaml", root)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"robot": "arm"}, UnknownName, "key 'robot'"),
        ({"action": None}, SchemaError, "lacks action"),
        ({"sample": "frame"}, UnknownName, "kind of sample 'frame'. Choices: chunk, step"),
        ({"episode": None}, SchemaError, "needs `episode`"),
        ({"embodiment": "./my_robot.py"}, UnknownName, "embodiment './my_robot.py'"),
        ({"cameras": {"front": "jpg"}}, SchemaError, r"has the roles \['front', 'wrist'\]"),
        ({"rate_hz": "fast"}, SchemaError, "rate_hz 'fast'"),
        ({"action": [{"member": "pkl"}]}, SchemaError, "read from .json and .npy"),
        ({"state": [{"field": "x"}]}, SchemaError, "needs `member`"),
        ({"shards": "nothing/*.tar"}, UserError, "no file under"),
        ({"shards": "theirs/**x/*.tar"}, SchemaError, "no pattern of files"),
        ({"shards": "."}, SchemaError, "no pattern of files"),
        ({"state": [{"member": "json", "field": "obs.state", "start": "0"}]}, SchemaError, "start is '0'; give a whole number"),
        ({"state": []}, SchemaError, "state is an empty list"),
        ({"embodiment": {"name": "arm"}}, SchemaError, "no robot by value.*cameras"),
        ({"embodiment": {**ROBOT.to_json(), "limits": [1, 2]}}, SchemaError, "no robot by value"),
        ({"embodiment": {**ROBOT.to_json(), "horizon": "many"}}, SchemaError, "no robot by value"),
        ({"reasoning": {"text": "think"}}, SchemaError, "reasoning is of a step"),
        ({"name": "a.b"}, SchemaError, "no dot"),
    ],
)
def test_a_wrong_key_map_is_refused(root, cache, changes, error, message):
    with pytest.raises(error, match=message):
        opened(root, cache, **changes)


def turned():
    """A JPEG that says that its camera was held sideways."""
    file, image = io.BytesIO(), Image.new("RGB", (16, 16))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def spoil(sample, **members):
    return {k: v for k, v in {**sample, **members}.items() if v is not None}


BAD = {
    "no camera": ({"wrist.jpg": None}, "schema", "has no member .wrist.jpg"),
    "no JPEG": ({"jpg": b"GIF89a"}, "decode", "no readable JPEG"),
    "turned by EXIF": ({"jpg": turned()}, "schema", "to be turned"),
    "narrow action": ({"action.npy": npy(np.zeros(3))}, "schema", r"action of shape \(3,\)"),
    "text for numbers": ({"action.npy": npy(np.array(["a", "b"]))}, "schema", "want numbers"),
    "object array": (
        {"action.npy": b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (4,), }".ljust(69) + b"\n"},
        "schema",
        "want numbers",
    ),
    "npy bomb": (
        {
            "action.npy": b"\x93NUMPY\x01\x00\x56\x00"
            + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }".ljust(85)
            + b"\n"
        },
        "schema",
        "want numbers that fill it",
    ),
    "NaN action": ({"action.npy": npy(np.full(4, np.nan))}, "nonfinite", "NaN"),
    "NaN in JSON": ({"json": b'{"episode": "e1", "step": 2, "obs": {"state": [NaN, 0, 0, 0]}}'}, "nonfinite", "holds NaN"),
    "endless nesting": ({"json": b"[" * 200_000}, "schema", "no JSON"),
    "giant JSON": ({"json": b'{"a": "' + b"x" * 1_100_000 + b'"}'}, "oversize", "at most 1048576"),
    "field gone": ({"json": b'{"episode": "e1", "step": 2}'}, "schema", "no field 'obs.state'"),
    "binary text": ({"txt": b"\xff\xfe\x00"}, "schema", "no UTF-8"),
    "step gone": (None, "schema", "from step 1 to 3"),
    "step is text": ({"json": b'{"episode": "e1", "step": "2", "obs": {"state": [0, 0, 0, 0]}}'}, "schema", "no count"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_left_out_by_the_episode_counted_and_named(tmp_path, cache, given, name):
    members, cause, message = BAD[name]
    samples = [step_sample(episode, i, f"{episode.id}-{i}") for episode in given for i in range(episode.steps)]
    at = 12 + 2
    samples[at : at + 1] = [] if members is None else [spoil(samples[at], **members)]
    write(tmp_path / "theirs" / "0.tar", samples)
    dataset = opened(tmp_path, cache)
    facts = dataset.manifest["info"]["info"]
    nameless = (members is not None and members.get("json", b"{").startswith((b"[", b'{"a"'))) or name == "NaN in JSON"
    assert facts["bad"] == Counter({cause: 1}) + Counter({"schema": int(nameless)})  # then its episode lacks a step, besides
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(facts["bad_named"][0])
    ids = {dataset.episode(i).id for i in range(len(dataset))}
    assert {"e0", "e2", "e3"} <= ids and dataset.manifest["episodes"] == len(dataset)
    if members is None or "json" not in members:
        assert ids == {"e0", "e2", "e3"}


def test_too_many_bad_samples_stop_the_indexing(tmp_path, cache):
    samples = [spoil(step_sample(make_episode(f"e{i}", 1, i), 0, f"{i}"), jpg=b"no" if i % 2 else jpeg(i)) for i in range(60)]
    write(tmp_path / "theirs" / "0.tar", samples)
    with pytest.raises(Damaged, match=r"theirs: 30 of 60 episodes are bad \(30 decode\)"):
        opened(tmp_path, cache)
    assert not list(cache.folder.glob("foreign/*/dataset.json"))


def add(tar, name, data=b"x", **facts):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def link(kind, target="/etc/passwd"):
    def put(tar):
        info = tarfile.TarInfo("0.json")
        info.type, info.linkname = kind, target
        tar.addfile(info)

    return put


HOSTILE = {
    "pickle": (lambda tar: add(tar, "0.pyd", b"cos\nsystem\n(S'touch /tmp/owned'\ntR."), "is a pickle"),
    "pickle inside": (lambda tar: add(tar, "0.state.pkl"), "is a pickle"),
    "up and out": (lambda tar: add(tar, "../../0.json"), "a path out of the archive"),
    "absolute": (lambda tar: add(tar, "/etc/0.json"), "a path out of the archive"),
    "symbolic link": (link(tarfile.SYMTYPE), "link, device or sparse"),
    "hard link": (link(tarfile.LNKTYPE), "link, device or sparse"),
    "device": (link(tarfile.CHRTYPE), "link, device or sparse"),
    "sparse": (link(tarfile.GNUTYPE_SPARSE), "link, device or sparse"),
    "long header": (lambda tar: add(tar, "0" * 70_000 + ".json"), r"a header of 7\d+ bytes"),
    "twice": (lambda tar: (add(tar, "0.json"), add(tar, "0.json")), "two members .json"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_stop_the_indexing_and_write_nothing(tmp_path, cache, given, name):
    put, message = HOSTILE[name]
    write(tmp_path / "theirs" / "0.tar", [step_sample(given[0], i, f"{i}") for i in range(3)])
    with tarfile.open(tmp_path / "theirs" / "1.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        put(tar)
    before = {path for path in tmp_path.rglob("*") if cache.folder not in path.parents}
    with pytest.raises(SchemaError, match=message):
        opened(tmp_path, cache)
    assert {path for path in tmp_path.rglob("*") if cache.folder not in path.parents} - {cache.folder} == before
    assert not list(cache.folder.glob("foreign/*/dataset.json"))


def test_long_names_and_float_times_are_read(tmp_path, cache, given):
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        path = tmp_path / f"d{number}" / "0.tar"
        path.parent.mkdir()
        with tarfile.open(path, "w", format=form) as tar:
            for i in range(given[1].steps):
                sample = step_sample(given[1], i, f"{'folder/' * 20}{i}")
                for ext in sorted(set(sample) - {"__key__"}):
                    add(tar, f"{sample['__key__']}.{ext}", sample[ext], mtime=1e9 + 0.5)
        dataset = opened(tmp_path, cache, shards=f"d{number}/*.tar")
        assert Counter(step for e in range(len(dataset)) for step in dataset.episode(e).anchors.tolist()) == Counter(range(7))


def test_a_tar_cut_anywhere_is_found(root, cache):
    path = root / "theirs" / "001.tar"
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        borders = [member.offset for member in tar.getmembers()]
    end = borders[-1] + 512  # behind it, only the last member's bytes and the end mark
    cuts = sorted({*borders, *np.random.default_rng(0).integers(1, end, 200).tolist()})
    assert len(cuts) > 200
    for cut in cuts:
        path.write_bytes(data[:cut])
        with path.open("rb") as file, pytest.raises(Damaged, match="001.tar"):
            list(members(path, file))
    with pytest.raises(Damaged, match="001.tar"):
        opened(root, cache)


def test_a_compressed_tar_is_refused(root, cache):
    import gzip

    path = root / "theirs" / "001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(Damaged, match="unpack it first"):
        opened(root, cache)
