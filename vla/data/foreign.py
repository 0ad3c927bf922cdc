"""Webdataset shards as other projects publish them (one step, or one step and its chunk, per sample), trained on in place.

What their members mean is declared: `vla.data.key_map`.

The shards are read once, in order, and never written to: what is made of them is an index in the cache (`vla.data.remote.Cache`), in the
form of our own shards but for the images, which stay where they are. So order, statistics and checks are those of any dataset.
Steps of an episode may be spread over one tar, and go on in the next.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import simplejpeg
from safetensors.numpy import save

from vla.data import format as fmt
from vla.data.foreign_values import BadValue, array_of, dotted, json_of, text_of
from vla.data.images import orientation
from vla.data.key_map import KeyMap
from vla.data.quarantine import BadSample
from vla.data.reader import Dataset, Pool, ShardFiles
from vla.data.remote import Cache
from vla.data.tarscan import Member, members
from vla.errors import Damaged, SchemaError, UserError

INDEX_VERSION = 2
"""Part of an index's name: another way of indexing makes another one."""
MAX_IMAGE_BYTES = 32 << 20
MAX_BAD_RATE, GRACE = 0.01, 10
"""Share of episodes that may be left out as bad, beyond the first few, before indexing stops."""


def open_foreign(key_map: KeyMap, root: Path, pool: Pool | None = None, cache: Cache | None = None) -> Dataset:
    """The dataset that a key map describes; its index is built where the cache has not all of it for these files (path, size, time of
    change).

    Raises SchemaError, naming shard and sample, for what is not as declared or has no place in a shard; Damaged for a shard that was
    cut, and where more than MAX_BAD_RATE of the episodes are bad.
    """
    cache = cache or Cache.default()
    tars = [path.resolve() for pattern in key_map.shards for path in sorted(_matches(root, pattern, key_map.name))]
    if not tars:
        raise UserError(f"key map '{key_map.name}': no file under {root} matches {', '.join(key_map.shards)}")
    facts = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in tars]
    depends = json.dumps([INDEX_VERSION, repr(key_map), key_map.robot.to_json(), facts], sort_keys=True)
    folder = cache.folder / "foreign" / f"{key_map.name}-{hashlib.sha256(depends.encode()).hexdigest()[:16]}"
    cache.made(folder, lambda: _whole(folder), lambda part: _build(key_map, tars, part))
    return ForeignDataset(folder, fmt.read_manifest(folder), pool or Pool(), tars)


def _matches(root: Path, pattern: str, name: str) -> Iterator[Path]:
    """The files of a pattern, which is relative to the root or begins at `/`."""
    start = Path(Path(pattern).anchor or root)
    try:
        yield from start.glob(str(Path(pattern).relative_to(Path(pattern).anchor)))
    except (ValueError, IndexError) as error:
        raise SchemaError(f"key map '{name}': shards '{pattern}' is no pattern of files ({error})") from error


