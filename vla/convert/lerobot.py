"""LeRobot datasets 2.0, 2.1 and 3.0, read in place: parquet rows, and pictures in mp4 files or in the rows themselves.

    2.x  data/chunk-000/episode_000007.parquet     videos/chunk-000/<camera>/episode_000007.mp4
    3.0  data/chunk-000/file-000.parquet           videos/<camera>/chunk-000/file-000.mp4, many episodes in each

Layout: huggingface/lerobot, src/lerobot/datasets/utils.py (3.0) and lerobot/common/datasets/utils.py (2.x). Columns keep LeRobot's names
(`observation.state`, `action`), pictures too (`observation.images.top`); the texts are `task`, and `subtask` where there is one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.convert.lerobot_meta import BOOKKEEPING, EpisodeRow, Info, read_episodes, read_texts
from vla.convert.raw import Clip, Encoded, Feature, RawEpisode, Reader, Size, Unreadable
from vla.convert.safe import inside, reading_parquet, require, video_facts
from vla.errors import Damaged, SchemaError, UnknownName

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 64
"""Rows read at a time: with pictures in the rows, a megabyte each is possible."""
MAX_ROW_GROUP_BYTES = 8 << 30
"""A row group that claims to be larger unpacked is refused before it is read."""
MAX_EPISODE_BYTES = 4 << 30
CLOCK_TOLERANCE_S = 1e-4
"""Timestamps this close to step / rate are step / rate, stored in single precision: LeRobot's own tolerance for a timestamp."""


