"""What a dataset folder holds, byte by byte; the writer and the reader both stand on this page.

    dataset.json               manifest: format_version, info, cameras, shards with bytes and sha256; written last, atomically
    shard-00000.tar            webdataset groups, one per episode (or segment of a long one)
        <id>.episode.json      instructions (and reasoning, if any) with spans, rate, supervision, licence, source
        <id>.steps.npz         time_s, state.<field>, action.<field>: float64, physical units, frames as recorded
        <id>.<camera>.jpgs     table of steps and offsets, then the JPEGs
        <id>.<camera>.mp4      or a video in short groups (`vla/data/gop.py`); the steps of its frames stand in steps.npz
    dataset.segments           with 16 shards or more: key, steps, anchors, first_step of all groups, so that opening reads one file
    shard-00000.index          safetensors: where every member and every frame lies, with checksums
    shard-00000.columns        safetensors: time_s, state, action of all steps, flat (opening an npz costs more than a JPEG)

Steps in a group, its spans and its index rows count from the start of the segment. Version 2 is version 1 and video: a dataset
without any is written as version 1, byte for byte. Where episodes have reasoning, the manifest says how many spans (`reasoning`) and the
index has them beside the instructions'; readers from before pass over it, so that it needs no version.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla.embodiment import Embodiment, Space
from vla.errors import Damaged, SchemaError, UserError
from vla.types import SUPERVISION, Frames, Supervision, VideoFrames

FORMAT_VERSION = 2
SEGMENTS_FROM = 16
"""Shards from which on a dataset has the file of that name."""
MANIFEST, SEGMENTS = "dataset.json", "dataset.segments"
VIDEO_CODEC = "h264"
"""What video in shards is coded as; the manifest names it per camera, so that another may come."""
MAX_JSON_BYTES = 64 << 20
"""No manifest or episode record is larger; a file that claims to be is hostile or damaged."""
MAX_PIXELS = 32_000_000
"""Refused before decoding: a 30,000 px square image would take 2.7 GB."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_JPGS_MAGIC = b"VLAJPGS1"
_DTYPES = {"F64": "<f8", "I64": "<i8", "I32": "<i4", "U64": "<u8", "U32": "<u4", "U8": "|u1"}


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a whole dataset, stored by value in its manifest.

    `embodiment`: `Embodiment.to_json()`, or None for video of no robot of ours. `action_space`, `state_space`: the spaces the
    rows were *recorded* in (`Space.to_json()`); left out, they are the embodiment's `command` and `state` where there is one and
    any supervision (tracks and hands are actions of `human_tracks` and `human_hands`), and absent otherwise. `info`: JSON-able facts
    for people (yields, seeds); training never reads it.
    """

    name: str
    embodiment: Mapping[str, Any] | None = None
    action_space: Sequence[Mapping] | None = None
    state_space: Sequence[Mapping] | None = None
    licence: str = "unknown"
    supervision: Supervision = "actions"
    notes: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "dataset name")
        if self.supervision not in SUPERVISION:
            raise SchemaError(f"{self.name}: supervision '{self.supervision}'; choose one of {SUPERVISION}")
        robot = self.robot
        if self.supervision == "actions" and robot is None:
            raise SchemaError(f"{self.name}: supervision 'actions' needs the embodiment whose actions these are")
        if self.supervision != "none" and robot is not None:  # tracks and hands are the actions of an embodiment of their own
            object.__setattr__(self, "action_space", self.action_space or robot.command.to_json())
            object.__setattr__(self, "state_space", self.state_space or robot.state.to_json())
        if self.supervision == "none" and (self.action_space or self.state_space):
            raise SchemaError(f"{self.name}: supervision 'none' stores neither actions nor state")

    @property
    def robot(self) -> Embodiment | None:
        return Embodiment.from_json(self.embodiment) if self.embodiment is not None else None

    @property
    def recorded_action(self) -> Space | None:
        return Space.from_json(self.action_space) if self.action_space else None

    @property
    def recorded_state(self) -> Space | None:
        return Space.from_json(self.state_space) if self.state_space else None

    def to_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping) -> DatasetInfo:
        return DatasetInfo(**data)


def check_name(name: str, what: str) -> None:
    """Names become parts of file and member names: letters, digits, `_` and `-`. A dot would split a webdataset group."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError(f"{what} '{name}': use 1 to 80 letters, digits, '_' or '-' (no dot), starting with no '-'")


def episode_key(dataset: str, episode_id: str) -> int:
    """64 bits that depend on the dataset's name and the whole episode's id (never on a segment's)."""
    return int.from_bytes(hashlib.blake2b(f"{dataset}\0{episode_id}".encode(), digest_size=8).digest(), "little")


def is_validation(source: str, episode_id: str, fraction: float) -> bool:
    """Whether an episode is held out: a function of its name alone, so adding data never moves an episode across."""
    return bool(held_out(np.array([episode_key(source, episode_id)], dtype=np.uint64), fraction)[0])


