"""A LeRobot folder with videos as a dataset to train from, without converting it.

Numbers, texts and where each frame is shown are written once into a side index (a few hundred bytes a step), by the same card and
mapping as `vla convert`; pictures stay in the folder's videos and are decoded by seek when they are drawn. That costs several
milliseconds a frame where a shard costs a fraction of one: for looking at data and for small runs. A long run wants shards.

    sources:                    # in a mixture file
      - lerobot: raw/pusht      # under the data root
        card: pusht.yaml        # beside the mixture, or the name of a card
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from vla.convert.card import Card
from vla.convert.fields import BadEpisode
from vla.convert.lerobot import LeRobot
from vla.convert.mapping import Mapper, check_against
from vla.convert.pictures import turn
from vla.convert.raw import Clip, RawEpisode, Unreadable
from vla.convert.report import MAX_BAD
from vla.convert.safe import inside
from vla.convert.strict import build
from vla.convert.vocabulary import Camera
from vla.data import format as fmt
from vla.data.quarantine import GRACE, BadSample, TooManyBad
from vla.data.reader import CameraTable, Dataset, Pool, StoredEpisode
from vla.data.remote import Cache
from vla.data.video import image_at
from vla.errors import Damaged, UserError
from vla.types import Episode, Frames, Span, VideoFrames

INDEX_VERSION = 1
"""Part of an index's name: another way of indexing makes another one."""
_FLAT = {"time_s": "<f8", "state": "<f8", "action": "<f8", "frame_step": "<i8", "frame_file": "<i4", "frame_time_s": "<f8", "text": "|u1"}
"""Arrays of the index, each in a file of its own, an episode after the other; their widths and lengths stand in the manifest."""


def open_in_place(folder: str | Path, card: Card, cache: Cache | None = None, pool: Pool | None = None) -> InPlace:
    """The dataset; its index is built where the cache has not all of it for this card and these files (path, size, time of change).

    UserError where pictures do not lie in videos (those in the rows cannot be reached one by one: convert them). TooManyBad past 1%.
    """
    folder, cache = Path(folder).resolve(), cache or Cache.default()
    index = cache.folder / "lerobot" / f"{card.name}-{_fingerprint(folder, card)[:16]}"
    cache.made(index, lambda: _whole(index), lambda part: _build(folder, card, part))
    return InPlace(folder, index, pool or Pool())


