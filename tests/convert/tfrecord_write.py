"""TFRecords and Examples written without TensorFlow, for tests: the inverse of `vla.convert.tfrecord`."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from google_crc32c import value

from vla.convert.tfrecord import Value, _masked


def example_bytes(values: Mapping[str, Value]) -> bytes:
    """The inverse of `parse_example`, packed as TensorFlow packs it."""
    entries = []
    for name, held in values.items():
        if isinstance(held, list):
            feature = _field(1, b"".join(_field(1, item) for item in held))
        elif held.dtype.kind == "f":
            feature = _field(2, _field(1, held.astype("<f4").tobytes()))
        else:
            feature = _field(3, _field(1, b"".join(_encoded(int(item) & (2**64 - 1)) for item in held)))
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def record_bytes(data: bytes) -> bytes:
    """One record with its framing."""
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", _masked(value(head))) + data + struct.pack("<I", _masked(value(data)))


def _field(number: int, data: bytes) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(len(data)) + data


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