def held_out(key_E: np.ndarray, fraction: float) -> np.ndarray:
    """`is_validation` for many episodes: uint64 keys -> bool."""
    if not 0 <= fraction < 1:
        raise UserError(f"validation fraction {fraction} must be in [0, 1)")
    return (key_E >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction


def pack_frames(frames: Frames) -> tuple[bytes, np.ndarray]:
    """Frames -> (the bytes of a member before its JPEGs, which follow one after the other; offsets (n + 1,) of each from the member's
    start)."""
    sizes = np.array([len(jpeg) for jpeg in frames.jpeg], dtype=np.int64)
    head = len(_JPGS_MAGIC) + 8 + 8 * len(sizes) + 8 * (len(sizes) + 1)
    offset = head + np.concatenate([[0], np.cumsum(sizes)]).astype("<i8")
    return _JPGS_MAGIC + struct.pack("<q", len(sizes)) + frames.step.astype("<i8").tobytes() + offset.tobytes(), offset


def unpack_frames(data: bytes) -> Frames:
    """The whole member of `pack_frames`, read; every length is checked before it is used."""
    if data[:8] != _JPGS_MAGIC or len(data) < 24:
        raise Damaged("not a .jpgs member: wrong magic or too short")
    (count,) = struct.unpack_from("<q", data, 8)
    if count < 0 or 16 + 8 * (2 * count + 1) > len(data):
        raise Damaged(f".jpgs member of {len(data)} bytes cannot hold {count} frames")
    step = np.frombuffer(data, "<i8", count, 16)
    offset = np.frombuffer(data, "<i8", count + 1, 16 + 8 * count)
    if offset[0] != 16 + 8 * (2 * count + 1) or offset[-1] != len(data) or (np.diff(offset) < 0).any():
        raise Damaged(".jpgs member whose offsets do not fit its length")
    return Frames(step.copy(), tuple(data[a:b] for a, b in itertools.pairwise(offset)))


@dataclass(frozen=True)
class Member:
    """What one camera of a segment is stored as. `pieces`: its bytes, not joined, since that would copy every picture; `start`, `size`:
    where each frame's lie in them; `key`: the frame at which decoding of it begins, None for JPEG, where that is itself. `head`: what a
    video's decoder needs besides."""

    pieces: tuple[bytes, ...]
    start: np.ndarray
    size: np.ndarray
    key: np.ndarray | None = None
    head: bytes = b""

    def frames(self) -> Iterator[bytes | memoryview]:
        """The bytes of each frame in turn."""
        if self.key is None:
            return iter(self.pieces[1:])
        view = memoryview(self.pieces[0])
        return (view[low : low + size] for low, size in zip(self.start.tolist(), self.size.tolist(), strict=True))


def pack_camera(frames: Frames | VideoFrames) -> Member:
    """The member of a camera's frames, JPEG or video."""
    if isinstance(frames, Frames):
        head, offset = pack_frames(frames)
        return Member((head, *frames.jpeg), offset[:-1], np.diff(offset))
    from vla.data.gop import packet_table

    table = packet_table(frames.mp4)
    return Member((frames.mp4,), table.start, table.size, table.key, table.head)


def pack_columns(columns: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays -> npz bytes, the same for the same input (no clock, no objects)."""
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]  # zipfile dates members 1980-01-01, so bytes repeat
    return buffer.getvalue()


def named_columns(time_s: np.ndarray, rows: Mapping[str, tuple[Space | None, np.ndarray | None]]) -> dict[str, np.ndarray]:
    """{"state": (space, (n, P)), ...} -> {"time_s": ..., "state.<field>": (n, size), ...}."""
    columns = {"time_s": np.asarray(time_s, np.float64)}
    for kind, (space, values) in rows.items():
        if space is not None and values is not None:
            columns.update({f"{kind}.{name}": part for name, part in space.unpack(values).items()})
    return columns


def read_header(path: Path) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int]], dict[str, str]]:
    """A safetensors file's table {name: (dtype, shape, byte offset in the file)} and metadata, to read parts of it alone."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > min(size, MAX_JSON_BYTES):
            raise Damaged(f"{path}: header of {length} bytes in a file of {size}; the file is damaged")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise Damaged(f"{path}: unreadable header ({error})") from error
    metadata = header.pop("__metadata__", {})
    table = {}
    for name, entry in header.items():
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if stop - start != dtype.itemsize * int(np.prod(shape, dtype=np.int64)) or 8 + length + stop > size:
            raise Damaged(f"{path}: array '{name}' does not fit the file; the file is truncated or damaged")
        table[name] = (dtype, shape, 8 + length + start)
    return table, metadata


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset folder. UserError where there is none, Damaged where its own digest does not hold."""
    path = folder / MANIFEST
    if not path.is_file():
        hint = "It is unfinished: resume or remove it." if folder.is_dir() and any(folder.glob("shard-*")) else ""
        raise UserError(f"{folder} is no dataset: it has no {MANIFEST}. {hint}".rstrip())
    if path.stat().st_size > MAX_JSON_BYTES:
        raise Damaged(f"{path} is larger than any manifest ({path.stat().st_size} bytes)")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = int(manifest["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is damaged: {error}. Restore it from where the dataset came from.") from error
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}; this program reads up to {FORMAT_VERSION}. Update it.")
    if manifest.get("digest") != manifest_digest(manifest):
        raise Damaged(f"{path} was altered: its digest does not hold. Restore it from where the dataset came from.")
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of everything but the digest itself, in canonical JSON: the dataset's fingerprint."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or none of it, on disk before it has its name. The mode follows the umask."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def to_json(value: Any, what: str) -> bytes:
    """Canonical JSON. NaN, infinity and types that JSON has not are refused with `what` named."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{what} is not plain JSON: {error}") from error


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def member_names(episode_id: str, cameras: Sequence[str], video: Container[str] = ()) -> Iterator[str]:
    """The members of a group, in the order in which they are written and indexed. `video`: the cameras stored as mp4."""
    yield f"{episode_id}.episode.json"
    yield f"{episode_id}.steps.npz"
    for camera in cameras:
        yield f"{episode_id}.{camera}.{'mp4' if camera in video else 'jpgs'}"
