"""A dataset folder, read at random: any frame is one positioned read, and memory does not grow with the data.

Only a table of segments (about 40 bytes each) stays in memory. What belongs to one episode (rows, anchors, where its frames
lie) is read together when it is first needed and kept in a `Pool`, bounded in bytes and in open files, that all sources share.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load

from vla.data import format as fmt
from vla.data.sums import crc32
from vla.errors import Damaged, UnknownName
from vla.types import Episode, Frames, Span, VideoFrames

if TYPE_CHECKING:
    from vla.data.gop import Gop

MAX_READ_BYTES = 64 << 20
"""No group of pictures is larger; an index that says so is damaged."""
_TABLES = ("id_end", "parent_end", "text_end", "key", "steps", "first_step", "rate", "anchor_end", "span_end", "frame_end")


class Pool:
    """What readers keep in memory: the open files of at most `shards` shards, and at most `episode_bytes` of episodes.

    Little by default, so that memory is flat in the size of the data: under a permuted order of much data an episode is hardly met
    twice before any budget is through, and reading its rows costs a third of decoding one frame of 224 px. A pipeline that may cache
    gives it more.
    """

    def __init__(self, shards: int = 48, episode_bytes: int = 1 << 20) -> None:
        self.shards, self.episode_bytes = shards, episode_bytes
        self._open: OrderedDict[tuple[str, int], ShardFiles] = OrderedDict()
        self._episodes: OrderedDict[tuple[str, int], StoredEpisode] = OrderedDict()
        self._held = 0
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple:
        return Pool, (self.shards, self.episode_bytes)  # another process opens its own files

    def forked(self) -> None:
        """In a child process: another thread of the parent may have held the lock as it forked."""
        self._lock = threading.RLock()

    def episode(self, dataset: Dataset, index: int) -> StoredEpisode:
        """Its rows, kept while `episode_bytes` last."""
        key = (dataset.digest, index)
        found = self._episodes.get(key)
        if found is not None:
            return found
        with self._lock:
            if (found := self._episodes.get(key)) is None:
                found = dataset._load(index)
                self._episodes[key] = found
                self._held += found.nbytes
                while self._held > self.episode_bytes and len(self._episodes) > 1:
                    self._held -= self._episodes.popitem(last=False)[1].nbytes  # first in, first out: a hit costs no bookkeeping
        return found

    def shard(self, dataset: Dataset, number: int) -> ShardFiles:
        """Its open files, of which the oldest are closed beyond `shards`."""
        key = (dataset.digest, number)
        found = self._open.get(key)
        if found is not None:
            return found
        with self._lock:
            if (found := self._open.get(key)) is None:
                found = dataset._open_shard(number)
                self._open[key] = found
                while len(self._open) > self.shards:
                    self._open.popitem(last=False)
        return found

    def let_go_of_removed(self) -> None:
        """Closes files that no longer have a name, so that a cache's room on disk is freed."""
        with self._lock:
            for key in [key for key, files in self._open.items() if files.removed]:
                del self._open[key]


@dataclass(frozen=True)
class CameraTable:
    """Where the frames of one camera in one episode lie; arrays of one row per frame, steps rising.

    `key`: for video, the frame at which decoding of each begins, and `head`, what its decoder needs; None and empty for JPEG.
    """

    step: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc: np.ndarray
    key: np.ndarray | None = None
    head: bytes = b""


@dataclass(frozen=True)
class StoredEpisode:
    """One whole episode without its pixels. `anchors`: steps at which every camera holds a frame. Arrays are read-only."""

    index: int
    id: str
    rate_hz: Fraction
    time_s: np.ndarray
    state: np.ndarray | None
    action: np.ndarray | None
    anchors: np.ndarray
    cameras: Mapping[str, CameraTable]
    spans: tuple[Span, ...]
    reasons: tuple[Span, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.time_s)

    @property
    def nbytes(self) -> int:
        rows = sum(values.nbytes for values in (self.time_s, self.state, self.action, self.anchors) if values is not None)
        return 2000 + rows + sum(28 * len(table.step) for table in self.cameras.values())

    @cached_property
    def finite_time(self) -> bool:
        return bool(np.isfinite(self.time_s).all())

    @cached_property
    def finite_state(self) -> bool:
        return self.state is None or bool(np.isfinite(self.state).all())

    @cached_property
    def finite_action(self) -> bool:
        return self.action is None or bool(np.isfinite(self.action).all())

    def instructions(self, step: int) -> list[str]:
        """All instructions valid at a step, in recorded order."""
        return [span.text for span in self.spans if span.start <= step < span.stop]

    def reasoning(self, step: int) -> str:
        """What is to be said at a step before acting: the first that is valid there, or ''."""
        return next((span.text for span in self.reasons if span.start <= step < span.stop), "")


