"""Dataset folders at URLs, read through a bounded local cache.

    dataset = open_dataset("s3://bucket/bridge")       # or gs://, https://, hf://, file://, memory://; or a local folder
    Cache(folder, limit_bytes)                          # $VLA_CACHE and $VLA_CACHE_GB by default

What is opened at once is the manifest and the shards' indices; a shard comes when a sample of it is first needed. Each file is compared
with the manifest's sha256 while it arrives, has its name only when it is whole, and is fetched once however many processes share
the cache. Those used least recently go when the limit is passed, and no others: an index that was made here of data elsewhere
(`made`) stays, which is small and does not come back by fetching. A source larger than the cache needs a `window` of shards in its
mixture, or shards would come and go with every sample.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vla.data import format as fmt
from vla.data.reader import Dataset, Pool, ShardFiles
from vla.errors import Damaged, UnknownName, UserError

SCHEMES = ("abfs", "az", "file", "gcs", "gs", "hf", "http", "https", "memory", "s3")
"""What is fetched from. Not among them: anything that runs a command (`pipe:`) or reads one URL through another (`::`)."""
CACHE_VARIABLE, LIMIT_VARIABLE = "VLA_CACHE", "VLA_CACHE_GB"
LIMIT_GB = 100.0
ATTEMPTS, FIRST_PAUSE_S = 6, 0.5
"""A transient error is tried again after 0.5, 1, 2, 4, 8 s."""
_KINDS = ("index", "columns", "tar")
_SHARD_NAME = re.compile(r"shard-\d{5,9}")
_PART_BYTES = 1 << 20
_unique = itertools.count()


class Unreachable(UserError):
    """A remote file that could not be fetched; the message names source, URL and cause."""

    exit_code = 1


def is_url(place: str | Path) -> bool:
    """Whether a dataset's place is a URL: then it must be one of a kind that is fetched from. UserError for any other."""
    text = str(place)
    scheme, colon, _ = text.partition(":")
    if not isinstance(place, str) or not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return False
    if "::" in text or scheme not in SCHEMES or not text.startswith(f"{scheme}://"):
        raise UnknownName("kind of URL", text, (f"{name}://" for name in SCHEMES), "Nothing else is opened, and no URL through another.")
    return True


def open_dataset(place: str | Path, pool: Pool | None = None, cache: Cache | None = None) -> Dataset:
    """A dataset in a folder or at a URL. Raises what `Dataset.open` raises, and Unreachable."""
    if not is_url(place):
        return Dataset.open(place, pool)
    cache = cache or Cache.default()
    url = str(place).rstrip("/")
    return RemoteDataset(url, cache, *_manifest(url, cache), pool or Pool())


