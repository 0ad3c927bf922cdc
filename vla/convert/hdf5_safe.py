"""What of an HDF5 file may be read: bytes that lie in the file itself, as numbers or text, in pieces that fit in memory.

HDF5 can name other files (external links and storage, virtual datasets), hold references, and claim any size. All of that is refused
before a value is read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.convert.safe import require
from vla.errors import Damaged, SchemaError, UserError

if TYPE_CHECKING:
    import h5py

MAX_CHUNK_BYTES = 1 << 30
"""A chunk is unpacked as a whole, whatever part of it is wanted."""
MAX_READ_BYTES = 2 << 30
"""A column of one episode, or one picture, is not larger."""
MAX_MEMBERS = 10_000
MAX_DEPTH = 16
MAX_ATTRIBUTES = 200
BLOCK_BYTES = 16 << 20
"""Pictures are read in blocks of about this size where the file does not say how (by its chunks)."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file for reading; what h5py cannot read is Damaged, with the file's name."""
    h5py = require("h5py")
    with named(str(path)):
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        with h5py.File(path, "r") as file:
            yield file


def find(group: h5py.Group, path: str, where: str) -> Any:
    """The group or dataset at a path, step by step, over nothing but hard links."""
    h5py = require("h5py")
    for name in filter(None, path.split("/")):
        if not isinstance(group, h5py.Group) or name not in group:
            there = sorted(group)[:12] if isinstance(group, h5py.Group) else "a dataset"
            raise SchemaError(f"{where} has no '{path}': at '{name}' there is {there}")
        _check_link(group, name, where)
        group = group[name]
    return group


