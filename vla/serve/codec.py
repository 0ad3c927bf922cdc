"""Bytes <-> messages with numpy arrays, in the three encodings that robots use. What comes in is measured, then compared, then built.

msgpack  {__ndarray__: true, data, dtype, shape}         openpi (keys as bytes), vla-eval (keys as text)
JSON     {__numpy__: base64, dtype, shape}                json-numpy, which OpenVLA's server speaks
npy      a file of numpy's own, without its pickles       GR00T
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from vla.serve.measure import measure_json, measure_msgpack
from vla.serve.wire import Compressed, Refusal

DTYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
"""Types allowed on the wire, as in `client/`. No objects, strings, records or complex numbers; little-endian only."""
MAX_DIMS = 6
_KINDS = {name: np.dtype(name) for name in DTYPES}
_RUN = b"\xd6\x01"  # an extension of four bytes
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<descr>[<|][a-z]\d)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:\d{1,18}(?:, ?)?){0,8})\), ?\} {0,128}\n",
    re.DOTALL,
)


def pack(message: Any, text_keys: bool = False) -> bytes:
    """A message of dicts, lists, texts, numbers and arrays -> msgpack. `text_keys`: an array's keys as text, not bytes."""
    return packer(text_keys)(message)


def packer(text_keys: bool = False) -> Callable[[Any], bytes]:
    """`pack` for many messages, in one thread."""
    import msgpack

    def encode(value: Any) -> Any:
        assert isinstance(value, (np.ndarray, np.generic)) and value.dtype.str in DTYPES, value
        if isinstance(value, np.generic):
            return value.item()
        found = {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
        return found if text_keys else {key.encode(): item for key, item in found.items()}

    return msgpack.Packer(default=encode).pack


def unpack(data: bytes) -> Any:
    """msgpack -> message; arrays are read-only views of the bytes. Raises Refusal for whatever is no such message."""
    import msgpack

    runs, view = measure_msgpack(data), memoryview(data)
    # Long runs stay where they are. In their place msgpack is given an extension that says which; no other gets so far.
    pieces: list[Any] = []
    at = 0
    for number, (byte, _, end) in enumerate(runs):
        pieces += [view[at:byte], _RUN, number.to_bytes(4, "big")]
        at = end
    short = b"".join([*pieces, view[at:]])

    def run(_: int, number: bytes) -> memoryview:
        _, first, end = runs[int.from_bytes(number, "big")]
        return view[first:end]

    size = len(short)
    try:
        return msgpack.unpackb(
            short,
            object_hook=_from_msgpack,
            ext_hook=run,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=4,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise Refusal("malformed", f"not a message: {type(error).__name__}") from error


def to_json(message: Any) -> bytes:
    """-> JSON with arrays as json-numpy writes them. Never NaN or infinity."""
    return json.dumps(message, default=_to_json_numpy, allow_nan=False, separators=(",", ":")).encode()


def from_json(data: bytes) -> Any:
    """The inverse of `to_json`. Raises Refusal for whatever is no such message."""
    measure_json(data)
    try:
        return json.loads(data, object_hook=_from_json_numpy, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # a text that is no UTF-8 is a ValueError too
        raise Refusal("malformed", "not JSON") from error


def from_npy(data: bytes | memoryview) -> np.ndarray:
    """The bytes of a .npy file (version 1.0, row-major) -> array. The header is matched and compared with the bytes before anything is
    built; numpy's own reader would hand it to Python's parser."""
    found = _NPY.match(data)
    if found is None or int.from_bytes(found["length"], "little") != found.end() - 10:
        raise Refusal("malformed", "not an npy file of version 1.0 in row-major order")
    shape = [int(size) for size in found["shape"].decode().replace(" ", "").split(",") if size]
    return _array(data[found.end() :], found["descr"].decode(), shape)


def to_npy(array: np.ndarray) -> bytes:
    """The inverse of `from_npy`."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _from_msgpack(message: dict[Any, Any]) -> Any:
    if b"__ndarray__" in message:  # openpi's arrays, which come most
        return _array(message.get(b"data"), message.get(b"dtype"), message.get(b"shape"))
    fields = message
    if bytes in map(type, message):
        fields = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in message.items()}
    if "__ndarray__" in fields:
        return _array(fields.get("data"), fields.get("dtype"), fields.get("shape"))
    if "__npgeneric__" in fields:
        return _scalar(fields.get("dtype"), fields.get("data"))
    if "__image__" in fields:
        return _image(fields)
    if "__ndarray_class__" in fields:
        return from_npy(_bytes(fields.get("as_npy")))
    return fields


def _image(fields: Mapping[str, Any]) -> Any:
    """vla-eval's pictures: raw, PNG or JPEG."""
    if fields.get("format") == "raw":
        return _array(fields.get("data"), fields.get("dtype"), fields.get("shape"))
    return Compressed(bytes(_bytes(fields.get("data"))))


def _from_json_numpy(message: dict[str, Any]) -> Any:
    if "__numpy__" not in message:
        return message
    text, shape = message["__numpy__"], message.get("shape")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise Refusal("malformed", "array data must be base64") from error
    return _array(data, message.get("dtype"), shape)


def _to_json_numpy(value: Any) -> Any:
    assert isinstance(value, np.ndarray), value
    return {"__numpy__": base64.b64encode(value.tobytes()).decode(), "dtype": value.dtype.str, "shape": list(value.shape)}


def _array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    kind = _dtype(dtype)
    if not isinstance(shape, list) or len(shape) > MAX_DIMS:
        raise Refusal("malformed", f"array shape must be at most {MAX_DIMS} sizes")
    count = kind.itemsize
    for size in shape:
        if type(size) is not int or size < 0:
            raise Refusal("malformed", f"array shape must be at most {MAX_DIMS} sizes")
        count *= size  # in Python's integers, which do not wrap around
    if count != len(_bytes(data)):
        raise Refusal("malformed", f"array of shape {shape[:MAX_DIMS]} and dtype {kind.str} does not have {len(data)} bytes"[:200])
    try:
        return np.ndarray(shape, kind, data)
    except (ValueError, OverflowError) as error:  # no numbers at all, but in a size that numpy cannot count
        raise Refusal("malformed", "array shape is larger than any array") from error


def _dtype(name: Any) -> np.dtype[Any]:
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise Refusal("malformed", f"array dtype must be one of {', '.join(DTYPES)}")
    return kind


def _scalar(dtype: Any, value: Any) -> int | float | bool:
    """A numpy scalar as the Python number that it is."""
    kind = _dtype(dtype).kind
    if not isinstance(value, {"b": (bool, int), "i": (int,), "u": (int,), "f": (int, float)}[kind]):
        raise Refusal("malformed", "a numpy scalar must hold a number of its dtype")
    return float(value) if kind == "f" else value


def _bytes(value: Any) -> bytes | memoryview:
    if not isinstance(value, (bytes, memoryview)):
        raise Refusal("malformed", "array data must be bytes")
    return value


def _no_constant(name: str) -> NoReturn:
    raise Refusal("malformed", f"{name} is no number of JSON")