class ForeignDataset(Dataset):
    """`folder` holds the index; `tars` are the shards themselves."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], pool: Pool, tars: Sequence[Path]) -> None:
        self.tars = tuple(tars)
        super().__init__(folder, manifest, pool)

    def __reduce__(self) -> tuple:
        return ForeignDataset, (self.folder, self.manifest, self.pool, self.tars)

    def record(self, index: int) -> dict[str, Any]:
        """What there is to say of an episode: these shards have no record of their own."""
        facts = {"embodiment": self.info.robot.name if self.info.robot else "", "supervision": self.info.supervision, "info": {}}
        return {**facts, "licence": self.info.licence, "source": str(self.tars[int(self.shard_E[index])].name)}

    def _open_shard(self, number: int, only_index: bool = False) -> ShardFiles:
        return ShardFiles(self.folder / self.shard_names[number], only_index, tar=self.tars[number])

    def _tar_name(self, shard: int) -> str:
        return self.tars[shard].name

    def _check_sizes(self) -> None:
        for path, shard in zip(self.tars, self.manifest["shards"], strict=True):
            for kind, facts in shard["files"].items():
                where = path if kind == "tar" else self.folder / f"{shard['name']}.{kind}"
                size = where.stat().st_size if where.is_file() else None
                if size != facts["bytes"]:
                    raise Damaged(f"{self.info.name}: {where} has {size} bytes, and had {facts['bytes']} when it was indexed")


def _whole(folder: Path) -> bool:
    """Whether the index is there with all of its files; sizes are looked at when it is opened."""
    if not (folder / fmt.MANIFEST).is_file():
        return False
    rows = fmt.read_manifest(folder)["shards"]
    return all((folder / f"{row['name']}.{kind}").is_file() for row in rows for kind in row["files"] if kind != "tar")


@dataclass
class _Step:
    number: int
    frames: list[tuple[int, int, int]]
    state: np.ndarray
    action: np.ndarray
    text: str
    reasoning: str


@dataclass
class _Episode:
    id: str
    group: str  # what it is held out with
    steps: list[_Step] = field(default_factory=list)


@dataclass
class _Books:
    """What indexing has seen: bad episodes by cause, with the first few by name."""

    episodes: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def bad(self, error: BadValue) -> None:
        self.causes[error.cause] += 1
        self.named.append(str(error)) if len(self.named) < 20 else None

    def check(self, name: str, last: bool) -> None:
        bad = sum(self.causes.values())
        if bad and (bad > max(GRACE, MAX_BAD_RATE * self.episodes) or (last and bad == self.episodes)):
            causes = ", ".join(f"{count} {cause}" for cause, count in self.causes.most_common())
            raise Damaged(f"{name}: {bad} of {self.episodes} episodes are bad ({causes}): {'; '.join(self.named[:5])}")


def _build(key_map: KeyMap, tars: Sequence[Path], folder: Path) -> None:
    """One pass over the tars; memory is that of one tar's rows."""
    books, rows = _Books(), []
    open_end: dict[str, tuple[int, int]] = {}  # the episode that may go on in the next tar: steps so far, and the last one's number
    seen: set[int] = set()
    for number, path in enumerate(tars):
        episodes = list(_episodes(key_map, path, books))
        kept = []
        for episode in episodes:
            key = fmt.episode_key(key_map.name, episode.id)
            before = open_end.get(episode.id) if episode is episodes[0] else None
            books.episodes += before is None
            try:
                first = _order(episode, before, key in seen, path)
            except BadValue as error:
                books.bad(error)
                continue
            seen.add(key)
            kept.append((episode, first))
        open_end = {}
        if kept and not key_map.chunk:
            last, first = kept[-1]
            open_end[last.id] = first + len(last.steps), last.steps[-1].number if key_map.step else -1
        books.check(key_map.name, last=False)
        if kept:
            rows.append(_write_shard(key_map, path, folder / fmt.shard_name(number), kept))
        else:
            raise Damaged(
                f"{key_map.name}: {path} holds no good sample with {', '.join(sorted(key_map.wanted))}: {'; '.join(books.named[:3])}"
            )
    books.check(key_map.name, last=True)
    counts = {name: sum(row[name] for row in rows) for name in ("segments", "steps", "anchors", "frames")}
    reasoning = sum(row.get("reasoning", 0) for row in rows)
    info = {**key_map.info().to_json(), "info": {"bad": dict(books.causes), "bad_named": books.named, "unread": dict(books.unread)}}
    manifest = {
        "format_version": 1,
        "info": info,
        "cameras": sorted(key_map.cameras),
        "shards": rows,
        "episodes": len(seen),
        "seconds": sum(row["seconds"] for row in rows),
        **({"reasoning": reasoning} if reasoning else {}),
        **counts,
    }
    manifest["digest"] = fmt.manifest_digest(manifest)
    fmt.write_atomic(folder / fmt.MANIFEST, fmt.to_json(manifest, "manifest"))


def _episodes(key_map: KeyMap, path: Path, books: _Books) -> Iterator[_Episode]:
    """The episodes of one tar in the order in which they begin; those with a bad step are counted and left out."""
    found: dict[str, _Episode] = {}
    spoilt: dict[str, BadValue] = {}
    with path.open("rb") as file:
        for number, (key, group) in enumerate(_groups(path, file, key_map, books)):
            where, name = f"{path.name}: sample '{key}'", f"{path.stem}/{key}"
            try:
                values = _Values(file, group, where)
                group_name = str(values.scalar(key_map.episode)) if key_map.episode else name
                name = name if key_map.chunk else group_name
                step = _step(key_map, values, number)
            except BadValue as error:
                spoilt.setdefault(name, error)
                continue
            found.setdefault(name, _Episode(name, group_name)).steps.append(step)
    for name, error in spoilt.items():
        found.pop(name, None)
        books.episodes += 1
        books.bad(error)
    yield from found.values()


