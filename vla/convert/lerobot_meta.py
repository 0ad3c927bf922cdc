"""The meta folder of a LeRobot dataset: what it declares, its episodes and texts. Nothing in it is trusted with a path or a size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vla.convert.safe import fill, inside, reading_parquet, require
from vla.data.format import MAX_JSON_BYTES
from vla.errors import Damaged, SchemaError, UserError

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index")
"""Columns that LeRobot keeps for itself; they become the clock, the episode and its texts."""
VERSIONS = ("2.0", "2.1", "3.0")
MAX_LINE_BYTES = 16 << 20
MAX_EPISODES = 10_000_000
_DATA_PATH = {
    "2": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "3": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
_VIDEO_PATH = {
    "2": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "3": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


@dataclass(frozen=True)
class Declared:
    """One feature of info.json. `shape` is of one step; `names` are those of a vector's numbers."""

    dtype: str
    shape: tuple[int | None, ...]
    names: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return {"video": "pictures", "image": "pictures", "string": "text"}.get(self.dtype, "column")


@dataclass(frozen=True)
class Info:
    """meta/info.json. `major`: "2" or "3"."""

    version: str
    rate_hz: Fraction
    features: Mapping[str, Declared]
    episodes: int
    steps: int
    chunk_episodes: int
    data_path: str
    video_path: str

    @property
    def major(self) -> str:
        return self.version[0]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those whose pictures lie in videos."""
        return tuple(name for name, feature in self.features.items() if feature.dtype == "video")

    def part(self, row: EpisodeRow) -> str:
        """The name of the parquet file that holds an episode."""
        return row.id if self.major == "2" else f"chunk-{row.chunk:03d}-file-{row.file:03d}"

    def data(self, row: EpisodeRow) -> str:
        """That file, relative to the dataset."""
        return fill(self.data_path, self._place(row.chunk, row.file))

    def video(self, row: EpisodeRow, camera: str) -> VideoSpan:
        if self.major == "2":
            path = fill(self.video_path, {**self._place(row.chunk, row.file), "video_key": camera})
            return VideoSpan(path, 0.0, row.length / float(self.rate_hz))
        chunk, file, from_s, to_s = row.spans[self.cameras.index(camera)]
        return VideoSpan(fill(self.video_path, {**self._place(chunk, file), "video_key": camera}), from_s, to_s)

    def _place(self, chunk: int, file: int) -> dict[str, int | str]:
        names = ("episode_chunk", "episode_index") if self.major == "2" else ("chunk_index", "file_index")
        return dict(zip(names, (chunk, file), strict=True))

    @staticmethod
    def read(folder: Path) -> Info:
        path = folder / "meta" / "info.json"
        if not path.is_file():
            raise UserError(f"{folder} is no LeRobot dataset: it has no meta/info.json")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise Damaged(f"{path} is larger than any info.json ({path.stat().st_size} bytes)")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = str(data["codebase_version"]).removeprefix("v")
            if version not in VERSIONS:
                raise UserError(f"{path}: LeRobot format {version}; this reads {', '.join(VERSIONS)}")
            features = {str(name): _declared(name, row, path) for name, row in data["features"].items()}
            return Info(
                version,
                exact_rate(data["fps"]),
                features,
                int(data["total_episodes"]),
                int(data["total_frames"]),
                max(int(data.get("chunks_size") or 1000), 1),
                str(data.get("data_path") or _DATA_PATH[version[0]]),
                str(data.get("video_path") or _VIDEO_PATH[version[0]]),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SchemaError(f"{path} lacks or misuses {error}") from error
        except UserError:
            raise
        except ValueError as error:
            raise Damaged(f"{path} is damaged: {error}") from error


@dataclass(frozen=True)
class VideoSpan:
    """Seconds from_s <= t < to_s of the file at `path` (relative to the dataset)."""

    path: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """Where an episode lies, in few bytes, for there may be a million. 3.0: `chunk`, `file` of its rows, and (chunk, file, from_s, to_s)
    in the videos of each camera; 2.x: one file of each for itself, so that `file` is its index."""

    index: int
    length: int
    tasks: tuple[str, ...]
    chunk: int
    file: int
    spans: tuple[tuple[int, int, float, float], ...] = ()

    @property
    def id(self) -> str:
        return f"episode-{self.index:06d}"


def exact_rate(fps: Any) -> Fraction:
    """Frames a second as a rational: "30000/1001" as written, 29.97 as 30000/1001, 12.5 as 25/2."""
    if isinstance(fps, str) and "/" in fps:
        rate_hz = Fraction(fps)
    else:
        value = float(fps)
        whole = round(value * 1.001)
        ntsc = Fraction(whole * 1000, 1001)
        rate_hz = ntsc if value != round(value) and abs(value - float(ntsc)) < 0.005 else Fraction(str(fps))
    if not 0 < rate_hz <= 100_000:
        raise SchemaError(f"info.json: fps {fps} is no frame rate")
    return rate_hz


def read_episodes(folder: Path, info: Info) -> Iterator[EpisodeRow]:
    """The episodes in order of their rows. Damaged where their number or length is not what info.json says."""
    count = steps = 0
    for row in _legacy_episodes(folder, info) if info.major == "2" else _parquet_episodes(folder, info):
        if row.length < 0:
            raise Damaged(f"{folder}: episode {row.index} has length {row.length}")
        count, steps = count + 1, steps + row.length
        if count > MAX_EPISODES:
            raise Damaged(f"{folder}: more than {MAX_EPISODES} episodes")
        yield row
    if (count, steps) != (info.episodes, info.steps):
        raise Damaged(f"{folder}: the episode table has {count} episodes of {steps} rows; info.json says {info.episodes} of {info.steps}")


def read_texts(folder: Path, info: Info) -> dict[str, dict[int, str]]:
    """{"task": {task_index: text}}, and "subtask" where the dataset has them."""
    if info.major == "2":
        try:
            return {"task": {int(row["task_index"]): str(row["task"]) for row in _lines(folder / "meta" / "tasks.jsonl")}}
        except (KeyError, TypeError) as error:
            raise SchemaError(f"{folder}: meta/tasks.jsonl has a row without {error}") from error
    texts = {"task": _parquet_texts(folder, "task")}
    if "subtask_index" in info.features:
        texts["subtask"] = _parquet_texts(folder, "subtask")
    return texts


def _declared(name: str, row: Mapping[str, Any], path: Path) -> Declared:
    shape = tuple(int(size) for size in row.get("shape") or (1,))
    if any(size < 1 for size in shape) or len(shape) > 5:
        raise SchemaError(f"{path}: feature '{name}' has shape {shape}")
    names = row.get("names")
    if isinstance(names, Mapping):  # {"motors": ["waist", ...]}
        names = next(iter(names.values()), None)
    listed = tuple(map(str, names)) if isinstance(names, list) and len(names) == shape[0] and len(shape) == 1 else ()
    return Declared(str(row["dtype"]), shape, listed)


def _legacy_episodes(folder: Path, info: Info) -> Iterator[EpisodeRow]:
    same: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in _lines(folder / "meta" / "episodes.jsonl"):
        try:
            index, length = int(row["episode_index"]), int(row["length"])
            tasks = tuple(map(str, row.get("tasks") or ()))
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(f"{folder}: meta/episodes.jsonl has a row without {error}") from error
        yield EpisodeRow(index, length, same.setdefault(tasks, tasks), index // info.chunk_episodes, index)


def _parquet_episodes(folder: Path, info: Info) -> Iterator[EpisodeRow]:
    """In the order of their rows in the data, whatever that of the table."""
    own = ("episode_index", "length", "tasks", "dataset_from_index", "data/chunk_index", "data/file_index")
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    films = [[f"videos/{name}/{part}" for part in parts] for name in info.cameras]
    files = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise Damaged(f"{folder}: meta/episodes holds no parquet file")
    same: dict[tuple[str, ...], tuple[str, ...]] = {}
    found: list[tuple[int, EpisodeRow]] = []
    for path in files:
        for row in _parquet_rows(inside(folder, str(path.relative_to(folder))), [*own, *(name for film in films for name in film)]):
            tasks = tuple(map(str, row["tasks"] or ()))
            spans = tuple((int(row[a]), int(row[b]), float(row[c]), float(row[d])) for a, b, c, d in films)
            index, length, first, chunk, file = (int(row[name]) for name in own if name != "tasks")
            found.append((first, EpisodeRow(index, length, same.setdefault(tasks, tasks), chunk, file, spans)))
    found.sort(key=lambda item: item[0])
    return (row for _, row in found)


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table in the meta folder, a few at a time; the other columns (statistics) are not read."""
    pq = require("pyarrow.parquet")
    with reading_parquet(path):
        file = pq.ParquetFile(path, thrift_string_size_limit=MAX_JSON_BYTES)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise SchemaError(f"{path} lacks the columns {missing}")
        if file.metadata.num_rows > MAX_EPISODES:
            raise Damaged(f"{path} claims {file.metadata.num_rows} rows")
        for batch in file.iter_batches(batch_size=1024, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                if any(value is None for value in row.values()):
                    raise SchemaError(f"{path} has empty cells: {[name for name, value in row.items() if value is None]}")
                yield row


def _parquet_texts(folder: Path, name: str) -> dict[int, str]:
    """meta/tasks.parquet: a pandas frame whose index is the text."""
    pq = require("pyarrow.parquet")
    path = inside(folder, f"meta/{name}s.parquet")
    with reading_parquet(path):
        column = next((c for c in (name, "__index_level_0__") if c in pq.read_schema(path).names), name)
    return {int(row[f"{name}_index"]): str(row[column]) for row in _parquet_rows(path, [f"{name}_index", column])}


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """A .jsonl file, a line at a time."""
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Damaged(f"{path}: line {number} is no JSON ({error})") from error
            if not isinstance(row, Mapping):
                raise Damaged(f"{path}: line {number} is no object")
            yield row