def members(group: h5py.Group, where: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets below a group, by path. SchemaError for links out of the tree and for trees without end."""
    h5py = require("h5py")
    waiting: list[tuple[str, Any, int]] = [("", group, 0)]
    seen = 0
    while waiting:
        prefix, parent, depth = waiting.pop()
        for name in sorted(parent):
            seen += 1
            if seen > MAX_MEMBERS or depth > MAX_DEPTH:
                raise SchemaError(f"{where}: {group.name} has no end within {MAX_MEMBERS} members and {MAX_DEPTH} levels")
            _check_link(parent, name, where)
            child = parent[name]
            if isinstance(child, h5py.Group):
                waiting.append((f"{prefix}{name}/", child, depth + 1))
            elif isinstance(child, h5py.Dataset):
                yield f"{prefix}{name}", child


@dataclass(frozen=True)
class Member:
    """A dataset that was checked, and how to read it. `kind`: "number", "text" or "bytes" (of variable length)."""

    dataset: Any
    kind: str
    where: str

    @staticmethod
    def of(dataset: Any, where: str) -> Member:
        """SchemaError for what is no dataset of plain values in this file."""
        h5py = require("h5py")
        if not isinstance(dataset, h5py.Dataset):
            raise SchemaError(f"{where} is a group, not a dataset")
        if dataset.is_virtual or dataset.external:
            raise SchemaError(f"{where} lies in other files (virtual or external storage), which is refused")
        if dataset.shape is None:
            raise SchemaError(f"{where} holds nothing (a null dataset)")
        kind = _kind(dataset.dtype)
        if kind is None:
            raise SchemaError(f"{where} has type {dataset.dtype}; numbers, text and bytes are read, objects and references are not")
        chunk_bytes = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
        if chunk_bytes > MAX_CHUNK_BYTES:
            raise SchemaError(f"{where} claims chunks of {chunk_bytes} bytes; at most {MAX_CHUNK_BYTES}")
        return Member(dataset, kind, where)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dataset.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.dataset.dtype

    @property
    def is_text(self) -> bool:
        return self.kind == "text"

    def read(self) -> np.ndarray:
        """All of it, as numbers."""
        if self.kind != "number":
            raise SchemaError(f"{self.where} holds {self.kind}, not numbers")
        return self.rows(0, None)

    def rows(self, start: int, stop: int | None) -> np.ndarray:
        """Rows start <= i < stop; a dataset without rows is read whole."""
        self._check_size(start, stop)
        with named(self.where):
            return np.asarray(self.dataset[start:stop] if self.shape else self.dataset[()])

    def texts(self) -> list[str]:
        """One text, or one per row; bytes that are no UTF-8 keep their value (`surrogateescape`)."""
        if self.kind != "text":
            raise SchemaError(f"{self.where} holds {self.dtype}, not text")
        self._check_size(0, None)
        with named(self.where):
            values = self.dataset[()]
        return [as_text(value) for value in np.atleast_1d(values).reshape(-1).tolist()]

    def _check_size(self, start: int, stop: int | None) -> None:
        count = len(range(*slice(start, stop).indices(self.shape[0]))) if self.shape else 1
        size = count * math.prod(self.shape[1:]) * self.dtype.itemsize
        if size > MAX_READ_BYTES:
            raise Damaged(f"{self.where} claims {size} bytes; at most {MAX_READ_BYTES} are read at once")


class Frames(Sequence):
    """Pictures of a dataset, read in blocks from first to last; one block is kept. `encoded`: items are bytes, else arrays."""

    def __init__(self, member: Member) -> None:
        self.member, self.encoded = member, not _is_pixels(member)
        row_bytes = max(math.prod(member.shape[1:]) * member.dtype.itemsize, 1)
        chunk_rows = member.dataset.chunks[0] if member.dataset.chunks else 0
        self._block = max(chunk_rows or min(BLOCK_BYTES // row_bytes, 256), 1)
        self._start, self._rows = -1, np.zeros(0)

    def __len__(self) -> int:
        return self.member.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = index - index % self._block
        if start != self._start:
            self._rows, self._start = self.member.rows(start, min(start + self._block, len(self))), start
        row = self._rows[index - start]
        if not self.encoded:
            return row[..., 0] if row.ndim == 3 and row.shape[-1] == 1 else row
        data = row if isinstance(row, bytes) else np.asarray(row, np.uint8).tobytes()
        return data.rstrip(b"\0")  # padding: JPEG and PNG both end in a byte that is not zero


def is_picture(member: Member, steps: int) -> bool:
    """Whether the rows of a dataset are pictures: bytes of (H, W, 1 or 3), or JPEG or PNG files."""
    if not member.shape or member.shape[0] != steps or not steps:
        return False
    if _is_pixels(member):
        return True
    fixed = member.kind == "number" and member.dtype == np.uint8 and len(member.shape) == 2 and member.shape[1] > 16
    if not (fixed or (len(member.shape) == 1 and (member.kind == "bytes" or member.dtype.kind == "S"))):
        return False
    row = member.rows(0, 1)[0]
    return (row if isinstance(row, bytes) else np.asarray(row, np.uint8).tobytes())[:4].startswith(_MAGIC)


def attribute(target: Any, name: str, where: str) -> Any:
    """An attribute of plain values."""
    if name not in target.attrs:
        raise SchemaError(f"{where}: {target.name} has no attribute '{name}'; it has {sorted(target.attrs)[:20]}")
    if _kind(target.attrs.get_id(name).dtype) in (None, "bytes"):
        raise SchemaError(f"{where}: attribute '{name}' of {target.name} is of a type that is not read")
    with named(where):
        return target.attrs[name]


def attributes(target: Any) -> dict[str, Any]:
    """The attributes that are one number, truth value or text, as plain Python."""
    found: dict[str, Any] = {}
    for name in list(target.attrs)[:MAX_ATTRIBUTES]:
        held = target.attrs.get_id(name)
        if _kind(held.dtype) in ("number", "text") and held.shape == ():
            value = attribute(target, name, target.name)
            found[name] = value.item() if isinstance(value, np.generic) and not isinstance(value, bytes) else as_text(value)
    return found


def as_text(value: Any) -> str:
    """What an attribute or a text dataset holds, as text; bytes that are no UTF-8 are kept as surrogates."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size == 1 else value.tolist()
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _is_pixels(member: Member) -> bool:
    return member.dtype == np.uint8 and len(member.shape) == 4 and member.shape[-1] in (1, 3)


def _kind(dtype: np.dtype) -> str | None:
    """What values of a type are; None for objects, references, compounds and anything else."""
    h5py = require("h5py")
    if dtype.kind in "biuf":
        return "number"
    if dtype.kind == "S" or h5py.check_string_dtype(dtype) is not None:
        return "text"
    if dtype.kind == "O" and (inner := h5py.check_vlen_dtype(dtype)) is not None and np.dtype(inner) == np.uint8:
        return "bytes"
    return None


def _check_link(group: Any, name: str, where: str) -> None:
    h5py = require("h5py")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise SchemaError(f"{where}: '{group.name.rstrip('/')}/{name}' is a link to another place or file, which is refused")


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Errors of h5py as Damaged, with the place. Altered bytes surface as any of these, wherever they are first looked at."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise Damaged(f"{where} does not read as HDF5: {' '.join(str(error).split())[:300]}") from error