class InPlace(Dataset):
    """What `Dataset` is to shards, for videos where they lie. `folder` holds the index, `videos` is the LeRobot folder. `frame` gives a
    `Shot`, which decodes like a stored frame."""

    def __init__(self, videos: Path, folder: Path, pool: Pool) -> None:
        manifest = fmt.read_manifest(folder)
        self.videos, self.folder, self.manifest, self.pool = videos, folder, manifest, pool
        self.info = fmt.DatasetInfo.from_json(manifest["info"])
        self.digest = manifest["digest"]
        self.cameras = tuple(manifest["cameras"])
        self.video = {}
        self.shard_names = [shard["name"] for shard in manifest["shards"]]
        declared = manifest["info"]["info"]["card"]["cameras"]
        self._views = {role: build(Camera, declared[role], f"camera '{role}'") for role in self.cameras}
        self._flat = {name: self._open(name, *shape) for name, shape in manifest["flat"].items()}
        rows = {name: np.array(values) for name, values in manifest["table"].items()}
        self.key_E, self.steps_E = rows["key"].astype(np.uint64), rows["steps"].astype(np.int64)
        self.anchors_E, self.shard_E = rows["anchors"].astype(np.int64), rows["part"].astype(np.int32)
        self._step_end = np.cumsum(self.steps_E)
        self._frame_end = np.cumsum(rows["frames"].reshape(-1), dtype=np.int64)
        self._text_end = np.cumsum(rows["text"], dtype=np.int64)

    def __reduce__(self) -> tuple:
        return InPlace, (self.videos, self.folder, self.pool)

    def frame_of(self, episode: StoredEpisode, camera: str, number: int) -> Any:
        table = episode.cameras[camera]
        path = inside(self.videos, self.manifest["files"][int(table.shard[number])])
        where = f"{self.info.name}: episode {episode.index} camera '{camera}' frame {number}"
        return Shot(path, float(table.offset[number]), self._views[camera], where)

    def read(self, index: int) -> Episode:
        raise UserError(f"{self.info.name} is read in place: `vla convert lerobot {self.videos}` makes shards of it first")

    def record(self, index: int) -> dict[str, Any]:
        return self._about(index)

    def _open_shard(self, number: int, only_index: bool = False) -> Any:
        """The numbers of a part, as those who read shard by shard take them."""
        first = int(self.steps_E[self.shard_E < number].sum())  # parts follow each other
        return _Part(self._flat, first, np.cumsum(self.steps_E[self.shard_E == number]))

    def _load(self, index: int) -> StoredEpisode:
        about = self._about(index)
        low, high = (int(self._step_end[index - 1]) if index else 0), int(self._step_end[index])
        cameras, anchors = {}, None
        for number, camera in enumerate(self.cameras):
            row = index * len(self.cameras) + number
            rows = slice(int(self._frame_end[row - 1]) if row else 0, int(self._frame_end[row]))
            step, file, time_s = (np.array(self._flat[f"frame_{name}"][rows, 0]) for name in ("step", "file", "time_s"))
            none = np.zeros(len(step), np.int32)
            cameras[camera] = CameraTable(step, file, time_s, none, none)
            anchors = step if anchors is None else np.intersect1d(anchors, step, assume_unique=True)
        return StoredEpisode(
            index=index,
            id=about["id"],
            rate_hz=Fraction(about["rate_hz"]),
            time_s=_row(self._flat["time_s"], low, high)[:, 0],
            state=_row(self._flat["state"], low, high) if "state" in self._flat else None,
            action=_row(self._flat["action"], low, high) if "action" in self._flat else None,
            anchors=anchors if anchors is not None else np.zeros(0, np.int64),
            cameras=cameras,
            spans=tuple(Span(*span) for span in about["spans"]),
            reasons=tuple(Span(*span) for span in about.get("reasons", ())),
        )

    def _about(self, index: int) -> dict[str, Any]:
        rows = slice(int(self._text_end[index - 1]) if index else 0, int(self._text_end[index]))
        return json.loads(self._flat["text"][rows, 0].tobytes())

    def _open(self, name: str, length: int, width: int) -> np.ndarray:
        path, dtype = self.folder / f"{name}.bin", np.dtype(_FLAT[name])
        if not path.is_file() or path.stat().st_size != length * width * dtype.itemsize:
            raise Damaged(f"{path} is missing or has another size than its manifest says; remove {self.folder}, and it is made again")
        return np.memmap(path, dtype, "r", shape=(length, width)) if length * width else np.zeros((length, width), dtype)


@dataclass(frozen=True)
class _Part:
    """What `vla.data.reader.ShardFiles` has of numbers: `step_end`, the end of each episode, and `columns`."""

    flat: Mapping[str, np.ndarray]
    first: int
    step_end: np.ndarray

    def columns(self, name: str, start: int, stop: int) -> np.ndarray | None:
        return _row(self.flat[name], self.first + start, self.first + stop) if name in self.flat else None