def _groups(path: Path, file: IO[bytes], key_map: KeyMap, books: _Books) -> Iterator[tuple[str, dict[str, Member]]]:
    """Members with the same key that follow each other, as webdataset groups them; those not in the key map are counted."""
    wanted, key, group = key_map.wanted, None, {}
    for member in members(path, file):
        if key is not None and member.key != key:
            yield key, group
            group = {}
        key = member.key
        if member.ext not in wanted:
            books.unread[member.ext] += 1
        elif member.ext in group:
            raise SchemaError(f"{path}: sample '{key}' has two members .{member.ext}")
        else:
            group[member.ext] = member
    if key is not None:
        yield key, group


class _Values:
    """The members of one sample, each read and parsed once."""

    def __init__(self, file: IO[bytes], group: Mapping[str, Member], where: str) -> None:
        self.file, self.group, self.where = file, group, where
        self._json: dict[str, Any] = {}

    def data(self, ext: str, limit: int) -> bytes:
        member = self.group.get(ext)
        if member is None:
            raise BadValue("schema", f"{self.where} has no member .{ext}")
        if member.size > limit:
            raise BadValue("oversize", f"{self.where}: .{ext} has {member.size} bytes; at most {limit} are read")
        self.file.seek(member.offset)
        return self.file.read(member.size)

    def scalar(self, part: Mapping[str, Any]) -> Any:
        return dotted(self.json(part["member"]), part, self.where)

    def json(self, ext: str) -> Any:
        if ext not in self._json:
            self._json[ext] = json_of(self, ext)
        return self._json[ext]


def _step(key_map: KeyMap, values: _Values, number: int) -> _Step:
    frames = []
    for role in sorted(key_map.cameras):
        ext = key_map.cameras[role]
        data = values.data(ext, MAX_IMAGE_BYTES)
        try:
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise BadValue("decode", f"{values.where}: .{ext} is no readable JPEG ({error})") from error
        if height * width > fmt.MAX_PIXELS or colour in ("CMYK", "YCCK"):
            raise BadValue("oversize", f"{values.where}: .{ext} is a {height} x {width} {colour} image")
        try:
            turned = orientation(data)
        except BadSample as error:
            raise BadValue(error.cause, f"{values.where}: .{ext}: {error}") from error
        if turned != 1:  # shown as it is stored, it would lie on its side
            raise BadValue("schema", f"{values.where}: .{ext} is to be turned (EXIF {turned}); store it upright")
        frames.append((values.group[ext].offset, len(data), zlib.crc32(data)))
    robot = key_map.robot
    state = np.concatenate([array_of(values, part) for part in key_map.state], axis=-1)
    action = np.concatenate([array_of(values, part) for part in key_map.action], axis=-1)
    for what, rows, space, rank in (("state", state, robot.state, 1), ("action", action, robot.command, 2 if key_map.chunk else 1)):
        if rows.ndim != rank or rows.shape[-1] != space.size or (not rows.size and space.size):
            raise BadValue("schema", f"{values.where}: {what} of shape {rows.shape}; '{robot.name}' has {space.size} numbers")
        if not np.isfinite(rows).all():
            raise BadValue("nonfinite", f"{values.where}: {what} holds NaN or infinity")
        try:
            space.check(rows, f"{values.where}: {what}")
        except SchemaError as error:
            raise BadValue("schema", str(error)) from error
    if key_map.step is not None:
        number = values.scalar(key_map.step)
        if type(number) is not int or number < 0:
            raise BadValue("schema", f"{values.where}: step {number!r} is no count")
    reasoning = text_of(values, key_map.reasoning) if key_map.reasoning else ""
    return _Step(number, frames, state, action, text_of(values, key_map.instruction), reasoning)


def _order(episode: _Episode, before: tuple[int, int] | None, seen: bool, path: Path) -> int:
    """Sorts the steps; how many steps of the episode lie in the tar before (`before`: their count, and the last one's number, or -1)."""
    episode.steps.sort(key=lambda step: step.number)
    numbers = [step.number for step in episode.steps]
    if seen and before is None:
        raise BadValue("schema", f"{path.name}: episode '{episode.id}' is in an earlier shard too, with others in between")
    if before is not None and before[1] >= 0:
        numbers.insert(0, before[1])
    for last, number in itertools.pairwise(numbers):
        if number != last + 1:
            raise BadValue("schema", f"{path.name}: episode '{episode.id}' goes from step {last} to {number}")
    return before[0] if before is not None else 0