@dataclass(frozen=True)
class Cache:
    """A folder for files from elsewhere, of at most `limit_bytes`; `pause` waits between attempts (seconds)."""

    folder: Path
    limit_bytes: int
    pause: Callable[[float], None] = time.sleep

    @staticmethod
    def default() -> Cache:
        """In $VLA_CACHE, by default `vla` in the user's cache folder; $VLA_CACHE_GB large, by default LIMIT_GB."""
        folder = os.environ.get(CACHE_VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla"
        text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_GB))
        try:
            limit_gb = float(text)
        except ValueError:
            limit_gb = 0.0
        if not 0 < limit_gb < float("inf"):
            raise UserError(f"{LIMIT_VARIABLE}={text!r}: give the size of the cache in gigabytes, such as {LIMIT_GB:g}")
        return Cache(Path(folder), int(limit_gb * 1e9))

    def bring(self, url: str, name: str, size: int, sha256: str, what: str) -> Path:
        """The file `name` (relative, in the cache) with the bytes of `url`, fetched if it is not there. Several processes may ask.

        Raises Unreachable, or Damaged where the bytes are not those of `sha256`, with `what` (the source) in front.
        """
        path = self.folder / name
        if _touched(path, size):
            return path
        if size > self.limit_bytes:
            raise UserError(f"{what}: {url} has {size:,} bytes, more than the whole cache ({self.limit_bytes:,}). Set {LIMIT_VARIABLE}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.locked(hashlib.sha256(name.encode()).hexdigest()[:2]):
            if _touched(path, size):  # another process was first
                return path
            part = path.with_name(f"{path.name}.{os.getpid()}-{next(_unique)}.part")
            try:
                self._fetch(url, part, size, sha256, what)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        self._trim(path)
        return path

    def made(self, folder: Path, whole: Callable[[], bool], make: Callable[[Path], None]) -> None:
        """Has `make` fill a folder of this cache, once however many processes ask, and again where a file of it is gone (`whole`).

        What else lies there, such as statistics and latent codes, stays; the manifest comes last.
        """
        if whole():
            return
        with self.locked(folder.name):
            if whole():  # another process was first
                return
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            try:
                make(part)
                folder.mkdir(exist_ok=True)
                for path in sorted(part.iterdir(), key=lambda path: path.name == fmt.MANIFEST):
                    os.replace(path, folder / path.name)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def read_small(self, url: str, limit: int, what: str) -> bytes:
        """A small file's bytes, not kept. Damaged if it has more than `limit`."""

        def read() -> bytes:
            with _opened(url) as file:
                return file.read(limit + 1)

        data = self._tried(read, url, what)
        if len(data) > limit:
            raise Damaged(f"{what}: {url} has more than {limit:,} bytes; it is no manifest")
        return data

    def _fetch(self, url: str, part: Path, size: int, sha256: str, what: str) -> None:
        def copy() -> None:
            digest, got = hashlib.sha256(), 0
            with _opened(url) as source, part.open("wb") as target:
                while data := source.read(_PART_BYTES):
                    got += len(data)
                    if got > size:
                        raise _Cut(f"has more than the {size:,} bytes of the manifest")
                    digest.update(data)
                    target.write(data)
            if got < size:
                raise _Cut(f"ended after {got:,} of {size:,} bytes")
            if digest.hexdigest() != sha256:
                raise _Cut("has bytes that are not those of the manifest (sha256)")

        self._tried(copy, url, what)

    def _tried(self, work: Callable[[], Any], url: str, what: str) -> Any:
        """The work's answer; again, after a pause, for errors that pass. A file that is not there does not come by waiting."""
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work()
            except _Cut as error:
                if attempt == ATTEMPTS:
                    raise Damaged(f"{what}: {url} {error}, {ATTEMPTS} times over. It is not the file that the manifest names.") from error
            except network_errors() as seen:
                hidden = seen.__cause__  # fsspec calls every failure to ask for a size a file that is not there
                error = hidden if isinstance(seen, FileNotFoundError) and isinstance(hidden, network_errors()) else seen
                status = getattr(error, "status", None) or getattr(error, "code", None)
                final = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError))
                final = final or (isinstance(status, int) and 400 <= status < 500 and status not in (408, 429))
                if final or attempt == ATTEMPTS:
                    tries = "" if final else f" in {ATTEMPTS} attempts"
                    cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    raise Unreachable(f"{what}: {url} could not be read{tries} ({cause})") from seen
            self.pause(pause_s)
            pause_s *= 2
        raise AssertionError("unreachable")

    def _trim(self, keep: Path) -> None:
        """Removes what was fetched (`<dataset>/shard-*`) and used longest ago until the limit holds. Files that are open stay readable
        for who has them open."""
        with self.locked("trim"):
            rows = []
            for path in self.folder.glob("*/shard-*"):
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    continue
                stale = path.suffix == ".part" and time.time() - facts.st_mtime > 24 * 3600  # left by a process that was killed
                rows.append((0.0 if stale else facts.st_mtime, facts.st_size, path))
            held = sum(size for _, size, _ in rows)
            for used, size, path in sorted(rows):
                if (held <= self.limit_bytes and used) or path == keep or (path.suffix == ".part" and used):
                    continue
                path.unlink(missing_ok=True)
                held -= size

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """One process at a time; the name is a file's."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # gone with the process, so a killed one blocks nobody
            yield


class RemoteDataset(Dataset):
    """A dataset at a URL. `folder` is its place in the cache, where statistics and latent codes of it are kept too."""

    def __init__(self, url: str, cache: Cache, manifest: Mapping[str, Any], folder: Path, pool: Pool) -> None:
        self.url, self.cache = url, cache
        super().__init__(folder, manifest, pool)

    def __reduce__(self) -> tuple:
        return open_dataset, (self.url, self.pool, self.cache)

    @property
    def bytes(self) -> int:
        return sum(facts["bytes"] for shard in self.manifest["shards"] for facts in shard["files"].values())

    def _check_sizes(self) -> None:
        """Nothing lies here yet; every file is compared with the manifest as it arrives."""

    def _open_shard(self, number: int, only_index: bool = False) -> ShardFiles:
        for _ in range(10):
            for kind in ("index",) if only_index else _KINDS:
                self._bring(number, kind)
            try:
                files = ShardFiles(self.folder / self.shard_names[number], only_index)
            except FileNotFoundError:  # another process needed the room in between
                continue
            self.pool.let_go_of_removed()
            return files
        fix = f"a shard is removed before it can be opened. Set {LIMIT_VARIABLE}."
        raise UserError(f"{self.info.name}: the cache {self.cache.folder} is too small: {fix}")

    def _segments_file(self) -> Path:
        facts = self.manifest["segments_file"]
        place, what = f"{self.folder.name}/{fmt.SEGMENTS}", f"source '{self.info.name}'"
        return self.cache.bring(f"{self.url}/{fmt.SEGMENTS}", place, facts["bytes"], facts["sha256"], what)

    def _bring(self, number: int, kind: str) -> None:
        shard = self.manifest["shards"][number]
        name, facts = f"{shard['name']}.{kind}", shard["files"][kind]
        place = f"{self.folder.name}/{name}"
        self.cache.bring(f"{self.url}/{name}", place, facts["bytes"], facts["sha256"], f"source '{self.info.name}'")


def check_room(sources: Mapping[str, tuple[Dataset, int | None]]) -> None:
    """UserError unless the cache holds what a run draws from at a time: of each remote source ({name: (dataset, window)}) two windows
    of shards, the one at hand and the next, or all of it."""
    needed, limit = {}, 0
    for name, (dataset, window) in sources.items():
        if isinstance(dataset, RemoteDataset):
            largest = max(sum(facts["bytes"] for facts in shard["files"].values()) for shard in dataset.manifest["shards"])
            needed[name] = dataset.bytes if window is None else min(dataset.bytes, 2 * window * largest)
            limit = dataset.cache.limit_bytes
    if sum(needed.values()) > limit:
        listed = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in needed.items())
        raise UserError(
            f"the cache of {limit / 1e9:,.1f} GB is too small for what is drawn from at a time, in GB: {listed}. "
            f"Give those sources a (smaller) `window` of shards in the mixture, or set {LIMIT_VARIABLE}."
        )


class _Cut(OSError):
    """Bytes that are not what they should be: a connection may have been cut, so it is tried again."""


def _manifest(url: str, cache: Cache) -> tuple[dict[str, Any], Path]:
    """A remote dataset's manifest, with every name in it checked before it becomes a path here; and its folder in the cache."""
    what = f"dataset {url}"
    data = cache.read_small(f"{url}/{fmt.MANIFEST}", fmt.MAX_JSON_BYTES, what)
    name = hashlib.sha256(data).hexdigest()[:24]
    folder = cache.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / fmt.MANIFEST).is_file():
        part = folder / f"{fmt.MANIFEST}.{os.getpid()}-{next(_unique)}.part"
        part.write_bytes(data)
        os.replace(part, folder / fmt.MANIFEST)
    try:
        manifest = fmt.read_manifest(folder)
        for shard in manifest["shards"]:
            if not _SHARD_NAME.fullmatch(shard["name"]) or sorted(shard["files"]) != sorted(_KINDS):
                raise Damaged(
                    f"names files {json.dumps(shard['name'])[:80]} ({', '.join(map(str, shard['files']))[:80]}), which are no shard's"
                )
            for facts in (*shard["files"].values(), *([manifest["segments_file"]] if "segments_file" in manifest else [])):
                if type(facts["bytes"]) is not int or facts["bytes"] < 0 or not re.fullmatch(r"[0-9a-f]{64}", facts["sha256"]):
                    raise Damaged(f"has no size and sha256 for {shard['name']}")
    except UserError as error:
        (folder / fmt.MANIFEST).unlink(missing_ok=True)
        raise type(error)(f"{what}: {error}") from error
    except (KeyError, TypeError) as error:
        (folder / fmt.MANIFEST).unlink(missing_ok=True)
        raise Damaged(f"{what}: its manifest is damaged ({type(error).__name__}: {error})") from error
    return manifest, folder


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    """The bytes of a URL, from the first on. Each call asks fsspec anew, which keeps no connection over a fork."""
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(
            f"{url} needs a package that is missing ({error}); pip install 'vla[remote]', and s3fs, gcsfs or adlfs for those"
        ) from error
    options = {"block_size": 0} if url.startswith("http") else {}  # 0: one request for the whole, in order
    with system.open(path, "rb", **options) as file:
        yield file


def _touched(path: Path, size: int) -> bool:
    """Whether the whole file is here; then it counts as used now."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def network_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What reading over a network may raise, and `more`; of the libraries that fsspec uses, those that are loaded."""
    others = (
        ("aiohttp", "ClientError"),
        ("asyncio", "TimeoutError"),  # an OSError from Python 3.11 on
        ("gcsfs.retry", "HttpError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("fsspec.exceptions", "FSTimeoutError"),
    )
    kinds = [getattr(sys.modules.get(module), name, None) for module, name in others]
    return (OSError, EOFError, *more, *(kind for kind in kinds if isinstance(kind, type)))
