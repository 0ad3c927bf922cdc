"""Episodes in, a dataset folder out. Nothing is a dataset before it is closed, and everything stored was checked."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from vla.data import format as fmt
from vla.data import gather
from vla.data.admit import anchors, check_episode
from vla.data.segments import Segment, segments
from vla.data.sums import crc32
from vla.errors import SchemaError, UserError
from vla.types import Episode, Frames, VideoFrames

class ShardWriter:
    """`with ShardWriter(folder, info) as writer: writer.add(episode)`. The same episodes give the same bytes.

    The manifest is written when the block ends without an error; before that, `Dataset.open` refuses the folder. After a
    kill, `resume=True` keeps the complete shards: `has(id)` says which episodes need not come again. Episodes larger than
    `max_shard_bytes` are stored in segments; the reader joins them.
    """

    def __init__(self, folder: str | Path, info: fmt.DatasetInfo, max_shard_bytes: int = 64 << 20, resume: bool = False) -> None:
        self.folder, self.info, self.max_shard_bytes = Path(folder), info, max_shard_bytes
        self._action, self._state = info.recorded_action, info.recorded_state
        self._cameras: tuple[str, ...] | None = None
        self._video: dict[str, str] = {}  # camera -> codec
        self._keys: set[int] = set()
        self._groups: set[int] = set()  # group names, which are unique too: a segment `x-0` must not meet an episode `x-0`
        self._shards: list[dict[str, Any]] = []
        self._uncommitted: list[_Shard] = []
        self._open: _Shard | None = None
        self._prepare(resume)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    @property
    def episodes(self) -> int:
        """Episodes stored so far, resumed ones included."""
        return len(self._keys)

    def has(self, episode_id: str) -> bool:
        """Whether this episode is already stored (by this writer, or by the one it resumes)."""
        return fmt.episode_key(self.info.name, episode_id) in self._keys

    def keys(self) -> frozenset[int]:
        """`episode_key` of every stored episode, for processes that ask `has` far from here."""
        return frozenset(self._keys)

    def info_update(self, **facts: Any) -> None:
        """Adds facts for people (yields, seeds, versions) to the manifest's `info.info`."""
        fmt.to_json(facts, "info")
        self.info = replace(self.info, info={**self.info.info, **facts})

    def add(self, episode: Episode) -> None:
        """Stores one episode; SchemaError, with the episode named, if it is not what the dataset declares."""
        if self._cameras is None and episode.frames:
            for camera in episode.frames:
                fmt.check_name(camera, "camera")
            self._cameras = tuple(sorted(episode.frames))
            self._video = _video(episode)
        if self.has(episode.id):
            raise SchemaError(f"{self.info.name}: episode '{episode.id}' was already added; ids must be unique")
        check_episode(episode, self.info, self._cameras or ())
        if _video(episode) != self._video:
            raise SchemaError(
                f"{self.info.name}: episode '{episode.id}' has video from {sorted(_video(episode))}; the first had it from "
                f"{sorted(self._video)}. A camera is JPEG or video in all of a dataset."
            )
        parts = list(segments(episode, self.max_shard_bytes))
        names = {fmt.episode_key(self.info.name, part.episode.id) for part in parts}
        if names & self._groups:
            raise SchemaError(f"{self.info.name}: episode '{episode.id}': its name, or one of a segment of it, is taken")
        self._groups |= names
        for part in parts:
            group = self._group(part)
            if self._open and self._open.rows and self._open.bytes + group.bytes > self.max_shard_bytes:
                self._uncommitted.append(self._open)
                self._open = None
            if not self._open:
                number = len(self._shards) + len(self._uncommitted)
                self._open = _Shard(self.folder / fmt.shard_name(number), self._cameras or (), self._video)
            self._open.append(group)
        self._keys.add(fmt.episode_key(self.info.name, episode.id))
        if self._open and self._open.rows[0].segment.index == 0:
            self._commit()  # else the open shard holds the rest of an episode that the ones before it begin

    def close(self) -> None:
        """Writes the manifest. A dataset without any episode is refused: it is always a mistake."""
        if not self._keys:
            self.abandon()
            raise UserError(f"{self.folder}: no episode was added; a dataset cannot be empty")
        if self._open:
            self._uncommitted.append(self._open)
            self._open = None
        self._commit()
        counts = {key: sum(shard[key] for shard in self._shards) for key in ("segments", "steps", "anchors", "frames")}
        reasoning = sum(shard.get("reasoning", 0) for shard in self._shards)
        manifest = {
            "format_version": 2 if self._video else 1,
            "info": self.info.to_json(),
            "cameras": list(self._cameras or ()),
            **({"video": self._video} if self._video else {}),
            "shards": self._shards,
            "episodes": len(self._keys),
            "seconds": sum(shard["seconds"] for shard in self._shards),
            **({"reasoning": reasoning} if reasoning else {}),
            **counts,
        }
        if len(self._shards) >= fmt.SEGMENTS_FROM:
            manifest["segments_file"] = write_segments(self.folder, [shard["name"] for shard in self._shards])
        manifest["digest"] = fmt.manifest_digest(manifest)
        fmt.write_atomic(self.folder / fmt.MANIFEST, fmt.to_json(manifest, "manifest"))

    def abandon(self) -> None:
        """Gives up without a manifest; complete shards stay for `resume=True`."""
        for shard in (*self._uncommitted, *([self._open] if self._open else [])):
            shard.remove()
        self._uncommitted, self._open = [], None

    def _prepare(self, resume: bool) -> None:
        if (self.folder / fmt.MANIFEST).exists():
            raise UserError(f"{self.folder} already holds a finished dataset; choose another folder or remove it")
        self.folder.mkdir(parents=True, exist_ok=True)
        left = sorted(self.folder.glob("shard-*"))
        if left and not resume:
            raise UserError(f"{self.folder} holds an unfinished dataset ({len(left)} files); resume it or remove the folder")
        while (path := self.folder / f"{fmt.shard_name(len(self._shards))}.index").is_file():
            table, metadata = fmt.read_header(path)
            record = json.loads(metadata["shard"])
            data = path.read_bytes()
            parents, groups = (_texts(data, table, name) for name in ("parent", "id"))
            self._keys.update(fmt.episode_key(self.info.name, name) for name in parents)
            self._groups.update(fmt.episode_key(self.info.name, name) for name in groups)
            # Counted again rather than remembered: the index cannot hold its own checksum.
            record["files"]["index"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            self._shards.append(record)
            self._cameras, self._video = tuple(record["cameras"]), record.get("video", {})
        kept = {f"{record['name']}.{kind}" for record in self._shards for kind in record["files"]}
        for leftover in left:
            if leftover.name not in kept:
                leftover.unlink()

    def _commit(self) -> None:
        # Backwards: resuming counts shards from 0 to the first gap, so a kill in here leaves no episode without its end.
        records = [shard.commit() for shard in reversed(self._uncommitted)]
        self._shards += reversed(records)
        self._uncommitted = []

    def _group(self, segment: Segment) -> _Group:
        episode, cameras = segment.episode, self._cameras or ()
        record = {
            "id": episode.id,
            "embodiment": episode.embodiment,
            "rate_hz": str(episode.rate_hz),
            "steps": episode.steps,
            "supervision": episode.supervision,
            "instructions": [{"text": s.text, "start": s.start, "stop": s.stop} for s in episode.instructions],
            "licence": episode.licence if episode.licence != "unknown" else self.info.licence,
            "source": episode.source,
            "segment": {"of": segment.parent, "index": segment.index, "count": segment.count, "first_step": segment.first_step},
            "info": dict(episode.info),
            **({"reasoning": [{"text": s.text, "start": s.start, "stop": s.stop} for s in episode.reasoning]} if episode.reasoning else {}),
        }
        rows = {"state": (self._state, episode.state), "action": (self._action, episode.action)}
        columns = fmt.named_columns(episode.time_s, rows)
        columns |= {f"step.{camera}": np.asarray(episode.frames[camera].step, np.int64) for camera in self._video}
        members = [(fmt.to_json(record, f"episode '{episode.id}'"),), (fmt.pack_columns(columns),)]
        stored = [fmt.pack_camera(episode.frames[camera]) for camera in cameras]
        key = fmt.episode_key(self.info.name, segment.parent)
        names = list(fmt.member_names(episode.id, cameras, self._video))
        return _Group(segment, key, names, [*members, *(member.pieces for member in stored)], stored)


@dataclass(frozen=True)
class _Group:
    segment: Segment
    key: int
    names: list[str]
    members: list[tuple[bytes, ...]]
    stored: list[fmt.Member]

    @property
    def bytes(self) -> int:
        sizes = [sum(map(len, pieces)) for pieces in self.members]
        return sum(512 + size + -size % 512 for size in sizes)


def write_segments(folder: Path, shards: Sequence[str]) -> dict[str, Any]:
    """`dataset.segments`, from the indices of the shards; returns its entry in the manifest."""
    tables: dict[str, list[np.ndarray]] = {"key": [], "steps": [], "anchors": [], "first_step": []}
    for shard in shards:
        index = load((folder / f"{shard}.index").read_bytes())
        index["anchors"] = np.diff(index["anchor_end"], prepend=0)
        for name, rows in tables.items():
            rows.append(index[name])
    data = save({name: np.concatenate(rows) for name, rows in tables.items()})
    fmt.write_atomic(folder / fmt.SEGMENTS, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class _Shard:
    """One shard being written, under `.part` names until `commit`."""

    def __init__(self, stem: Path, cameras: tuple[str, ...], video: Mapping[str, str]) -> None:
        self.stem, self.cameras, self.video, self.bytes = stem, cameras, dict(video), 0
        self.rows: list[_Group] = []  # without their bytes, which are on disk by then
        self._hash = hashlib.sha256()
        self._tar = self._part("tar").open("wb", buffering=0)
        names = ("member", "frame", "crc", "key", "head", "span", "reason", "time_s", "state", "action")
        self._parts: dict[str, list[Any]] = {name: [] for name in names}
        self._texts: dict[str, int] = {}

    def append(self, group: _Group) -> None:
        episode = group.segment.episode
        for number, (name, pieces) in enumerate(zip(group.names, group.members, strict=True)):
            header = tarfile.TarInfo(name)
            header.size = size = sum(map(len, pieces))  # mtime 0, mode 0644, no owner: the same bytes everywhere
            self._write(header.tobuf(tarfile.USTAR_FORMAT))
            crc = 0
            for piece in pieces:
                crc = crc32(piece, crc)
            self._parts["member"].append((self.bytes, size, crc))
            if number >= 2:
                frames = episode.frames[self.cameras[number - 2]]
                member = group.stored[number - 2]
                self._parts["frame"].append(np.stack([frames.step, self.bytes + member.start, member.size], axis=-1))
                self._parts["crc"].append(np.array([crc32(frame) for frame in member.frames()], dtype="<u4"))
                self._parts["key"].append(np.arange(len(member.start)) if member.key is None else member.key)
                self._parts["head"].append(member.head)
            self._write(*pieces, bytes(-size % 512))
        for table, spans in (("span", episode.instructions), ("reason", episode.reasoning)):
            for span in spans:
                self._parts[table].append((span.start, span.stop, self._texts.setdefault(span.text, len(self._texts))))
        for kind, values in (("time_s", episode.time_s), ("state", episode.state), ("action", episode.action)):
            if values is not None:
                self._parts[kind].append(np.asarray(values, dtype="<f8"))
        self.rows.append(replace(group, members=[], stored=[], segment=replace(group.segment, episode=_bare(episode))))

    def commit(self) -> dict[str, Any]:
        """Gives the files their names, the index last, and returns the shard's entry in the manifest."""
        self._write(bytes(1024))
        os.fsync(self._tar.fileno())
        self._tar.close()
        columns = save({kind: np.concatenate(self._parts[kind]) for kind in ("time_s", "state", "action") if self._parts[kind]})
        fmt.write_atomic(self.stem.with_suffix(".columns"), columns)
        os.replace(self._part("tar"), self.stem.with_suffix(".tar"))
        record: dict[str, Any] = {
            "name": self.stem.name,
            "cameras": list(self.cameras),
            **({"video": self.video} if self.video else {}),
            "segments": len(self.rows),
            "steps": sum(group.segment.episode.steps for group in self.rows),
            "anchors": sum(len(anchors(group.segment.episode)) for group in self.rows),
            "frames": sum(map(len, self._parts["frame"])),
            "seconds": sum(float(g.segment.episode.steps / g.segment.episode.rate_hz) for g in self.rows),
            **({"reasoning": len(self._parts["reason"])} if self._parts["reason"] else {}),
            "files": {
                "tar": {"bytes": self.bytes, "sha256": self._hash.hexdigest()},
                "columns": {"bytes": len(columns), "sha256": hashlib.sha256(columns).hexdigest()},
            },
        }
        index = save(self._index(), metadata={"shard": fmt.to_json(record, "shard").decode()})
        fmt.write_atomic(self.stem.with_suffix(".index"), index)
        record["files"]["index"] = {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
        return record

    def remove(self) -> None:
        self._tar.close()
        self._part("tar").unlink(missing_ok=True)

    def _index(self) -> dict[str, np.ndarray]:
        episodes = [group.segment.episode for group in self.rows]
        anchors_E = [anchors(episode) for episode in episodes]
        frames_EC = np.array([[len(e.frames[c].step) for c in self.cameras] for e in episodes], np.int64)
        frame = np.concatenate(self._parts["frame"])
        id_blob, id_end = _blob([episode.id for episode in episodes])
        parent_blob, parent_end = _blob([group.segment.parent for group in self.rows])
        text_blob, text_end = _blob(list(self._texts))
        head_blob, head_end = _blob(self._parts["head"])
        video = {"frame_key": np.concatenate(self._parts["key"]).astype(np.int32), "head": head_blob, "head_end": head_end}
        reason_end = np.cumsum([len(episode.reasoning) for episode in episodes], dtype=np.int64)
        reason = {"reason": np.array(self._parts["reason"], np.int64).reshape(-1, 3), "reason_end": reason_end}
        return {
            **(video if self.video else {}),
            **(reason if self._parts["reason"] else {}),
            "id": id_blob,
            "id_end": id_end,
            "parent": parent_blob,
            "parent_end": parent_end,
            "text": text_blob,
            "text_end": text_end,
            "key": np.array([group.key for group in self.rows], np.uint64),
            "steps": np.array([episode.steps for episode in episodes], np.int64),
            "first_step": np.array([group.segment.first_step for group in self.rows], np.int64),
            "rate": np.array([(e.rate_hz.numerator, e.rate_hz.denominator) for e in episodes], np.int64),
            "anchor_end": np.cumsum([len(steps) for steps in anchors_E], dtype=np.int64),
            "anchor": np.concatenate(anchors_E).astype(np.int32),
            "span_end": np.cumsum([len(episode.instructions) for episode in episodes], dtype=np.int64),
            "span": np.array(self._parts["span"], np.int64).reshape(-1, 3),
            "frame_end": np.cumsum(frames_EC.ravel(), dtype=np.int64).reshape(frames_EC.shape),
            "frame_step": frame[:, 0].astype(np.int32),
            "frame_offset": frame[:, 1].astype(np.int64),
            "frame_size": frame[:, 2].astype(np.int32),
            "frame_crc": np.concatenate(self._parts["crc"]),
            "member": np.array(self._parts["member"], np.int64).reshape(len(self.rows), -1, 3),
        }

    def _write(self, *pieces: bytes) -> None:
        for first in range(0, len(pieces), gather.AT_ONCE):
            some = pieces[first : first + gather.AT_ONCE]
            for piece in some:
                self._hash.update(piece)
            self.bytes += gather.write(self._tar.fileno(), some)

    def _part(self, kind: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{kind}.part")


def _video(episode: Episode) -> dict[str, str]:
    """Camera -> codec, of those stored as video."""
    return {camera: fmt.VIDEO_CODEC for camera, frames in sorted(episode.frames.items()) if isinstance(frames, VideoFrames)}


def _bare(episode: Episode) -> Episode:
    """The episode without its images and rows: what the index still needs."""
    frames = {camera: Frames(every.step, ()) for camera, every in episode.frames.items()}
    return replace(episode, frames=frames, state=None, action=None)


def _blob(texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Strings -> (uint8 bytes of all, int64 end of each)."""
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    end = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), end


def _texts(data: bytes, table: dict, name: str) -> list[str]:
    """The inverse of `_blob`, from an index file's bytes."""
    blob, end = (np.frombuffer(data, dtype, shape[0], start) for dtype, shape, start in (table[name], table[f"{name}_end"]))
    return [blob[a:b].tobytes().decode() for a, b in zip([0, *end[:-1]], end, strict=True)]