class LeRobot(Reader):
    """A LeRobot folder. A part is a parquet file: one episode in 2.x, several in 3.0.

    `rate_hz` is exact: 29.97 is 30000/1001. Pictures in videos come as `Clip`s whose times lie in the middle of the frame that
    LeRobot takes (the nearest one), so that no rounding moves them to a neighbour. `names` says what each number of a column is.
    `texts`: name -> a column of task indices, as GR00T's datasets have them (`annotation.human.action.task_description`).
    """

    def __init__(self, folder: str | Path, texts: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder)
        self.info = Info.read(self.folder)
        self.texts = dict(texts or {})
        for name, column in self.texts.items():
            if column not in self.info.features:
                raise UnknownName("column", column, self.info.features, f"`texts` of the reader names it for '{name}'.")
        self.rate_hz = self.info.rate_hz

    def __getstate__(self) -> dict[str, Any]:
        kept = ("folder", "info", "rate_hz", "texts", "wanted")  # tables are read again where they are needed
        return {name: value for name, value in vars(self).items() if name in kept}

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Column -> the names of its numbers, where the dataset gives them."""
        return {name: feature.names for name, feature in self.info.features.items() if feature.names}

    def features(self) -> Sequence[Feature]:
        found = []
        for name, feature in self.info.features.items():
            if name not in BOOKKEEPING:
                found.append(Feature(name, feature.kind, feature.dtype, feature.shape))
        return [*found, *(Feature(name, "text") for name in (*self._texts, *self.texts))]

    def size(self) -> Size:
        files = {path for kind in ("data", "videos") for path in (self.folder / kind).rglob("*") if path.is_file()}
        return Size(sum(path.stat().st_size for path in files), self.info.episodes, self.info.steps)

    def part_bytes(self, part: str) -> int:
        return inside(self.folder, self.info.data(self._rows[part][0])).stat().st_size

    def parts(self) -> Sequence[str]:
        return list(self._rows)

    def episodes(self, part: str) -> Iterator[RawEpisode | Unreadable]:
        rows = self._rows.get(part)
        if rows is None:
            raise SchemaError(f"{self.folder} has no part '{part}'")
        stream = _Rows(inside(self.folder, self.info.data(rows[0])))
        if problem := self._other_columns(stream):
            yield from (Unreadable(row.id, problem) for row in rows)
            return
        stream.start([name for name in stream.names if self._wants(name) or name in (*BOOKKEEPING, *self.texts.values())])
        for row in rows:
            table = stream.take(row.length, f"episode {row.index}")
            try:
                with reading_parquet(stream.path):
                    episode: RawEpisode | Unreadable = self._episode(row, table, stream.path)
            except (Damaged, SchemaError) as error:  # of this episode: the next may be sound
                episode = Unreadable(row.id, str(error))
            yield episode
        stream.check_end(rows[-1].index)

    @functools.cached_property
    def _rows(self) -> dict[str, list[EpisodeRow]]:
        """Part -> its episodes, in the order in which they lie in the file."""
        parts: dict[str, list[EpisodeRow]] = {}
        for row in read_episodes(self.folder, self.info):
            parts.setdefault(self.info.part(row), []).append(row)
        return parts

    @functools.cached_property
    def _texts(self) -> dict[str, dict[int, str]]:
        return read_texts(self.folder, self.info)

    @functools.cached_property
    def _video_end_s(self) -> dict[str, float]:
        """Video file -> where its last episode ends."""
        end_s: dict[str, float] = {}
        for rows in self._rows.values():
            for row in rows:
                for span in (self.info.video(row, camera) for camera in self.info.cameras):
                    end_s[span.path] = max(end_s.get(span.path, 0.0), span.to_s)
        return end_s

    def _other_columns(self, stream: _Rows) -> str:
        """What info.json declares is what the file holds, neither less nor more; else what is the matter."""
        wanted = {name for name, feature in self.info.features.items() if feature.dtype != "video"}
        missing, extra = sorted(wanted - set(stream.names)), sorted(set(stream.names) - wanted)
        if not missing and not extra:
            return ""
        return f"{stream.path}: columns {missing} missing and {extra} not declared; info.json declares {sorted(wanted)}"

    def _episode(self, row: EpisodeRow, table: pa.Table, path: Path) -> RawEpisode:
        where = f"{path}: episode {row.index}"
        if "episode_index" in table.column_names:
            index = _numbers(table.column("episode_index"), (1,), f"{where} column 'episode_index'")
            if (index != row.index).any():
                raise Damaged(f"{where}: its rows belong to episode {int(index[index != row.index][0])}; the episode table does not fit")
        columns, texts, pictures = {}, self._episode_texts(row, table, where), {}
        for name, feature in self.info.features.items():
            what = f"{where} column '{name}'"
            if not self._wants(name):
                continue
            if feature.dtype == "video":
                pictures[name] = self._clip(row, name, table, where)
            elif feature.dtype == "image":
                pictures[name] = self._images(table.column(name), what)
            elif feature.dtype == "string":
                texts[name] = _strings(table.column(name), what)
            elif name not in BOOKKEEPING:
                columns[name] = _numbers(table.column(name), feature.shape, what)
        facts = {"file": self.info.data(row), "episode_index": row.index, "tasks": list(row.tasks)}
        time_s = self._time_s(table, where)
        return RawEpisode(row.id, row.length, columns, texts, pictures, time_s, facts=facts)

    def _wants(self, name: str) -> bool:
        return self.wanted is None or name in self.wanted

    def _time_s(self, table: pa.Table, where: str) -> np.ndarray:
        regular_s = np.arange(table.num_rows) / float(self.info.rate_hz)
        if "timestamp" not in table.column_names:
            return regular_s
        time_s = _numbers(table.column("timestamp"), (1,), f"{where} column 'timestamp'")[:, 0].astype(np.float64)
        close = np.abs(time_s - regular_s).max(initial=0.0) < CLOCK_TOLERANCE_S
        return regular_s if close else time_s

    def _episode_texts(self, row: EpisodeRow, table: pa.Table, where: str) -> dict[str, Sequence[str]]:
        texts: dict[str, Sequence[str]] = {}
        indexed = [(name, f"{name}_index", listed) for name, listed in self._texts.items()]
        indexed += [(name, column, self._texts["task"]) for name, column in self.texts.items() if self._wants(name)]
        for name, column, listed in indexed:
            if column not in table.column_names:
                texts[name] = list(row.tasks[:1])
                continue
            index = _numbers(table.column(column), (1,), f"{where} column '{column}'")[:, 0]
            unknown = sorted(set(index.tolist()) - set(listed))
            if unknown:
                raise SchemaError(f"{where}: {column} {unknown[0]} is not among the {len(listed)} texts of the dataset")
            steps = [listed[int(i)] for i in index]
            texts[name] = steps[:1] if len(set(steps)) == 1 else steps
        return texts

    def _clip(self, row: EpisodeRow, name: str, table: pa.Table, where: str) -> Clip:
        span, frame_s = self.info.video(row, name), 1 / float(self.info.rate_hz)
        path = inside(self.folder, span.path)
        given_s, needed_s, duration_s = span.to_s - span.from_s, row.length * frame_s, video_facts(path).duration_s or 0.0
        if abs(given_s - needed_s) > frame_s / 2:
            raise Damaged(f"{where}: {row.length} rows last {needed_s:.3f} s; the episode table gives them {given_s:.3f} s of {path}")
        if span.to_s > duration_s + frame_s / 2:
            raise Damaged(f"{where}: {path} lasts {duration_s:.3f} s, shorter than its table, which ends at {span.to_s:.3f} s")
        if span.to_s >= self._video_end_s[span.path] and span.to_s < duration_s - frame_s / 2:
            raise Damaged(f"{where}: {path} lasts {duration_s:.3f} s, longer than its table, which ends at {span.to_s:.3f} s")
        return Clip(np.arange(row.length), path, span.from_s + self._time_s(table, where) + frame_s / 2)

    def _images(self, column: pa.ChunkedArray, where: str) -> Encoded:
        data = []
        for number, item in enumerate(column.to_pylist()):
            stored = item.get("bytes") if isinstance(item, Mapping) else item
            if stored is None and isinstance(item, Mapping) and item.get("path"):
                stored = inside(self.folder, str(item["path"])).read_bytes()
            if not isinstance(stored, bytes):
                raise SchemaError(f"{where} row {number} holds no picture")
            data.append(stored)
        return Encoded(np.arange(len(data)), data)


class _Rows:
    """The rows of a parquet file from first to last, a few at a time."""

    def __init__(self, path: Path) -> None:
        pq = require("pyarrow.parquet")
        self.path = path
        with reading_parquet(path):
            # Checksums are compared where the writer gave some; LeRobot's own writer does not.
            limits = {"thrift_string_size_limit": 64 << 20, "page_checksum_verification": True}
            self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, **limits)
            metadata = self._file.metadata
            for number in range(metadata.num_row_groups):
                claimed = metadata.row_group(number).total_byte_size
                if claimed > MAX_ROW_GROUP_BYTES:
                    raise Damaged(f"{path}: row group {number} claims {claimed} bytes; at most {MAX_ROW_GROUP_BYTES} are read")
            self.names: list[str] = list(self._file.schema_arrow.names)
        self._left: list[pa.RecordBatch] = []

    def start(self, columns: list[str]) -> None:
        with reading_parquet(self.path):
            self._batches = self._file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)

    def take(self, count: int, what: str) -> pa.Table:
        """The next `count` rows. Damaged where the file ends before."""
        pa = require("pyarrow")
        taken, bytes_taken = [], 0
        while count:
            batch = self._left.pop() if self._left else self._next()
            if batch is None:
                raise Damaged(f"{self.path} ends {count} rows before the end of {what}; the table and the file do not fit")
            if batch.num_rows > count:
                self._left.append(batch.slice(count))
                batch = batch.slice(0, count)
            taken.append(batch)
            count -= batch.num_rows
            bytes_taken += batch.nbytes
            if bytes_taken > MAX_EPISODE_BYTES:
                raise Damaged(f"{self.path}: {what} is larger than {MAX_EPISODE_BYTES} bytes")
        return pa.Table.from_batches(taken) if taken else self._file.schema_arrow.empty_table()

    def check_end(self, last: int) -> None:
        batch = self._left.pop() if self._left else self._next()
        if batch is not None and batch.num_rows:
            raise Damaged(f"{self.path} goes on after its last episode, {last}: the episode table is shorter than the file")

    def _next(self) -> pa.RecordBatch | None:
        with reading_parquet(self.path):
            return next(self._batches, None)


def _numbers(column: pa.ChunkedArray, shape: Sequence[int | None], where: str) -> np.ndarray:
    """A column -> (rows, *shape), in the type in which it is stored. SchemaError for nulls, texts, ragged or otherwise wide rows."""
    pa = require("pyarrow")
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no rows at all
        array = pa.array([], type=column.type)
    rows, levels = len(array), 0
    while _is_list(array.type):
        lengths = np.diff(np.asarray(array.offsets)) if not pa.types.is_fixed_size_list(array.type) else np.array([array.type.list_size])
        if array.null_count or len(set(lengths.tolist())) > 1:
            raise SchemaError(f"{where} has rows of {sorted(set(lengths.tolist()))[:4]} numbers; info.json declares {tuple(shape)}")
        array, levels = array.flatten(), levels + 1
    if array.null_count:
        raise SchemaError(f"{where} has {array.null_count} empty cells")
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise SchemaError(f"{where} holds {array.type}, not numbers")
    values = array.to_numpy(zero_copy_only=False)
    if values.size != rows * int(np.prod([size or 1 for size in shape], dtype=np.int64)):
        raise SchemaError(f"{where} has {values.size // max(rows, 1)} numbers a row; info.json declares {tuple(shape)}")
    return values.reshape(rows, *(size or 1 for size in shape))


def _is_list(kind: pa.DataType) -> bool:
    pa = require("pyarrow")
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _strings(column: pa.ChunkedArray, where: str) -> list[str]:
    values = column.to_pylist()
    if not all(isinstance(value, str) for value in values):
        raise SchemaError(f"{where} is declared as text and holds {column.type}")
    return values