def _write_shard(key_map: KeyMap, path: Path, stem: Path, kept: Sequence[tuple[_Episode, int]]) -> dict[str, Any]:
    """The index and columns of one tar, as `vla.data.writer` lays them out; returns the shard's row of the manifest."""
    C, rate = len(key_map.cameras), key_map.rate_hz
    steps_G = np.array([len(e.steps[0].action) if key_map.chunk else len(e.steps) for e, _ in kept], np.int64)
    anchors_G = np.array([len(e.steps) for e, _ in kept], np.int64)
    first_G = np.array([first for _, first in kept], np.int64)
    frame_rows = np.concatenate([np.array([s.frames[c] for s in e.steps], np.int64).reshape(-1, 3) for e, _ in kept for c in range(C)])
    frame_step = np.concatenate([np.arange(len(e.steps)) for e, _ in kept for _ in range(C)])
    texts: dict[str, int] = {}
    spans, span_count = [], []
    reasons, reason_count = [], []
    for (episode, _), n in zip(kept, steps_G, strict=True):
        own = _spans([texts.setdefault(step.text, len(texts)) for step in episode.steps], int(n))
        spans += own
        span_count.append(len(own))
        said = _spans([texts.setdefault(step.reasoning, len(texts)) if step.reasoning else -1 for step in episode.steps], int(n))
        said = [span for span in said if span[2] >= 0]
        reasons += said
        reason_count.append(len(said))
    names = [episode.id for episode, _ in kept]
    segments = [name if first == 0 else f"{name}-{first}" for name, first in zip(names, first_G, strict=True)]
    index = {
        "key": np.array([fmt.episode_key(key_map.name, episode.group) for episode, _ in kept], np.uint64),
        "steps": steps_G,
        "first_step": first_G,
        "rate": np.tile(np.array([[rate.numerator, rate.denominator]], np.int64), (len(kept), 1)),
        "anchor_end": np.cumsum(anchors_G),
        "anchor": np.concatenate([np.arange(n) for n in anchors_G]).astype(np.int32),
        "span_end": np.cumsum(span_count, dtype=np.int64),
        "span": np.array(spans, np.int64).reshape(-1, 3),
        "frame_end": np.cumsum(np.repeat(anchors_G, C)).reshape(-1, C),
        "frame_step": frame_step.astype(np.int32),
        "frame_offset": frame_rows[:, 0],
        "frame_size": frame_rows[:, 1].astype(np.int32),
        "frame_crc": frame_rows[:, 2].astype(np.uint32),
    }
    if reasons:
        index |= {"reason": np.array(reasons, np.int64), "reason_end": np.cumsum(reason_count, dtype=np.int64)}
    for name, strings in (("id", segments), ("parent", names), ("text", list(texts))):
        index[name], index[f"{name}_end"] = _blob(strings)
    if key_map.chunk:
        state = np.concatenate([np.repeat(e.steps[0].state[None], n, axis=0) for (e, _), n in zip(kept, steps_G, strict=True)])
        action = np.concatenate([e.steps[0].action for e, _ in kept])
    else:
        state, action = (np.stack([getattr(s, kind) for e, _ in kept for s in e.steps]) for kind in ("state", "action"))
    time_s = np.concatenate([(np.arange(n) + first) / float(rate) for n, first in zip(steps_G, first_G, strict=True)])
    files = {}
    for kind, arrays in (("index", index), ("columns", {"time_s": time_s, "state": state, "action": action})):
        data = save({name: np.ascontiguousarray(values) for name, values in arrays.items()})
        fmt.write_atomic(Path(f"{stem}.{kind}"), data)
        files[kind] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {
        "name": stem.name,
        "segments": len(kept),
        "steps": int(steps_G.sum()),
        "anchors": int(anchors_G.sum()),
        "frames": len(frame_rows),
        "seconds": float(steps_G.sum() / rate),
        **({"reasoning": len(reasons)} if reasons else {}),
        "files": {**files, "tar": {"bytes": path.stat().st_size}},
    }


def _spans(texts: Sequence[int], steps: int) -> list[tuple[int, int, int]]:
    """Runs of the same text as (start, stop, text); the last reaches to the end."""
    cuts = [0, *(i for i in range(1, len(texts)) if texts[i] != texts[i - 1])]
    return [(start, stop, texts[start]) for start, stop in zip(cuts, [*cuts[1:], steps], strict=True)]


def _blob(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(part) for part in encoded], dtype=np.int64)