class Dataset:
    """`Dataset.open(folder)`. Episodes are numbered 0..len-1 as stored; segments of a long one are joined.

    `digest` is the manifest's sha256: two datasets with the same digest hold the same bytes.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], pool: Pool) -> None:
        self.folder, self.manifest, self.pool = folder, manifest, pool
        self.info = fmt.DatasetInfo.from_json(manifest["info"])
        self.digest: str = manifest["digest"]
        self.cameras: tuple[str, ...] = tuple(manifest["cameras"])
        self.video: dict[str, str] = dict(manifest.get("video", {}))
        self.shard_names: list[str] = [shard["name"] for shard in manifest["shards"]]
        self._check_sizes()
        shard_S, row_S, key_S, anchors_S, steps_S, first_S = self._segments()
        self._shard_S, self._row_S, self._first_S = shard_S, row_S, first_S
        starts = np.flatnonzero(first_S == 0)
        self._segment_E = np.append(starts, len(first_S))  # segments of episode e: _segment_E[e] .. _segment_E[e + 1]
        self.key_E: np.ndarray = key_S[starts]
        self.steps_E: np.ndarray = np.add.reduceat(steps_S, starts)
        self.anchors_E: np.ndarray = np.add.reduceat(anchors_S, starts)
        self.shard_E: np.ndarray = shard_S[starts]

    @staticmethod
    def open(folder: str | Path, pool: Pool | None = None) -> Dataset:
        """UserError where there is no dataset; Damaged where a file is missing or has another size than the manifest says."""
        folder = Path(folder)
        return Dataset(folder, fmt.read_manifest(folder), pool or Pool())

    def __reduce__(self) -> tuple:
        return Dataset.open, (self.folder, self.pool)

    def __len__(self) -> int:
        return len(self.key_E)

    @property
    def anchors(self) -> int:
        """Samples to draw: steps at which every camera holds a frame, over all episodes, held-out ones included."""
        return int(self.manifest["anchors"])

    @property
    def steps(self) -> int:
        return int(self.manifest["steps"])

    @property
    def reasons(self) -> bool:
        """Whether any episode has reasoning."""
        return bool(self.manifest.get("reasoning"))

    @property
    def hours(self) -> float:
        return float(self.manifest["seconds"]) / 3600

    def episode(self, index: int) -> StoredEpisode:
        return self.pool.episode(self, index)

    def frame(self, index: int, camera: str, number: int) -> bytes | Gop:
        """Frame `number` (not step) of a camera in episode `index`, still encoded: a JPEG, or for video the packets that lead to it;
        `vla.data.images.decode_frame` takes both. Damaged if its bytes are not those written."""
        episode = self.episode(index)
        if camera not in episode.cameras:
            raise UnknownName("camera", camera, self.cameras)
        return self.frame_of(episode, camera, number)

    def frame_of(self, episode: StoredEpisode, camera: str, number: int) -> bytes | Gop:
        """`frame` of an episode that is at hand."""
        table = episode.cameras[camera]
        if table.key is not None:
            return self._packets(episode.index, camera, table, number)
        data = self.pool.shard(self, table.shard.item(number)).pread_tar(table.size.item(number), table.offset.item(number))
        if crc32(data) != table.crc.item(number):
            raise Damaged(f"{self._where(episode.index, number, camera)}: the image's bytes are not those written")
        return data

    def _packets(self, index: int, camera: str, table: CameraTable, number: int) -> Gop:
        """One read from the key frame to the end of the frame's packet."""
        from vla.data.gop import MAX_GOP_FRAMES, Gop

        assert table.key is not None
        first = int(table.key[number])
        rows = slice(first, number + 1)
        begin, size = table.offset[rows].astype(np.int64), table.size[rows].astype(np.int64)
        ends, length = begin + size, int(begin[-1] + size[-1] - begin[0]) if len(begin) else 0
        if (
            not 0 <= first <= number < first + MAX_GOP_FRAMES
            or (size < 0).any()
            or (begin[1:] < ends[:-1]).any()
            or length > MAX_READ_BYTES
        ):
            raise Damaged(f"{self._where(index, number, camera)}: the index does not say where its group lies; it is damaged")
        data = self.pool.shard(self, int(table.shard[number])).pread("tar", length, int(begin[0]))
        packets = tuple(data[low:high] for low, high in zip((begin - begin[0]).tolist(), (ends - begin[0]).tolist(), strict=True))
        if [crc32(packet) for packet in packets] != table.crc[rows].tolist():
            raise Damaged(f"{self._where(index, number, camera)}: the video's bytes are not those written")
        return Gop(self.video[camera], table.head, packets)

    def read(self, index: int) -> Episode:
        """The whole episode as it was given to the writer (`licence` filled in from the dataset where it was unknown)."""
        stored = self.episode(index)
        frames: dict[str, Frames | VideoFrames] = {}
        for camera, table in stored.cameras.items():
            if table.key is not None:
                frames[camera] = VideoFrames(table.step, self.video_file(index, camera))
            else:
                jpegs = (self.frame(index, camera, number) for number in range(len(table.step)))
                frames[camera] = Frames(table.step, tuple(jpeg for jpeg in jpegs if isinstance(jpeg, bytes)))
        record = self.record(index)
        return Episode(
            id=stored.id,
            embodiment=record["embodiment"],
            rate_hz=stored.rate_hz,
            supervision=record["supervision"],
            instructions=stored.spans,
            time_s=stored.time_s,
            frames=frames,
            state=stored.state,
            action=stored.action,
            licence=record["licence"],
            source=record["source"],
            info=record["info"],
            reasoning=stored.reasons,
        )

    def record(self, index: int) -> dict[str, Any]:
        """The episode's own `.episode.json` (of its first segment): facts for people."""
        import json

        return json.loads(self._member(index, int(self._segment_E[index]), 0))

    def video_file(self, index: int, camera: str) -> bytes:
        """The whole mp4 of a camera that is stored as video; segments are joined, packet by packet."""
        from vla.data.gop import join_mp4

        number = 2 + self.cameras.index(camera)
        return join_mp4([self._member(index, segment, number) for segment in range(self._segment_E[index], self._segment_E[index + 1])])

    def _member(self, index: int, segment: int, number: int) -> bytes:
        files = self.pool.shard(self, int(self._shard_S[segment]))
        offset, size, crc = files.rows("member", int(self._row_S[segment]), int(self._row_S[segment]) + 1)[0][number]
        data = files.pread("tar", int(size), int(offset))
        if crc32(data) != crc:
            raise Damaged(f"{files.stem}.tar: a member of episode {index} ({number}) is not the one written")
        return data

    def _load(self, index: int) -> StoredEpisode:
        parts = [self._load_segment(segment) for segment in range(self._segment_E[index], self._segment_E[index + 1])]
        first = parts[0]
        if len(parts) == 1:
            return StoredEpisode(index=index, **first)
        joined = {kind: _join([part[kind] for part in parts]) for kind in ("time_s", "state", "action", "anchors")}
        cameras = {}
        for camera in self.cameras:
            tables = [part["cameras"][camera] for part in parts]
            names = ("step", "shard", "offset", "size", "crc")
            joined_table = CameraTable(*(_join([getattr(table, name) for table in tables]) for name in names))
            cameras[camera] = replace(joined_table, key=_join_keys(tables), head=next((t.head for t in tables if t.head), b""))
        texts = {kind: _join_spans([span for part in parts for span in part[kind]]) for kind in ("spans", "reasons")}
        return StoredEpisode(index=index, id=first["id"], rate_hz=first["rate_hz"], cameras=cameras, **texts, **joined)

    def _load_segment(self, segment: int) -> dict[str, Any]:
        shard, row, first = int(self._shard_S[segment]), int(self._row_S[segment]), int(self._first_S[segment])
        files = self.pool.shard(self, shard)
        table, C = files.tables, len(self.cameras)
        begin, stop = _range(files.step_end, row)
        frame_end = table["frame_end"].ravel()
        edges = [int(frame_end[row * C - 1]) if row else 0, *frame_end[row * C : (row + 1) * C].tolist()]
        # The cameras of a segment lie next to each other in the index: four reads, whatever their number.
        rows = {name: files.rows(f"frame_{name}", edges[0], edges[-1]) for name in ("step", "offset", "size", "crc")}
        if first:
            rows["step"] = rows["step"] + np.int32(first)
        rows["shard"] = np.broadcast_to(np.int32(shard), edges[-1] - edges[0])
        cameras = {}
        for camera, (low, high) in zip(self.cameras, itertools.pairwise(edge - edges[0] for edge in edges), strict=True):
            cameras[camera] = CameraTable(**{name: _frozen(values[low:high]) for name, values in rows.items()})
            if camera in self.video:
                key = files.rows("frame_key", edges[0] + low, edges[0] + high)
                cameras[camera] = replace(cameras[camera], key=_frozen(key), head=files.blob("head", row * C + len(cameras) - 1))
        return {
            "id": files.text("parent", row),
            "rate_hz": _rate(*table["rate"][row].tolist()),
            "time_s": files.columns("time_s", begin, stop),
            "state": files.columns("state", begin, stop),
            "action": files.columns("action", begin, stop),
            "anchors": _frozen(files.rows("anchor", *_range(table["anchor_end"], row)) + np.int32(first)),
            "cameras": cameras,
            "spans": _spans(files, "span", row, first),
            "reasons": _spans(files, "reason", row, first) if "reason_end" in table else (),
        }

    def _segments(self) -> tuple[np.ndarray, ...]:
        """Rows of all groups: shard, row in it, key, anchors, steps, first step. One file says it; older datasets lack it."""
        facts = self.manifest.get("segments_file")
        if facts is None:
            tables = [self._segment_table(number) for number in range(len(self.shard_names))]
            return tuple(np.concatenate(column) for column in zip(*tables, strict=True))
        data = self._segments_file().read_bytes()
        if len(data) != facts["bytes"] or hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise Damaged(f"{self.info.name}: {fmt.SEGMENTS} is not the file that the manifest names. Copy it again.")
        table = load(data)
        rows_S = np.array([shard["segments"] for shard in self.manifest["shards"]])
        if len(table["key"]) != rows_S.sum():
            raise Damaged(f"{self.info.name}: {fmt.SEGMENTS} has {len(table['key'])} groups, the manifest {rows_S.sum()}")
        row_S = np.arange(rows_S.sum()) - np.repeat(np.cumsum(rows_S) - rows_S, rows_S)
        shard_S = np.repeat(np.arange(len(rows_S)), rows_S)
        return shard_S.astype(np.int32), row_S.astype(np.int32), *(table[name] for name in ("key", "anchors", "steps", "first_step"))

    def _segments_file(self) -> Path:
        return self.folder / fmt.SEGMENTS

    def _segment_table(self, number: int) -> tuple[np.ndarray, ...]:
        # Read without the pool, so that opening a dataset of ten thousand shards leaves no files open.
        table = self._open_shard(number, only_index=True).tables
        rows = len(table["key"])
        anchors = np.diff(table["anchor_end"], prepend=0)
        return (
            np.full(rows, number, np.int32),
            np.arange(rows, dtype=np.int32),
            table["key"],
            anchors,
            table["steps"],
            table["first_step"],
        )

    def _open_shard(self, number: int, only_index: bool = False) -> ShardFiles:
        return ShardFiles(self.folder / self.shard_names[number], only_index)

    def _check_sizes(self) -> None:
        with os.scandir(self.folder) as entries:  # one look at the folder: a dataset may have ten thousand shards
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        for shard in self.manifest["shards"]:
            for kind, facts in shard["files"].items():
                name = f"{shard['name']}.{kind}"
                if (size := sizes.get(name)) != facts["bytes"]:
                    found = "is missing" if size is None else f"has {size} bytes, the manifest says {facts['bytes']}"
                    raise Damaged(f"{self.info.name}: {self.folder / name} {found}. Run `vla check {self.folder}` for the full list.")

    def _where(self, index: int, number: int, camera: str) -> str:
        episode = self.episode(index)
        file = self._tar_name(int(episode.cameras[camera].shard[number]))
        return f"{self.info.name}: {file}: episode '{episode.id}' camera '{camera}' frame {number}"

    def _tar_name(self, shard: int) -> str:
        return f"{self.shard_names[shard]}.tar"


