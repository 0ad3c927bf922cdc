"""Our shards as a LeRobot 3.0 dataset, an episode at a time; what LeRobot cannot hold is counted and named.

    meta/info.json  meta/tasks.parquet  meta/stats.json  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet     videos/observation.images.<camera>/chunk-000/file-000.mp4
    meta/card.yaml                      the way back: `vla convert lerobot OUT --card OUT/meta/card.yaml`

Numbers are stored in double precision, as our shards hold them, and the recorded clock stands in a column of its own (`time_s`),
since LeRobot's `timestamp` is step / fps by definition. Layout as `lerobot` 0.4.4 writes and reads it (src/lerobot/datasets/utils.py).
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from vla.convert.lerobot_stats import FeatureStats, sampled
from vla.convert.lerobot_video import VideoFiles, files_of
from vla.convert.safe import require
from vla.data.format import DatasetInfo
from vla.data.images import decode_jpeg, decoded
from vla.embodiment import ROTATION_UNITS, Space
from vla.errors import UserError
from vla.normalize import dimension_names
from vla.types import Episode, Frames

if TYPE_CHECKING:
    import pyarrow as pa

FILES_PER_CHUNK = 1000
DATA_FILE_BYTES = 100 << 20
EPISODES_PER_FILE = 10_000
"""Of the episode table; rows carry the statistics of an episode, some kilobytes each."""
ROWS_TOGETHER = 256


@dataclass(frozen=True)
class Options:
    """`images`: the JPEGs themselves go into the rows, byte for byte, in place of videos. `crf`: quality of x264, less is better."""

    images: bool = False
    crf: int = 20


@dataclass
class Written:
    """What was written, and how often LeRobot could not hold what the shards do (`left`: what -> count)."""

    episodes: int = 0
    steps: int = 0
    left: Counter[str] = field(default_factory=Counter)


class LeRobotWriter:
    """`with LeRobotWriter(out, info, cameras) as writer: writer.add(episode)`. `out` appears when the block ends without an error."""

    def __init__(self, out: Path, info: DatasetInfo, cameras: tuple[str, ...], options: Options = Options()) -> None:
        self.out, self.info, self.cameras, self.options = out, info, cameras, options
        self.part = out.with_name(out.name + ".part")
        for path, what in ((out, "exists"), (self.part, "is left of an export that did not end")):
            if path.exists():
                raise UserError(f"{path} {what}; remove it or choose another folder")
        (self.part / "meta").mkdir(parents=True)
        self.written = Written()
        self.rate_hz: Fraction | None = None
        self._sizes: dict[str, tuple[int, int]] = {}
        self._tasks: dict[str, int] = {}
        self._stats = FeatureStats()
        self._data = _Table(self.part, "data", DATA_FILE_BYTES)
        self._rows = _Table(self.part, "meta/episodes", 1 << 62, EPISODES_PER_FILE)
        self._videos = {} if options.images else {c: VideoFiles(self.part, f"{IMAGES}{c}", options.crf) for c in cameras}

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            for table in (self._data, self._rows, *self._videos.values()):
                table.close()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.part, ignore_errors=True)  # there only after an error

    def add(self, episode: Episode) -> None:
        """UserError, naming the episode, for what no LeRobot dataset can hold: another rate, another size, a camera that begins late."""
        self._check(episode)
        if episode.reasoning:
            self.written.left["episodes with reasoning, which LeRobot has no place for"] += 1
        index, start, stats = self.written.episodes, self.written.steps, FeatureStats()
        rows = self._columns(episode)
        for name, values in rows.items():
            stats.add_rows(name, values)
        cells, spans = {}, {}
        for camera in self.cameras:
            if self.options.images:
                cells[f"{IMAGES}{camera}"] = self._cells(episode, camera, stats)
            else:
                spans[f"{IMAGES}{camera}"] = self._videos[camera].add(self._shown(episode, camera, stats), episode.rate_hz)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": list(dict.fromkeys(span.text for span in episode.instructions)),
            "length": episode.steps,
            **{f"data/{key}": value for key, value in self._data.add(_table(rows, cells)).items()},
            "dataset_from_index": start,
            "dataset_to_index": start + episode.steps,
        }
        row |= {f"videos/{name}/{key}": value for name, span in spans.items() for key, value in span.items()}
        row |= {f"stats/{name}/{key}": value for name, entries in stats.entries().items() for key, value in entries.items()}
        self._rows.add_row(row)
        self._stats.merge(stats)
        self.written.episodes, self.written.steps = index + 1, start + episode.steps

    def _check(self, episode: Episode) -> None:
        where = f"episode '{episode.id}'"
        self.rate_hz = self.rate_hz or episode.rate_hz
        if episode.rate_hz != self.rate_hz:
            raise UserError(f"{where} runs at {episode.rate_hz} Hz, others at {self.rate_hz}: LeRobot has one rate; export them apart")
        for camera in self.cameras:
            step = episode.frames[camera].step
            if not len(step) or step[0]:
                first = f"at step {step[0]}" if len(step) else "nowhere"
                raise UserError(f"{where}: camera '{camera}' begins {first}: LeRobot has a picture at every step")
            size = next(decoded(episode.frames[camera])).shape[:2]
            if self._sizes.setdefault(camera, size) != size:
                raise UserError(f"{where}: camera '{camera}' is {size}, before {self._sizes[camera]}: LeRobot has one; export them apart")
            if not self.options.images and (size[0] % 2 or size[1] % 2):
                raise UserError(f"{where}: camera '{camera}' is {size}: x264 takes even sizes; use --images")

    def _columns(self, episode: Episode) -> dict[str, np.ndarray]:
        frame = np.arange(episode.steps)
        rows = {
            "time_s": np.asarray(episode.time_s, np.float64),
            "timestamp": (frame / float(episode.rate_hz)).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(episode.steps, self.written.episodes),
            "index": frame + self.written.steps,
            "task_index": self._task_index(episode),
        }
        for name, values in (("observation.state", episode.state), ("action", episode.action)):
            if values is not None and values.shape[1]:
                rows[name] = np.asarray(values, np.float64)
        return rows

    def _shown(self, episode: Episode, camera: str, stats: FeatureStats) -> Iterator[np.ndarray]:
        """The picture shown at each step."""
        lasts = self._lasts(episode, camera)
        chosen = sampled(len(lasts))
        for number, (image, steps) in enumerate(zip(decoded(episode.frames[camera]), lasts, strict=True)):
            if number in chosen:
                stats.add_picture(f"{IMAGES}{camera}", image)
            yield from itertools.repeat(image, steps)

    def _cells(self, episode: Episode, camera: str, stats: FeatureStats) -> list[dict[str, Any]]:
        frames, lasts = episode.frames[camera], self._lasts(episode, camera)
        chosen = sorted(sampled(len(lasts)))
        if isinstance(frames, Frames):  # a JPEG that is not described need not be decoded
            shown = map(decode_jpeg, (frames.jpeg[number] for number in chosen))
        else:
            shown = (image for number, image in enumerate(decoded(frames)) if number in chosen)
        for image in shown:
            stats.add_picture(f"{IMAGES}{camera}", image)
        cells: list[dict[str, Any]] = []
        for (suffix, data), steps in zip(files_of(frames), lasts, strict=True):
            cells += [{"bytes": data, "path": f"frame-{len(cells) + more:06d}.{suffix}"} for more in range(steps)]
        return cells

    def _lasts(self, episode: Episode, camera: str) -> list[int]:
        """For how many steps each picture is the last one seen. Those at which it is held are counted."""
        step = np.asarray(episode.frames[camera].step)
        self.written.left[f"steps at which camera '{camera}' holds its last picture"] += episode.steps - len(step)
        return np.diff(step, append=episode.steps).tolist()

    def _task_index(self, episode: Episode) -> np.ndarray:
        """The first instruction valid at each step; LeRobot has one."""
        index, count = np.full(episode.steps, -1), np.zeros(episode.steps, np.int64)
        for span in episode.instructions:
            number = self._tasks.setdefault(span.text, len(self._tasks))
            where = slice(span.start, span.stop)
            index[where] = np.where(index[where] < 0, number, index[where])
            count[where] += 1
        self.written.left["steps with further instructions, of which the first is kept"] += int((count > 1).sum())
        return index

    def _finish(self) -> None:
        if not self.written.episodes:
            raise UserError(f"nothing to write to {self.out}: the dataset has no episode")
        _write_tasks(self.part / "meta" / "tasks.parquet", list(self._tasks))
        _write_json(self.part / "meta" / "stats.json", self._stats.entries())
        _write_json(self.part / "meta" / "info.json", self._info())
        (self.part / "meta" / "card.yaml").write_text(yaml.safe_dump(self._card(), sort_keys=False, allow_unicode=True), encoding="utf-8")
        self.written.left = +self.written.left  # zeros go
        self.part.rename(self.out)

    def _info(self) -> dict[str, Any]:
        assert self.rate_hz is not None
        fps = int(self.rate_hz) if self.rate_hz.denominator == 1 else float(self.rate_hz)
        features: dict[str, Any] = {}
        for camera in self.cameras:
            height, width = self._sizes[camera]
            entry: dict[str, Any] = {"dtype": "image" if self.options.images else "video", "shape": [height, width, 3]}
            entry["names"] = ["height", "width", "channels"]
            if not self.options.images:
                entry["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": fps,
                    "video.channels": 3,
                    "has_audio": False,
                }
            features[f"{IMAGES}{camera}"] = entry
        for name, space in (("observation.state", self.info.recorded_state), ("action", self.info.recorded_action)):
            if space is not None and space.size:
                features[name] = {"dtype": "float64", "shape": [space.size], "names": dimension_names(space)}
        for name, dtype in _OWN.items():
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return {
            "codebase_version": "v3.0",
            "robot_type": (self.info.embodiment or {}).get("name"),
            "total_episodes": self.written.episodes,
            "total_frames": self.written.steps,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_BYTES >> 20,
            "video_files_size_in_mb": VideoFiles.FILE_BYTES >> 20,
            "fps": fps,
            "splits": {"train": f"0:{self.written.episodes}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None if self.options.images else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features,
        }

    def _card(self) -> dict[str, Any]:
        """The card that reads it back: what each number means, which LeRobot itself has no place for."""
        card: dict[str, Any] = {
            "name": self.info.name,
            "title": self.info.name,
            "homepage": "unknown",
            "licence": self.info.licence,
            "citation": "unknown",
            "facts": ["the manifest of the shards that this was exported from"],
            "format": "lerobot",
            "source": {"name": self.info.name, "version": "3.0", "episodes": self.written.episodes, "steps": self.written.steps},
            "embodiment": (self.info.embodiment or {}).get("name"),
            "rate_hz": str(self.rate_hz),
            "supervision": self.info.supervision,
            "cameras": {camera: {"from": f"{IMAGES}{camera}"} for camera in self.cameras},
            "instruction": {"from": "task", "missing": "empty"},
            "time": {"from": "time_s", "unit": "s"},
        }
        robot = self.info.robot
        if robot is not None and (absent := set(robot.cameras) - set(self.cameras)):
            card["absent"] = dict.fromkeys(sorted(absent), "not in the shards")
        for key, column, space in (
            ("state", "observation.state", self.info.recorded_state),
            ("action", "action", self.info.recorded_action),
        ):
            if space is not None and space.size:
                card[key] = {name: self._field(key, name, column, where, space) for name, where in space.slices().items()}
        return card

    def _field(self, key: str, name: str, column: str, where: slice, space: Space) -> dict[str, Any]:
        entry: dict[str, Any] = {"from": column, "slice": [where.start, where.stop]}
        own, robot = space.field(name), self.info.robot
        if own.unit == "open01":
            entry["gripper"] = {"open": 1, "closed": 0}
        if own.unit in ROTATION_UNITS:
            entry["rotation"] = "rot6d_columns" if own.unit == "rot6d" else own.unit
        if robot is None:
            entry["field"] = {"size": own.size, "unit": own.unit}
        if key == "action" and own.frame != "from_state" and (robot is None or robot.command.field(name).frame != own.frame):
            entry["frame"] = own.frame
        return entry


IMAGES = "observation.images."
_OWN = {
    "time_s": "float64",
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


class _Table:
    """Parquet files chunk-000/file-000.parquet, ... below a folder; a table added goes into one of them whole. Rows say which is theirs."""

    def __init__(self, root: Path, folder: str, file_bytes: int, file_rows: int = 1 << 62) -> None:
        self.root, self.folder, self.file_bytes, self.file_rows = root, folder, file_bytes, file_rows
        self._writer: Any = None
        self._number, self._bytes, self._rows = -1, 0, 0
        self._waiting: list[dict[str, Any]] = []

    def add(self, table: pa.Table) -> dict[str, int]:
        """Where it went: {chunk_index, file_index}."""
        self._room_for(table)
        self._write(table)
        return self.place

    def _room_for(self, table: pa.Table) -> None:
        """Begins the next file where the table would make this one too large."""
        if self._writer is not None and (self._bytes + table.nbytes > self.file_bytes or self._rows + len(table) > self.file_rows):
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._number, self._bytes, self._rows = self._number + 1, 0, 0

    def _write(self, table: pa.Table) -> None:
        pq = require("pyarrow.parquet")
        if self._writer is None:
            path = self.root / self.folder / "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".format(**self.place)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema, compression="snappy", write_page_checksum=True)
        self._writer.write_table(table)
        self._bytes, self._rows = self._bytes + table.nbytes, self._rows + len(table)

    @property
    def place(self) -> dict[str, int]:
        return {"chunk_index": self._number // FILES_PER_CHUNK, "file_index": self._number % FILES_PER_CHUNK}

    def add_row(self, row: dict[str, Any]) -> None:
        self._waiting.append(row)
        if len(self._waiting) >= ROWS_TOGETHER:
            self._flush()

    def _flush(self) -> None:
        pa = require("pyarrow")
        if self._waiting:
            schema = self._writer.schema if self._writer is not None else None
            self._room_for(pa.Table.from_pylist(self._waiting))
            theirs = {f"{self.folder}/{key}": value for key, value in self.place.items()}
            self._write(pa.Table.from_pylist([{**row, **theirs} for row in self._waiting], schema))
            self._waiting = []

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _table(rows: Mapping[str, np.ndarray], cells: Mapping[str, list[dict[str, Any]]]) -> pa.Table:
    pa = require("pyarrow")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {name: pa.array(pictures, kind) for name, pictures in cells.items()}
    for name, values in rows.items():
        if values.ndim == 1 or values.shape[1] == 1:  # LeRobot takes a shape of (1,) for a number, and cannot read it as a list of one
            columns[name] = pa.array(values.reshape(-1))
        else:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
    return pa.table(columns)


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """A pandas frame whose index is the text, without pandas."""
    pa, pq = require("pyarrow"), require("pyarrow.parquet")
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    columns = [{"name": n, "field_name": n, "pandas_type": p, "numpy_type": d, "metadata": None} for n, p, d in kinds]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), path)


def _write_json(path: Path, data: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=4, allow_nan=False, ensure_ascii=False)
