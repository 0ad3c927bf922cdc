"""Messages between the evaluation and its simulator processes: a JSON header and arrays as raw bytes, in one piece.

    4 bytes   length of the header
    header    [message, {array name: [dtype, shape]}] as JSON
    arrays    their bytes, in the header's order

Only what numpy and JSON can hold passes, and only of the types below: reading a message never runs code.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_DTYPES = {"uint8": np.uint8, "float64": np.float64}
_LENGTH = struct.Struct("<I")


def send(connection: Connection, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Blocks until the other side has room. Raises BrokenPipeError or ConnectionResetError when it is gone."""
    arrays = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    shapes = {name: [_dtype(array), array.shape] for name, array in arrays.items()}
    header = json.dumps([message, shapes]).encode()
    connection.send_bytes(b"".join([_LENGTH.pack(len(header)), header, *(array.tobytes() for array in arrays.values())]))


def receive(connection: Connection) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The next message and its arrays (writable, theirs alone). Raises EOFError or ConnectionResetError when the other side is gone."""
    data = bytearray(connection.recv_bytes())
    (length,) = _LENGTH.unpack_from(data)
    at = _LENGTH.size + length
    message, shapes = json.loads(data[_LENGTH.size : at])
    arrays = {}
    for name, (dtype, shape) in shapes.items():
        arrays[name] = np.frombuffer(data, _DTYPES[dtype], math.prod(shape), at).reshape(shape)
        at += arrays[name].nbytes
    return message, arrays


def _dtype(array: np.ndarray) -> str:
    assert array.dtype.name in _DTYPES, array.dtype
    return array.dtype.name
