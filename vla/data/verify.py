"""Whether a dataset's bytes are those its manifest vouches for: every problem by name, none in silence."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vla.data import format as fmt
from vla.data.reader import Dataset, ShardFiles
from vla.data.sums import crc32
from vla.errors import Damaged

Kind = Literal["missing", "truncated", "overlong", "altered", "unlisted"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong: `file` in the dataset folder, `member` of the tar where that can be told."""

    kind: Kind
    file: str
    member: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}{f' [{self.member}]' if self.member else ''}: {self.kind}: {self.detail}"

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def verify(folder: str | Path, full: bool = True, threads: int = 2) -> list[Problem]:
    """Compares a dataset folder with its manifest: sizes always, every byte (sha256) if `full`.

    A damaged tar is searched by its index, so that the members hit are named. UserError if there is no dataset at all;
    a damaged manifest is itself a problem in the list.
    """
    folder = Path(folder)
    try:
        manifest = fmt.read_manifest(folder)
    except Damaged as error:
        return [Problem("altered", fmt.MANIFEST, "", str(error))]
    listed = {f"{shard['name']}.{kind}" for shard in manifest["shards"] for kind in shard["files"]}
    extra = sorted(path.name for path in folder.glob("shard-*") if path.name not in listed)
    problems = [Problem("unlisted", name, "", "not in the manifest; remove it if nobody knows it") for name in extra]
    if facts := manifest.get("segments_file"):
        problems += _file(folder / fmt.SEGMENTS, facts, full)
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda shard: list(_shard(folder, shard, manifest, full)), manifest["shards"]):
            problems.extend(found)
    return problems


def verify_frames(dataset: Dataset) -> Iterator[Problem]:
    """Every picture against the checksum in the index: for shards without a manifest (`vla.data.foreign`), whose bytes have no other."""
    for index in range(len(dataset)):
        episode = dataset.episode(index)
        for camera, table in episode.cameras.items():
            for number in range(len(table.step)):
                try:
                    dataset.frame_of(episode, camera, number)
                except Damaged as error:
                    yield Problem("altered", f"episode '{episode.id}'", f"{camera}, frame {number}", str(error))


def _shard(folder: Path, shard: dict[str, Any], manifest: dict[str, Any], full: bool) -> Iterator[Problem]:
    hurt = []
    for kind, facts in sorted(shard["files"].items()):
        for problem in _file(folder / f"{shard['name']}.{kind}", facts, full):
            yield problem
            hurt.append(kind)
    if "tar" in hurt and "index" not in hurt and (folder / f"{shard['name']}.tar").is_file():
        yield from _members(folder / shard["name"], manifest)


def _file(path: Path, facts: dict[str, Any], full: bool) -> Iterator[Problem]:
    """What is wrong with one file as a whole."""
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        yield Problem("missing", path.name, "", f"{facts['bytes']} bytes are gone; copy the file again")
    elif size != facts["bytes"]:
        verdict: Kind = "truncated" if size < facts["bytes"] else "overlong"
        yield Problem(verdict, path.name, "", f"{size} bytes, the manifest says {facts['bytes']}; copy the file again")
    elif full and _sha256(path) != facts["sha256"]:
        yield Problem("altered", path.name, "", "its sha256 is not the manifest's; copy the file again")


def _members(stem: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    """The members of a damaged tar that are no longer what the index says, by position and checksum."""
    index = ShardFiles(stem)
    size = Path(f"{stem}.tar").stat().st_size
    for row, member_M3 in enumerate(index.rows("member", 0, len(index.step_end))):
        names = fmt.member_names(index.text("id", row), manifest["cameras"], manifest.get("video", {}))
        for name, (offset, length, crc) in zip(names, member_M3, strict=True):
            if offset + length > size:
                yield Problem("truncated", f"{stem.name}.tar", name, f"ends at {size} of {offset + length} bytes")
            elif crc32(index.pread("tar", int(length), int(offset))) != crc:
                yield Problem("altered", f"{stem.name}.tar", name, "its bytes are not those written")
            elif not _header_names(index.pread("tar", 512, int(offset) - 512), name, int(length)):
                yield Problem("altered", f"{stem.name}.tar", name, "its tar header is not the one written")


def _header_names(header: bytes, name: str, length: int) -> bool:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.TarError, ValueError):
        return False
    return (info.name, info.size, info.type) == (name, length, tarfile.REGTYPE)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
