"""Tensors of safetensors files by name, read and written piece by piece: a file of any size in the memory of its largest tensor.

The library maps files into memory, and counts what it touched; here every piece is a positioned read. It still checks each file's header.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla import tensor_file
from vla.errors import Damaged, SchemaError

DTYPES = {name: dtype for dtype, name in tensor_file.DTYPES.items()}
PIECE = 1 << 24
"""Bytes that are in memory while a tensor is copied as it is."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies. `start`: bytes from the beginning of the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        """That it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, first: int, last: int) -> Stored:
        """The rows first <= i < last alone."""
        if not self.shape or not 0 <= first <= last <= self.shape[0]:
            raise IndexError(f"rows {first} to {last} of {self.shape}")
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return Stored(self.file, self.dtype, (last - first, *self.shape[1:]), self.start + first * row_bytes)

    def read(self) -> Tensor:
        """The tensor in memory."""
        if not self.bytes:
            return torch.zeros(self.shape, dtype=self.dtype)
        whole = bytearray(self.bytes)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.start)
            _read_into(file, memoryview(whole), self.file)
        return torch.frombuffer(whole, dtype=self.dtype).view(self.shape)

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, a few at a time."""
        left, buffer = self.bytes, bytearray(min(PIECE, max(self.bytes, 1)))
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.start)
            while left:
                view = memoryview(buffer)[: min(len(buffer), left)]
                _read_into(file, view, self.file)
                left -= len(view)
                yield view


def scan(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of some safetensors files. Raises Damaged (naming the file) or SchemaError (a name in two files, an unknown type)."""
    found: dict[str, Stored] = {}
    for path in files:
        header, data = _header(path)
        for name, row in header.items():
            if name == "__metadata__":
                continue
            if row["dtype"] not in DTYPES:
                raise SchemaError(f"{path.name}: '{name}' is of type {row['dtype']}; types read: {', '.join(DTYPES)}")
            if name in found:
                raise SchemaError(f"'{name}' is in two files: {found[name].file.name} and {path.name}")
            found[name] = Stored(path, DTYPES[row["dtype"]], tuple(row["shape"]), data + row["data_offsets"][0])
    return found


def write_tensors(path: Path, rows: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], value: Callable[[str], Stored | Tensor]) -> str:
    """A safetensors file of the given types and shapes, asking for one value after the other. With the umask's file mode. Its sha256."""
    order, head = tensor_file.header(rows)

    def parts() -> Iterator[memoryview]:
        yield memoryview(head)
        for name in order:
            given = value(name)
            assert (given.dtype, tuple(given.shape)) == rows[name], (name, given.dtype, tuple(given.shape), rows[name])
            yield from given.pieces() if isinstance(given, Stored) else tensor_file.bytes_of(given)

    return tensor_file.write_bytes(path, parts())


def _header(path: Path) -> tuple[dict, int]:
    """The header, checked by the library, and where data starts."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path.name} is no readable safetensors file ({error}); download it again") from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size


def _read_into(file: BinaryIO, view: memoryview, path: Path) -> None:
    done = 0
    while done < len(view):
        count = os.readv(file.fileno(), [view[done:]])
        if not count:
            raise Damaged(f"{path.name} ends early; download it again")
        done += count
