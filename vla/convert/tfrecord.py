"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow.

Framing (tensorflow/core/lib/io/record_writer.h): uint64 length, masked crc32c of those 8 bytes, the data, masked crc32c of the data.
The messages (tensorflow/core/example/{example,feature}.proto) are maps from names to lists of bytes, floats or integers. Every length is
checked against what is there before it is used, and nothing is copied that was not asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla.errors import Damaged, UserError

MAX_RECORD_BYTES = 2 << 30
"""protobuf's own limit for one message."""
CHUNK_BYTES = 1 << 18
_MASK = 0xA282EAD8
_INT64 = np.dtype(np.int64)

Value = list[bytes] | np.ndarray
"""What one name holds: list of bytes; float32 (n,); integers (n,)."""


@dataclass(frozen=True)
class Broken:
    """A record whose data fails its checksum; those after it can be read."""

    detail: str


def records(path: Path) -> Iterator[bytes | Broken]:
    """The records of a file, in order. Damaged from where on the framing cannot be trusted: cut, or a length that fails its checksum."""
    crc32c = _crc32c()
    size, place, number = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while place < size:
            head = file.read(12)
            if len(head) < 12:
                raise Damaged(f"{path}: record {number} is cut off at byte {size}, in its length")
            length, check = struct.unpack("<QI", head)
            if _masked(crc32c(head[:8])) != check:
                raise Damaged(f"{path}: the length of record {number} (byte {place}) fails its checksum")
            if length > min(MAX_RECORD_BYTES, size - place - 16):
                raise Damaged(f"{path}: record {number} (byte {place}) claims {length} bytes; {max(size - place - 16, 0)} are left")
            yield _checked(file.read(length), file.read(4), f"record {number} (byte {place}) fails its checksum")
            place += 16 + length
            number += 1


def parse_example(data: bytes, wanted: Mapping[str, np.dtype] | None = None) -> dict[str, Value]:
    """A serialised Example -> {name: values}, of the names in `wanted` alone. Damaged where it is no such message.

    `wanted`: name -> what its integers are stored as in memory (int64 takes eight times the room of the uint8 that a picture is);
    one that does not fit is Damaged.
    """
    found: dict[str, Value] = {}
    view = memoryview(data)
    try:
        for field, features in _fields(view):
            if field != 1:
                continue
            for inner, entry in _fields(features):
                if inner == 1:
                    name, feature = _entry(entry)
                    if wanted is None or name in wanted:
                        found[name] = _feature(feature, _INT64 if wanted is None else wanted[name])
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise Damaged(f"no tf.train.Example: {error}") from error
    return found


def _entry(view: memoryview) -> tuple[str, memoryview]:
    name, feature = "", memoryview(b"")
    for field, value in _fields(view):
        if field == 1:
            name = bytes(value).decode()
        elif field == 2:
            feature = value
    return name, feature


def _feature(view: memoryview, dtype: np.dtype) -> Value:
    for field, values in _fields(view):
        if field == 1:
            return [bytes(value) for inner, value in _fields(values) if inner == 1]
        if field == 2:
            return _floats(values)
        if field == 3:
            return _integers(values, dtype)
    return []


def _floats(view: memoryview) -> np.ndarray:
    parts = []
    for field, value in _fields(view, scalars=True):
        if field == 1:
            if len(value) % 4:
                raise Damaged(f"{len(value)} bytes are no list of floats")
            parts.append(np.frombuffer(value, "<f4"))
    return np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else np.zeros(0, np.float32)


def _integers(view: memoryview, dtype: np.dtype) -> np.ndarray:
    kind = dtype if dtype.kind in "iu" else _INT64
    parts = [part for field, value in _fields(view, scalars=True) if field == 1 for part in _chunks(np.frombuffer(value, np.uint8), kind)]
    return np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else np.zeros(0, kind)


def _chunks(raw: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The integers of a packed list, some at a time: what it takes to unpack them is bounded."""
    start = 0
    while start < len(raw):
        stop = min(start + CHUNK_BYTES, len(raw))
        while stop < len(raw) and raw[stop - 1] >= 0x80:  # not inside one
            stop += 1
        found = _varints(raw[start:stop])
        kept = found.astype(dtype)
        if dtype != _INT64 and (kept.astype(np.int64) != found).any():
            raise Damaged(f"integers that are no {dtype}")
        yield kept
        start = stop


def _varints(raw: np.ndarray) -> np.ndarray:
    """Many varints side by side, uint8 (n,) -> int64."""
    last = raw < 0x80
    if last.all():
        return raw.astype(np.int64)
    ends = np.flatnonzero(last)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise Damaged("a list of integers ends inside one")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise Damaged("an integer of more than 10 bytes")
    shift = 7 * (np.arange(len(raw)) - np.repeat(starts, lengths))
    parts = (raw & 0x7F).astype(np.uint64) << shift.astype(np.uint64)
    return np.bitwise_or.reduceat(parts, starts).view(np.int64)


def _fields(view: memoryview, scalars: bool = False) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of each field of a message; of fields that are numbers (not packed), their own bytes if `scalars`."""
    place, size = 0, len(view)
    while place < size:
        key, place = _varint(view, place)
        kind = key & 7
        start = place
        if kind == 2:
            length, start = _varint(view, place)
            stop = start + length
        elif kind == 0:
            _, stop = _varint(view, place)
        elif kind in (1, 5):
            stop = place + (8 if kind == 1 else 4)
        else:
            raise Damaged(f"a protobuf field of kind {kind}")
        if stop > size:
            raise Damaged(f"a field claims {stop - start} bytes; {size - start} are left")
        if kind == 2 or scalars:
            yield key >> 3, view[start:stop]
        place = stop


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise Damaged("an integer of more than 10 bytes")


def _checked(data: bytes, check: bytes, detail: str) -> bytes | Broken:
    return data if _masked(_crc32c()(data)) == int.from_bytes(check, "little") else Broken(detail)


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def _crc32c() -> Callable[[bytes], int]:
    try:
        from google_crc32c import value
    except ImportError as error:
        raise UserError("TFRecords need google-crc32c: pip install 'vla[convert]'") from error
    return value
