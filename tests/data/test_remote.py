from __future__ import annotations

import hashlib
import http.server
import json
import multiprocessing
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vla.cli import main
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.remote import ATTEMPTS, Cache, Unreachable, is_url, open_dataset
from vla.data.shard import DatasetInfo, ShardWriter
from vla.errors import Damaged, UnknownName, UserError

from .episodes import ROBOT, make_episode


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `fail(path, times)` makes the next requests for it go wrong in a given way."""

    def __init__(self, folder):
        self.gets, self.faults, self.lock = Counter(), {}, threading.Lock()
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        with self.server.lock:
            self.server.gets[name] += 1
            faults = self.server.faults.get(name) or []
            fault = faults.pop(0) if faults else ""
        if fault.isdigit():
            return self.send_error(int(fault))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "altered":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.connection.close()

    def log_message(self, *args):
        pass


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "there" / "arms", DatasetInfo(name="arms", embodiment=ROBOT.to_json()), max_shard_bytes=40_000) as writer:
        for i in range(24):
            writer.add(make_episode(f"e{i}", 10, i))
    return tmp_path / "there" / "arms"


@pytest.fixture
def server(folder):
    with Server(folder.parent) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, pauses):
    return Cache(tmp_path / "cache", 10**9, pauses.append)


@pytest.fixture
def pauses():
    return []


def episodes(dataset):
    return [(e.id, e.action.tobytes(), [f.jpeg for f in e.frames.values()]) for e in map(dataset.read, range(len(dataset)))]


def held(cache):
    return sum(path.stat().st_size for path in cache.folder.rglob("shard-*"))


def test_a_dataset_over_http_is_the_local_one_and_each_file_is_fetched_once(folder, server, cache, tmp_path):
    local = open_dataset(folder)
    remote = open_dataset(f"{server.url}/arms", cache=cache)
    assert remote.digest == local.digest and remote.anchors == local.anchors == 240
    assert not any(name.endswith(".tar") for name in server.gets)  # until a sample is asked for
    assert episodes(remote) == episodes(local)
    again = open_dataset(f"{server.url}/arms/", cache=cache)
    assert episodes(again) == episodes(local)
    assert len(local.shard_names) > 5
    assert {count for name, count in server.gets.items() if name != "dataset.json"} == {1}
    assert held(cache) == sum(path.stat().st_size for path in folder.glob("shard-*"))


def test_local_folders_by_url(folder, cache):
    remote = open_dataset(f"file://{folder}", cache=cache)
    assert episodes(remote) == episodes(open_dataset(folder))
    with pytest.raises(Unreachable, match=r"file://.*/none/dataset.json could not be read \(FileNotFoundError"):
        open_dataset(f"file://{folder.parent}/none", cache=cache)


def test_errors_that_pass_are_tried_again(server, cache, pauses):
    server.faults = {"dataset.json": ["503", "429"], "shard-00000.tar": ["500", "cut", "altered"]}
    remote = open_dataset(f"{server.url}/arms", cache=cache)
    assert remote.frame(0, "front", 0)[:2] == b"\xff\xd8"
    assert server.gets["shard-00000.tar"] == 4 and server.gets["dataset.json"] == 3
    assert pauses == [0.5, 1.0, 0.5, 1.0, 2.0]
    assert not list(cache.folder.rglob("*.part"))


def test_errors_that_stay_are_named(server, cache, folder, pauses):
    remote = open_dataset(f"{server.url}/arms", cache=cache)
    server.faults = {"shard-00000.tar": ["500"] * ATTEMPTS, "shard-00001.tar": ["altered"] * ATTEMPTS}
    with pytest.raises(
        Unreachable, match=r"source 'arms': http.*shard-00000.tar could not be read in 6 attempts \(ClientResponseError: 500"
    ):
        remote.frame(0, "front", 0)
    index = int(np.flatnonzero(remote.shard_E == 1)[0])
    with pytest.raises(Damaged, match=r"source 'arms': .*shard-00001.tar has bytes that are not those of the manifest"):
        remote.frame(index, "front", 0)
    pauses.clear()
    (folder / "shard-00002.tar").unlink()
    with pytest.raises(Unreachable, match=r"shard-00002.tar could not be read \((FileNotFoundError|.*404)"):
        remote.frame(int(np.flatnonzero(remote.shard_E == 2)[0]), "front", 0)
    assert not pauses  # a file that is not there does not come by waiting
    assert not list(cache.folder.rglob("*.part"))


def test_a_source_that_fails_stops_the_run_with_its_name(server, cache, folder):
    dataset = open_dataset(f"{server.url}/arms", cache=cache)
    mixture = _mixture(dataset, window=2)
    server.faults = {f"{name}.tar": ["500"] * ATTEMPTS for name in dataset.shard_names}
    for workers in (0, 1):
        with pytest.raises(UserError, match="source 'arms'.*shard-0000.*could not be read") as error:
            list(Pipeline(mixture, {"arm": ROBOT}).batches(batch_size=4, count=3, collate=len, workers=workers))
        assert error.value.exit_code == 1


def test_the_cache_keeps_to_its_limit_and_windows_fetch_each_shard_once(server, folder, tmp_path):
    whole = sum(path.stat().st_size for path in folder.glob("shard-*"))
    cache = Cache(tmp_path / "small", int(whole * 0.7))
    dataset = open_dataset(f"{server.url}/arms", cache=cache)
    pipeline = Pipeline(_mixture(dataset, window=2), {"arm": ROBOT}, block=60)
    server.gets.clear()
    largest = 0
    for _, samples in pipeline.batches(batch_size=10, count=24, collate=list, prefetch=0):
        assert len(samples) == 10
        largest = max(largest, held(cache))
    assert 0 < largest <= cache.limit_bytes
    tars = {name: count for name, count in server.gets.items() if name.endswith(".tar")}
    assert len(tars) == len(dataset.shard_names) and set(tars.values()) == {1}


def test_a_cache_that_cannot_hold_what_is_drawn_from_is_refused(server, folder, tmp_path):
    whole = sum(path.stat().st_size for path in folder.glob("shard-*"))
    dataset = open_dataset(f"{server.url}/arms", cache=Cache(tmp_path / "small", whole // 2))
    with pytest.raises(UserError, match=r"cache of 0.0 GB is too small.*arms.*`window` of shards.*VLA_CACHE_GB"):
        Pipeline(_mixture(dataset, window=None), {"arm": ROBOT})
    assert len(Pipeline(_mixture(dataset, window=1), {"arm": ROBOT}).samples(range(3))) == 3
    with pytest.raises(UserError, match="more than the whole cache"):
        open_dataset(f"{server.url}/arms", cache=Cache(tmp_path / "tiny", 100))


def _mixture(dataset, window):
    from vla.data.mixture import Source

    return Mixture("remote", (Source("arms", dataset, 1.0, window=window),), 0.0)


def _read_all(url, cache, queue):
    queue.put(hashlib.sha256(repr(episodes(open_dataset(url, cache=cache))).encode()).hexdigest())


def test_several_processes_share_a_cache(server, cache, folder):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    crew = [context.Process(target=_read_all, args=(f"{server.url}/arms", cache, queue)) for _ in range(3)]
    for process in crew:
        process.start()
    digests = {queue.get(timeout=60) for _ in crew}
    for process in crew:
        process.join()
    assert digests == {hashlib.sha256(repr(episodes(open_dataset(folder))).encode()).hexdigest()}
    assert {count for name, count in server.gets.items() if name != "dataset.json"} == {1}


def test_a_mixture_names_urls(server, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLA_CACHE_GB", "0.5")
    path = tmp_path / "m.yaml"
    path.write_text(f"sources: [{{path: '{server.url}/arms', window: 2, weight: 1}}]")
    mixture = Mixture.load(path, tmp_path)
    assert mixture.sources[0].window == 2 and mixture.sources[0].dataset.cache.limit_bytes == 500_000_000
    local = Mixture.of([folder], val_fraction=0.0)
    want = sorted((s.episode, s.step) for s in Pipeline(local, {"arm": ROBOT}, block=240).samples(range(240)))
    remote = Mixture(mixture.name, mixture.children, 0.0)
    assert sorted((s.episode, s.step) for s in Pipeline(remote, {"arm": ROBOT}, block=240).samples(range(240))) == want
    path.write_text("sources: [{path: 'http://127.0.0.1:1/arms'}]")
    monkeypatch.setattr("vla.data.remote.FIRST_PAUSE_S", 0.0)
    with pytest.raises(UserError, match="source 1 \\('http://127.0.0.1:1/arms'\\).*could not be read in 6 attempts"):
        Mixture.load(path, tmp_path)
    monkeypatch.setenv("VLA_CACHE_GB", "lots")
    with pytest.raises(UserError, match="VLA_CACHE_GB='lots'"):
        Mixture.load(path, tmp_path)


def test_the_doctor_looks_at_sources_at_urls_and_says_what_it_did_not_see(server, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vla.data.remote.FIRST_PAUSE_S", 0.0)
    path = tmp_path / "m.yaml"
    path.write_text(f"sources: [{{path: '{server.url}/arms'}}]")
    total = len(open_dataset(folder).shard_names)
    assert main(["check", str(path), "--shards", "2", "--sample", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (note,) = [row for row in report["findings"] if row["kind"] == "not_examined"]
    assert note["severity"] == "note" and f"{total - 2} of {total} shards" in note["detail"] and f"--shards {total}" in note["fix"]
    assert report["facts"]["sources"]["arms"]["checked"] == f"2 of {total} shards, as they arrived"
    assert len([name for name in server.gets if name.endswith(".tar")]) == 2  # no other was fetched, whatever was looked for
    assert main(["check", str(path), "--shards", "0"]) == 2
    server.faults["shard-00001.tar"] = ["altered"] * ATTEMPTS
    path.write_text(f"sources: [{{path: '{server.url}/arms'}}, {{path: '{server.url}/none', name: gone}}]")
    assert main(["check", str(path), "--shards", str(total), "--sample", "4"]) == 1
    said = capsys.readouterr().out
    assert "source 2: unreadable: " in said and "gone" in said and "arms: shard-00001: unreadable: " in said and "sha256" in said


@pytest.mark.parametrize(
    "url",
    ["pipe:cat /etc/passwd", "pipe://cat", "filecache::http://x/y", "http://x::file://y", "ssh://host/x", "ftp://x/y", "zip://a::http://b"],
)
def test_what_runs_commands_or_chains_is_refused(tmp_path, url):
    with pytest.raises(UnknownName, match="kind of URL.*https://"):
        is_url(url)
    (tmp_path / "m.yaml").write_text(json.dumps({"sources": [{"path": url}]}))
    with pytest.raises(UserError, match="source 1 .*kind of URL"):
        Mixture.load(tmp_path / "m.yaml", tmp_path)


@pytest.mark.parametrize("name", ["../../escape", "/tmp/escape", "shard-00000/../../x", "other"])
def test_a_hostile_manifest_names_no_file_outside_the_cache(folder, cache, name):
    path = folder / "dataset.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["name"] = name
    from vla.data.format import manifest_digest

    manifest["digest"] = manifest_digest(manifest)
    path.write_text(json.dumps(manifest))
    before = {p for p in folder.parent.parent.rglob("*") if cache.folder not in p.parents}
    with pytest.raises(Damaged, match="no shard's"):
        open_dataset(f"file://{folder}", cache=cache)
    assert {p for p in folder.parent.parent.rglob("*") if cache.folder not in p.parents} - {cache.folder} == before


def test_an_endless_manifest_is_not_read(folder, cache, monkeypatch):
    monkeypatch.setattr("vla.data.format.MAX_JSON_BYTES", 100)
    with pytest.raises(Damaged, match="more than 100 bytes"):
        open_dataset(f"file://{folder}", cache=cache)
