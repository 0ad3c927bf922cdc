"""Rows of features on disk, found by key: what one run has computed, the next one maps into memory.

A folder holds segments, safetensors files that appear whole or not at all and are never changed, so any number of processes may write and
read beside each other. In each, every column is one array of bytes, (tokens, bytes of a token), its rows one after another; `end_N` says
where each row ends, `key_N2` whose it is, and `crc_N` what its bytes sum up to, which is looked at when it is read.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla.data.sums import crc32
from vla.errors import Damaged, UserError
from vla.tensor_file import DTYPES, write_tensors

SEGMENT_BYTES = 64 << 20
"""What a process collects before it writes: so much at most is computed again after it was killed."""
ABANDONED_S = 3600.0
"""A half-written file older than this is nobody's."""
_BOOKS = ("key_N2", "end_N", "crc_N")


class NotKept(UserError):
    """Features that are not on disk."""


@dataclass(frozen=True)
class Column:
    """What one token has under a name: numbers of `dtype` in `shape`."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def to_json(self) -> list[object]:
        return [DTYPES[self.dtype], *self.shape]


class Store:
    """`columns`: of every row. Raises Damaged for a segment that is not whole."""

    def __init__(self, folder: Path, columns: Mapping[str, Column]) -> None:
        self.folder, self.columns = folder, dict(sorted(columns.items()))
        self._segments: dict[str, _Segment] = {}
        self._own: set[tuple[int, int]] = set()
        self._waiting: dict[tuple[int, int], Mapping[str, np.ndarray]] = {}
        self._waiting_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.part"):
            if time.time() - part.stat().st_mtime > ABANDONED_S:
                part.unlink(missing_ok=True)
        self.refresh()

    def __len__(self) -> int:
        """Rows on disk (one that two processes wrote counts twice)."""
        return len(self._key_N)

    def refresh(self) -> None:
        """Finds what was written, here and by others."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._segments:
                self._segments[path.name] = _Segment(path, self.columns)
        self._found = list(self._segments.values())
        self._key_N, self._check_N, self._place_N2 = _index(self._found)
        self._own = set()

    def has(self, key: tuple[int, int]) -> bool:
        """Whether its row is on disk, or will be."""
        return key in self._waiting or key in self._own or self._find(key) >= 0

    def add(self, key: tuple[int, int], row: Mapping[str, Tensor]) -> None:
        """Takes a row, (its tokens, ...) under each column's name; it is on disk after `flush`, or earlier. OSError where the disk does
        not take it."""
        self._waiting[key] = {name: _bytes(row[name], column) for name, column in self.columns.items()}
        self._waiting_bytes += sum(part.nbytes for part in self._waiting[key].values())
        if self._waiting_bytes >= SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was taken, as one segment. It can be read after `refresh`."""
        if not self._waiting:
            return
        rows = list(self._waiting.values())
        first = next(iter(self.columns))
        tensors = {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in self.columns}
        tensors["key_N2"] = torch.from_numpy(np.array(list(self._waiting), np.uint64).view(np.int64))
        tensors["end_N"] = torch.from_numpy(np.cumsum([len(row[first]) for row in rows]))
        tensors["crc_N"] = torch.tensor([_sum(list(row.values())) for row in rows])
        name = f"{secrets.token_hex(8)}.safetensors"
        part = self.folder / f"{name}.part"
        write_tensors(part, tensors)
        os.replace(part, self.folder / name)
        self._own |= set(self._waiting)
        self._waiting, self._waiting_bytes = {}, 0

    def note(self, name: str, text: str) -> None:
        """A file beside the segments, whole or not at all, whoever else writes it."""
        part = self.folder / f"{name}.{secrets.token_hex(8)}.part"
        part.write_text(text)
        os.replace(part, self.folder / name)

    def read(self, keys: Sequence[tuple[int, int]], fit: Callable[[int], int] = int) -> dict[str, Tensor]:
        """Rows of several samples: `length_B` int64, and uint8 (B, S, bytes) by column, zero behind a row's end; S is `fit` of the
        longest row's length. NotKept where one is missing, Damaged where its bytes are not those that were written."""
        found = [self._row(key) for key in keys]
        lengths = [len(row[0]) for row in found]
        S = fit(max([1, *lengths]))
        out = {name: np.zeros((len(keys), S, column.bytes), np.uint8) for name, column in self.columns.items()}
        for number, row in enumerate(found):
            for into, part in zip(out.values(), row, strict=True):
                into[number, : len(part)] = part
        return {"length_B": torch.tensor(lengths), **{name: torch.from_numpy(array) for name, array in out.items()}}

    def _row(self, key: tuple[int, int]) -> list[np.ndarray]:
        at = self._find(key)
        if at < 0:
            raise NotKept(f"{self.folder} has no such row")
        segment, number = self._place_N2[at]
        return self._found[segment].row(number)

    def _find(self, key: tuple[int, int]) -> int:
        """Place in the index, or -1."""
        at = int(np.searchsorted(self._key_N, np.uint64(key[0])))
        while at < len(self._key_N) and self._key_N[at] == key[0]:
            if self._check_N[at] == key[1]:
                return at
            at += 1
        return -1


