"""Messages: msgpack, with numpy arrays as {__ndarray__: true, data, dtype, shape} (the wire format of openpi).

What comes from the network is checked before it is believed: only plain numeric types, a shape whose size is that of the data.
"""

from __future__ import annotations

from typing import Any, Mapping

import msgpack
import numpy as np

DTYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
"""Types allowed on the wire. No objects, strings, records or complex numbers; little-endian only."""
MAX_DIMS = 8
MAX_ITEMS = 65536
"""Longest list or map; long runs of numbers are arrays."""


class ProtocolError(ValueError):
    """A message that does not follow the protocol."""


def pack(message: Any) -> bytes:
    """dict, list, str, bytes, number, bool, None and numpy arrays or scalars -> bytes. Raises ProtocolError for others."""
    try:
        return msgpack.packb(message, default=_from_numpy)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"cannot be sent: {error}") from error


class Packer:
    """`pack` into memory of its own, which stays: a robot's messages are large and of one size."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(default=_from_numpy, autoreset=False)
        self._given = memoryview(b"")

    def pack(self, message: Any) -> memoryview:
        """The bytes of `pack`, until the next call."""
        self._given.release()
        self._packer.reset()
        try:
            self._packer.pack(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"cannot be sent: {error}") from error
        self._given = self._packer.getbuffer()
        return self._given


def unpack(data: bytes) -> Any:
    """The inverse of `pack` (tuples come back as lists). Raises ProtocolError for whatever is not such a message."""
    try:
        return msgpack.unpackb(
            data, object_hook=_to_numpy, ext_hook=_no_extension, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=64
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a message: {error or type(error).__name__}") from error


def _from_numpy(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{type(value).__name__} is no type of the protocol")
    kind = value.dtype.str
    if kind not in DTYPES:
        kind = value.dtype.newbyteorder("<").str
        if kind not in DTYPES:
            raise TypeError(f"dtype {value.dtype} is not one of {', '.join(DTYPES)}")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": kind}
    shape = list(value.shape)
    if kind != value.dtype.str or not value.flags.c_contiguous:
        value = np.ascontiguousarray(value, dtype=kind)
    # The array's own memory, which msgpack copies once; memory of no length cannot be looked at.
    data = value.data if value.size else b""
    return {b"__ndarray__": True, b"data": data, b"dtype": kind, b"shape": shape}


def _to_numpy(message: Mapping[Any, Any]) -> Any:
    if b"__ndarray__" in message:
        return _array(message.get(b"dtype"), message.get(b"shape"), message.get(b"data"))
    # openpi writes these keys as bytes; other servers of the same protocol write them as text.
    fields = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in message.items()}
    if "__ndarray__" in fields:
        return _array(fields.get("dtype"), fields.get("shape"), fields.get("data"))
    if "__npgeneric__" in fields:
        return _scalar(_dtype(fields.get("dtype")), fields.get("data"))
    return message


def _array(kind: Any, shape: Any, data: Any) -> np.ndarray:
    dtype = _dtype(kind)
    if not isinstance(data, bytes):
        raise ProtocolError("array data must be bytes")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS:
        raise ProtocolError(f"array shape must be at most {MAX_DIMS} sizes")
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ProtocolError(f"array shape must be at most {MAX_DIMS} sizes")
        count *= size  # in Python's integers, which do not wrap around
    if count * dtype.itemsize != len(data):
        raise ProtocolError(f"array of shape {shape} and dtype {dtype.str} does not have {len(data)} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()  # a copy: aligned and writable


def _dtype(kind: Any) -> np.dtype:
    if kind not in DTYPES:
        raise ProtocolError(f"array dtype must be one of {', '.join(DTYPES)}")
    return np.dtype(kind)


def _scalar(dtype: np.dtype, value: Any) -> np.generic:
    kinds = {"b": (bool, int), "i": (int,), "u": (int,), "f": (int, float)}[dtype.kind]
    if not isinstance(value, kinds):
        raise ProtocolError(f"a numpy scalar of dtype {dtype.str} must hold a number of that kind")
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:  # older numpy would wrap around
        raise ProtocolError(f"{value} is out of range of dtype {dtype.str}")
    return dtype.type(value)


def _no_extension(code: int, data: bytes) -> Any:
    raise ProtocolError(f"extension type {code} is not part of the protocol")