@dataclass(frozen=True)
class Shot:
    """A frame that is still in its video. `decode` is what `vla.data.images.decode_frame` calls."""

    path: Path
    time_s: float
    camera: Camera
    where: str

    def decode(self, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (H, W, 3), turned and cropped as the card says, in `out` if that has its shape. BadSample if it does not decode."""
        try:
            image = image_at(self.path, self.time_s)
        except Damaged as error:
            raise BadSample("decode", f"{self.where}: {error}") from error
        if self.camera.colour == "bgr":
            image = image[..., ::-1]
        image = turn(image, self.camera.flip, self.camera.rotate)
        if self.camera.crop is not None:
            top, left, height, width = self.camera.crop
            if top + height > image.shape[0] or left + width > image.shape[1]:
                shape = f"{image.shape[0]} x {image.shape[1]}"
                raise BadSample("schema", f"{self.where}: {shape} pixels; crop {list(self.camera.crop)} does not lie inside")
            image = image[top : top + height, left : left + width]
        if out is None or out.shape != image.shape:
            return np.ascontiguousarray(image)
        out[...] = image
        return out


class _Numbers(Mapper):
    """A mapper that leaves pictures where they are: `shots` is, per camera of the last episode, (steps, file, times in it)."""

    shots: dict[str, tuple[np.ndarray, Path, np.ndarray]]

    def frames(self, raw: RawEpisode, keep: np.ndarray) -> dict[str, Frames | VideoFrames]:
        self.shots = {}
        for role, camera in self.card.cameras.items():
            clip, seen, steps = self.chosen(raw, keep, role)
            if not isinstance(clip, Clip):
                raise UserError(f"{self.card.name}: the pictures of '{camera.column}' lie in the rows: convert them by `vla convert`")
            self.shots[role] = (steps, clip.path, clip.time_s[seen])
        return {}


def _whole(index: Path) -> bool:
    """Whether the index is there with all of its files; sizes are looked at when it is opened."""
    return (index / fmt.MANIFEST).is_file() and all((index / f"{name}.bin").is_file() for name in fmt.read_manifest(index)["flat"])


def _build(folder: Path, card: Card, index: Path) -> None:
    reader = LeRobot(folder, **card.reader)
    check_against(card, reader.features())
    reader.wanted = card.wanted
    manifest = _Builder(folder, card, reader, index).run()
    manifest["digest"] = fmt.manifest_digest(manifest)
    fmt.write_atomic(index / fmt.MANIFEST, fmt.to_json(manifest, "manifest"))


class _Builder:
    """One pass over the rows; arrays go to disk as they come."""

    def __init__(self, folder: Path, card: Card, reader: LeRobot, out: Path) -> None:
        self.folder, self.card, self.reader, self.out = folder, card, reader, out
        self.mapper = _Numbers(card, rate_hz=reader.rate_hz)
        self.cameras = tuple(sorted(card.cameras))
        self.files: dict[str, int] = {}
        self.rows: dict[str, list] = {name: [] for name in ("key", "steps", "anchors", "part", "frames", "text")}
        self.flat: dict[str, list[int]] = {}
        self.bad: Counter[str] = Counter()
        self.seconds, self.tried, self.reasoning = 0.0, 0, 0
        self._open: dict[str, IO[bytes]] = {}

    def run(self) -> dict[str, Any]:
        parts = list(self.reader.parts())
        try:
            for number, part in enumerate(parts):
                for raw in self.reader.episodes(part):
                    self._take(raw, number)
        finally:
            for file in self._open.values():
                file.close()
        if not self.rows["steps"]:
            raise UserError(f"{self.folder} gave no episode that the card '{self.card.name}' keeps")
        return {
            "format_version": fmt.FORMAT_VERSION,
            "info": self.card.dataset_info().to_json(),
            "cameras": list(self.cameras),
            "shards": [{"name": part, "files": {"rows": {"bytes": size}}} for part, size in zip(parts, self._bytes(parts), strict=True)],
            "files": list(self.files),
            "flat": self.flat,
            "table": self.rows,
            "episodes": len(self.rows["steps"]),
            "steps": sum(self.rows["steps"]),
            "anchors": sum(self.rows["anchors"]),
            "seconds": self.seconds,
            "bad": dict(self.bad),
            **({"reasoning": self.reasoning} if self.reasoning else {}),
        }

    def _bytes(self, parts: list[str]) -> list[int]:
        """What each part comes to with its share of the videos, which parts have together."""
        videos = sum((self.folder / file).stat().st_size for file in self.files)
        rows = [self.reader.part_bytes(part) for part in parts]
        return [size + videos * (number + 1) // len(parts) - videos * number // len(parts) for number, size in enumerate(rows)]

    def _take(self, raw: RawEpisode | Unreadable, part: int) -> None:
        self.tried += 1
        try:
            if isinstance(raw, Unreadable):
                raise BadEpisode("damaged", raw.detail)
            mapped = self.mapper.episode(raw)
            if mapped.episode is not None:
                self._add(_checked(mapped.episode), part)
        except BadEpisode as error:
            self.bad[error.cause] += 1
            if self.bad.total() > max(GRACE, MAX_BAD * self.tried):
                raise TooManyBad(f"{self.folder}: {self.bad.total()} of {self.tried} episodes are bad; the last: {error}") from error

    def _add(self, episode: Episode, part: int) -> None:
        common: np.ndarray | None = None
        for camera in self.cameras:
            step, path, time_s = self.mapper.shots[camera]
            file = self.files.setdefault(path.relative_to(self.folder).as_posix(), len(self.files))
            for name, values in (("step", step), ("file", np.full(len(step), file)), ("time_s", time_s)):
                self._put(f"frame_{name}", values[:, None])
            self.rows["frames"].append(len(step))
            common = step if common is None else np.intersect1d(common, step, assume_unique=True)
        for name, rows in (("time_s", episode.time_s[:, None]), ("state", episode.state), ("action", episode.action)):
            if rows is not None:
                self._put(name, rows)
        spans, reasons = ([[s.text, s.start, s.stop] for s in some] for some in (episode.instructions, episode.reasoning))
        about = {"id": episode.id, "rate_hz": str(episode.rate_hz), "spans": spans, "info": dict(episode.info)}
        about |= {"reasons": reasons} if reasons else {}
        self.reasoning += len(reasons)
        text = np.frombuffer(fmt.to_json(about, f"episode '{episode.id}'"), np.uint8)
        self._put("text", text[:, None])
        self.rows["key"].append(fmt.episode_key(self.card.name, episode.id))
        self.rows["steps"].append(episode.steps)
        self.rows["anchors"].append(0 if common is None else len(common))
        self.rows["part"].append(part)
        self.rows["text"].append(len(text))
        self.seconds += float(episode.steps / episode.rate_hz)

    def _put(self, name: str, values: np.ndarray) -> None:
        if name not in self._open:
            self._open[name] = (self.out / f"{name}.bin").open("wb")
            self.flat[name] = [0, values.shape[1]]
        self._open[name].write(np.ascontiguousarray(values, _FLAT[name]).tobytes())
        self.flat[name][0] += len(values)


def _checked(episode: Episode) -> Episode:
    """What `vla.data.admit` asks of an episode, as far as its numbers go."""
    for name, values in (("time", episode.time_s), ("state", episode.state), ("action", episode.action)):
        if values is not None and not np.isfinite(values).all():
            raise BadEpisode("nonfinite", f"episode '{episode.id}': {name} holds NaN or infinity")
    if (np.diff(episode.time_s) <= 0).any():
        raise BadEpisode("time", f"episode '{episode.id}': the clock does not rise")
    return episode


def _fingerprint(folder: Path, card: Card) -> str:
    """Of the card, and of the names, sizes and times of change of the dataset's files."""
    robot = card.robot.to_json() if card.robot else None
    digest = hashlib.sha256(fmt.to_json([INDEX_VERSION, dict(card.data), robot, str(folder)], "card"))
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        about: Mapping[str, Any] = {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "ns": path.stat().st_mtime_ns,
        }
        digest.update(fmt.to_json(about, "file"))
    return digest.hexdigest()


def _row(values: np.ndarray, low: int, high: int) -> np.ndarray:
    rows = np.array(values[low:high])
    rows.flags.writeable = False
    return rows