class _Segment:
    """One file, mapped into memory."""

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        self.path = path
        fix = "delete the file: what it held is computed again"
        try:
            self._data = np.memmap(path, np.uint8, "r")
            size = int(self._data[:8].view(np.uint64)[0])
            head = json.loads(self._data[8 : 8 + size].tobytes())
            del head["__metadata__"]
            books = [self._part(head, size, name, np.int64) for name in _BOOKS]
            self.key_N2, self._end_N, self._crc_N = books[0].reshape(-1, 2).view(np.uint64), books[1], books[2]
            self._columns = [self._part(head, size, name, np.uint8).reshape(-1, column.bytes) for name, column in columns.items()]
            whole = set(head) == {*_BOOKS, *columns} and all(len(part) == self._end_N[-1] for part in self._columns)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Damaged(f"{path} is damaged ({error}); {fix}") from error
        if not whole:
            raise Damaged(f"{path} is damaged (its columns are not those of this cache); {fix}")

    def row(self, number: int) -> list[np.ndarray]:
        """Its bytes by column, (tokens, bytes) each."""
        start = int(self._end_N[number - 1]) if number else 0
        found = [part[start : int(self._end_N[number])] for part in self._columns]
        if _sum(found) != self._crc_N[number]:
            raise Damaged(f"{self.path} was altered: a row's bytes are not those written. Delete the file: what it held is computed again")
        return found

    def _part(self, head: Mapping[str, dict], size: int, name: str, dtype: type) -> np.ndarray:
        start, stop = head[name]["data_offsets"]
        data = self._data[8 + size + start : 8 + size + stop]
        if len(data) != stop - start:
            raise ValueError(f"{name} is cut short")
        return data.view(dtype)


def _index(segments: Sequence[_Segment]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All keys in order, by their first half: first halves, second halves, and (segment, row) of each."""
    key_N2 = np.concatenate([np.zeros((0, 2), np.uint64), *(segment.key_N2 for segment in segments)])
    places = [np.stack([np.full(len(s.key_N2), at), np.arange(len(s.key_N2))], 1) for at, s in enumerate(segments)]
    place_N2 = np.concatenate([np.zeros((0, 2), np.int64), *places])
    order = np.lexsort((key_N2[:, 1], key_N2[:, 0]))
    return key_N2[order, 0], key_N2[order, 1], place_N2[order]


def _bytes(tensor: Tensor, column: Column) -> np.ndarray:
    assert tensor.dtype == column.dtype and tuple(tensor.shape[1:]) == column.shape, (tensor.dtype, tensor.shape, column)
    return tensor.reshape(len(tensor), column.bytes // column.dtype.itemsize).contiguous().view(torch.uint8).numpy()


def _sum(parts: Sequence[np.ndarray]) -> int:
    found = 0
    for part in parts:
        found = crc32(np.ascontiguousarray(part).data, found)
    return found