class ShardFiles:
    """The three files of one shard: their small tables in memory, all else by positioned reads. `tar`: if it lies elsewhere."""

    def __init__(self, stem: Path, only_index: bool = False, tar: Path | None = None) -> None:
        self.stem = stem
        self._fds: dict[str, int] = {}
        self._arrays: dict[str, dict[str, _Array]] = {}
        self._texts: dict[int, str] = {}
        for kind in ("index",) if only_index else ("index", "columns", "tar"):
            path = tar if kind == "tar" and tar else f"{stem}.{kind}"
            self._fds[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if kind != "tar":
                header = fmt.read_header(Path(f"{stem}.{kind}"))[0]
                self._arrays[kind] = {name: _Array(*entry) for name, entry in header.items()}
        wanted = ("key", "steps", "first_step", "anchor_end") if only_index else _TABLES
        self._tar = self._fds.get("tar", -1)
        if not only_index and "reason_end" in self._arrays["index"]:
            wanted = (*wanted, "reason_end")
        self.tables: dict[str, np.ndarray] = {name: self._array("index", name, 0, None) for name in wanted}
        self.step_end = np.cumsum(self.tables["steps"])
        if not only_index:  # the dataset has these, for all shards; of the others, many shards' are kept
            del self.tables["steps"], self.tables["first_step"], self.tables["key"]
            self.tables = {name: _small(values) for name, values in self.tables.items()}
            self.step_end = _small(self.step_end)

    def __del__(self) -> None:
        for fd in self._fds.values():
            os.close(fd)

    @property
    def removed(self) -> bool:
        return any(os.fstat(fd).st_nlink == 0 for fd in self._fds.values())

    def pread_tar(self, size: int, offset: int) -> bytes:
        """`pread("tar", ...)`, for the many small reads of frames."""
        data = os.pread(self._tar, size, offset) if size >= 0 <= offset else b""
        return data if len(data) == size else self.pread("tar", size, offset)

    def pread(self, kind: str, size: int, offset: int) -> bytes:
        if size < 0 or offset < 0:
            raise Damaged(f"{self.stem}.index asks for {size} bytes at {offset}; the index is damaged")
        data = os.pread(self._fds[kind], size, offset)
        if len(data) != size:
            raise Damaged(f"{self.stem}.{kind}: ends within a read of {size} bytes at {offset}; the file is truncated")
        return data

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._array("index", name, start, stop)

    def columns(self, name: str, start: int, stop: int) -> np.ndarray | None:
        return self._array("columns", name, start, stop) if name in self._arrays["columns"] else None

    def instruction(self, row: int) -> str:
        """A text of this shard's table, which holds each different one once."""
        if row not in self._texts:
            self._texts[row] = self.text("text", row)
        return self._texts[row]

    def blob(self, name: str, row: int) -> bytes:
        """One of many byte strings; their ends are not kept in memory."""
        end = self._array("index", f"{name}_end", max(row - 1, 0), row + 1).tolist()
        return self._array("index", name, end[0] if row else 0, end[-1]).tobytes()

    def text(self, name: str, row: int) -> str:
        return self._array("index", name, *_range(self.tables[f"{name}_end"], row)).tobytes().decode()

    def _array(self, kind: str, name: str, start: int, stop: int | None) -> np.ndarray:
        array = self._arrays[kind].get(name)
        if array is None:
            raise Damaged(f"{self.stem}.{kind} lacks the array '{name}'")
        stop = array.shape[0] if stop is None else stop
        data = self.pread(kind, (stop - start) * array.width, array.offset + start * array.width)
        values = np.frombuffer(data, array.dtype)
        return values if array.flat else values.reshape(stop - start, *array.shape[1:])


class _Array:
    """Where an array lies in a file; `width`: bytes of one row."""

    __slots__ = ("dtype", "flat", "offset", "shape", "width")

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> None:
        self.dtype, self.shape, self.offset = dtype, shape, offset
        self.width, self.flat = dtype.itemsize * math.prod(shape[1:]), len(shape) == 1


@lru_cache(256)
def _rate(numerator: int, denominator: int) -> Fraction:
    return Fraction(numerator, denominator)


def _small(values: np.ndarray) -> np.ndarray:
    """int64 as int32 where nothing is lost."""
    fits = not values.size or -(2**31) <= values.min() <= values.max() < 2**31
    return values.astype(np.int32) if fits else values


def _range(end: np.ndarray, row: int) -> tuple[int, int]:
    return (int(end[row - 1]) if row else 0), int(end[row])


def _spans(files: ShardFiles, name: str, row: int, first: int) -> tuple[Span, ...]:
    """The texts of one group of a shard, with steps counted in the whole episode."""
    rows = files.rows(name, *_range(files.tables[f"{name}_end"], row)).tolist()
    return tuple(Span(files.instruction(text), low + first, high + first) for low, high, text in rows)


def _join(parts: list[Any]) -> Any:
    return None if parts[0] is None else _frozen(np.concatenate(parts))


def _join_keys(tables: list[CameraTable]) -> np.ndarray | None:
    """Each segment counts its frames from 0."""
    if tables[0].key is None:
        return None
    before = np.cumsum([0, *(len(table.step) for table in tables[:-1])])
    return _frozen(np.concatenate([table.key + first for table, first in zip(tables, before, strict=True)]))  # type: ignore[operator]


def _frozen(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def _join_spans(spans: list[Span]) -> tuple[Span, ...]:
    """Spans that a cut divided, whole again: the same text going on where it stopped."""
    joined: list[Span] = []
    for span in spans:
        for place, other in enumerate(joined):
            if other.text == span.text and other.stop == span.start:
                joined[place] = Span(span.text, other.start, span.stop)
                break
        else:
            joined.append(span)
    return tuple(joined)
