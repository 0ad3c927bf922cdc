"""Where a source's files are: a folder here, or a bucket or hub from which they come one by one.

store = Store.of("gs://gresearch/robotics/bridge/0.1.0", cache=Path("cache"))
store.files()                       # {"features.json": 3411, ...}: relative paths and bytes, nothing fetched
with store.local("x.tfrecord") as path:
    ...                             # a file on this machine; one that was fetched is gone afterwards

So a dataset of terabytes passes through a disk of gigabytes: what is held is one file for each part that is being read.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from vla.convert.safe import inside
from vla.data.remote import SCHEMES, network_errors
from vla.errors import Damaged, UserError

PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp"}
PACKAGES |= {"abfs": "adlfs", "az": "adlfs"}
"""Kind of URL -> the package that fsspec needs for it."""
MAX_FILES = 10_000_000
RETRY_AFTER_S = (1.0, 5.0, 20.0)


class Store:
    """The files under a folder or URL. Survives pickling; holds nothing open."""

    def __init__(self, root: str, cache: Path | None) -> None:
        self.root, self.cache = root, cache

    @staticmethod
    def of(source: str | Path, cache: Path | None = None) -> Store:
        """`cache`: the folder to which files of a URL are fetched; needed for those alone."""
        text = str(source)
        protocol, separator, _ = text.partition("://")
        if not separator:
            if not Path(source).exists():
                raise UserError(f"there is nothing at {source}; give a folder, a file or a URL ({', '.join(SCHEMES)})")
            return Store(text, None)
        if protocol not in SCHEMES or "::" in text:
            raise UserError(f"{source}: URLs of {', '.join(SCHEMES)} are read; fetch the files yourself and give their folder")
        if cache is None:
            raise UserError(f"{source}: fetching needs a folder for the files that are being read")
        return Store(text.rstrip("/"), cache)

    @property
    def remote(self) -> bool:
        return self.cache is not None

    def __str__(self) -> str:
        return self.root

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "cache": self.cache}

    def files(self) -> Mapping[str, int]:
        """Relative path (with /) -> bytes, sorted. What lies outside the root, by link or by name, is refused."""
        return self._files

    @cached_property
    def _files(self) -> dict[str, int]:
        if not self.remote:
            root = Path(self.root)
            names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
            return {name: inside(root, name).stat().st_size for name in sorted(names)}
        system, base = self._system
        try:
            listed = system.find(base, detail=True)
            if len(listed) > MAX_FILES:
                raise UserError(f"{self.root} lists {len(listed)} files; give the folder of one dataset")
            sizes = {name: row.get("size") or system.size(name) for name, row in listed.items()}  # http lists without sizes
        except UserError:
            raise
        except network_errors(ValueError) as error:
            raise UserError(f"{self.root} cannot be listed: {error}") from error
        if not listed:
            raise UserError(f"there is nothing at {self.root}")
        return dict(sorted((self._relative(name, base), int(size or 0)) for name, size in sizes.items()))

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """The file on this machine for as long as the block runs. UserError where it cannot be fetched as it was listed."""
        if not self.remote:
            yield Path(self.root) / path
            return
        assert self.cache is not None
        place = self.cache / f"{os.getpid()}" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._fetch(path, place)
            yield place
        finally:
            place.unlink(missing_ok=True)

    def read(self, path: str, max_bytes: int) -> bytes:
        """A small file's bytes. Damaged where it is larger than any such file is."""
        size = self.files().get(path)
        if size is None:
            raise UserError(f"{self.root} has no file {path}")
        if size > max_bytes:
            raise Damaged(f"{self.root}/{path}: {size} bytes; at most {max_bytes} are read")
        with self.local(path) as place:
            return place.read_bytes()

    def fetch_all(self) -> Path:
        """Every file, into the cache, for readers that need the whole source at once; refused where the disk would not hold it."""
        if not self.remote:
            return Path(self.root)
        assert self.cache is not None
        self.cache.mkdir(parents=True, exist_ok=True)
        needed, free = sum(self.files().values()), shutil.disk_usage(self.cache).free
        if needed > free:
            raise UserError(f"{self.root} is {needed:,} bytes, and {self.cache} has {free:,} free; this format is read from a whole copy")
        whole = self.cache / "whole"
        for path, size in self.files().items():
            place = whole / path
            if not place.is_file() or place.stat().st_size != size:  # so that an interrupted fetch goes on
                place.parent.mkdir(parents=True, exist_ok=True)
                self._fetch(path, place)
        return whole

    @property
    def _system(self) -> tuple[Any, str]:
        try:
            import fsspec
        except ImportError as error:
            raise UserError("URLs need fsspec: pip install 'vla[convert]'") from error
        try:
            return fsspec.core.url_to_fs(self.root)
        except ImportError as error:
            protocol = self.root.partition("://")[0]
            package = PACKAGES.get(protocol, "fsspec")
            raise UserError(f"{protocol}:// needs {package}: pip install {package}") from error

    def _fetch(self, path: str, place: Path) -> None:
        """UserError where it does not arrive whole: the network's failure is not the data's, so it stops the run, which resumes."""
        part = place.with_name(f"{place.name}.part")
        for wait_s in (*RETRY_AFTER_S, None):
            try:
                system, base = self._system
                system.get_file(f"{base}/{path}", str(part))
                arrived, listed = part.stat().st_size, self.files().get(path)
                if arrived == listed:
                    os.replace(part, place)
                    return
                failure = f"{arrived} bytes arrived of {listed}"
            except network_errors() as error:
                failure = str(error) or type(error).__name__
            part.unlink(missing_ok=True)
            if wait_s is not None:
                time.sleep(wait_s)
        raise UserError(f"{self.root}/{path} cannot be fetched: {failure}. When it can be again, go on with --resume")

    def _relative(self, name: str, base: str) -> str:
        relative = PurePosixPath(name.removeprefix(base).lstrip("/"))
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise UserError(f"{self.root} lists '{name}', which lies outside of it")
        return relative.as_posix()
