"""Values out of members that somebody else wrote: JSON, npy and text, each with its limits checked before it is parsed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from vla.errors import SchemaError, UnknownName, UserError

MAX_JSON_BYTES, MAX_TEXT_BYTES, MAX_NPY_BYTES = 1 << 20, 64 << 10, 16 << 20
_PART_KEYS = ("member", "field", "start", "stop", "text")


class BadValue(UserError):
    """One sample's member that cannot be used; counted by `cause`: schema, decode, oversize or nonfinite."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class Values(Protocol):
    """The members of a sample."""

    where: str

    def data(self, ext: str, limit: int) -> bytes: ...

    def json(self, ext: str) -> Any: ...


def check_part(part: Any, where: str, text: bool = False) -> Mapping[str, Any]:
    """One entry of a key map: {member, field, start, stop}, or with `text` also {text}. SchemaError for any other."""
    if not isinstance(part, Mapping):
        raise SchemaError(f"{where} is {part!r}; give {{member: ...}} with keys among {', '.join(_PART_KEYS)}")
    for key in part:
        if key not in _PART_KEYS or (key == "text" and not text):
            raise UnknownName("key", key, _PART_KEYS, f"It stands in {where}.")
    if ("member" in part) == ("text" in part):
        raise SchemaError(f"{where} needs {'`member` or `text`' if text else '`member`'}")
    for key in ("start", "stop"):
        if part.get(key) is not None and type(part[key]) is not int:
            raise SchemaError(f"{where}: {key} is {part[key]!r}; give a whole number")
    if "member" in part:
        kind = str(part["member"]).lower().rsplit(".", 1)[-1]
        if kind not in ("json", "npy", *(("txt",) if text else ())):
            raise SchemaError(
                f"{where}: member .{part['member']}; values are read from .json and .npy{', texts also from .txt' if text else ''}"
            )
        return {**part, "member": str(part["member"]).lower()}
    return part


def json_of(values: Values, ext: str) -> Any:
    """A JSON member. NaN, infinity and nesting past Python's limit are no JSON."""
    data = values.data(ext, MAX_JSON_BYTES)
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        cause = "nonfinite" if isinstance(error, _NotFinite) else "schema"
        raise BadValue(cause, f"{values.where}: .{ext} is no JSON ({str(error) or type(error).__name__})") from error


def dotted(value: Any, part: Mapping[str, Any], where: str) -> Any:
    """The field `a.b.c` of nested mappings."""
    for name in str(part.get("field", "")).split(".") if part.get("field") else ():
        if not isinstance(value, Mapping) or name not in value:
            raise BadValue("schema", f"{where}: .{part['member']} has no field '{part['field']}'")
        value = value[name]
    return value


def array_of(values: Values, part: Mapping[str, Any]) -> np.ndarray:
    """float64 numbers of a part, at least 1-D; `start`, `stop` cut the last axis."""
    ext = part["member"]
    if ext.endswith("npy"):
        rows = _npy(values.data(ext, MAX_NPY_BYTES), f"{values.where}: .{ext}")
    else:
        try:
            rows = np.asarray(dotted(values.json(ext), part, values.where))
        except ValueError as error:  # ragged
            raise BadValue("schema", f"{values.where}: .{ext}: '{part.get('field', '')}' is no array ({error})") from error
    if rows.dtype.kind not in "iuf" or rows.ndim > 2:
        raise BadValue("schema", f"{values.where}: .{ext}: {rows.dtype} of shape {rows.shape}; want numbers")
    return np.atleast_1d(rows.astype(np.float64))[..., slice(part.get("start"), part.get("stop"))]


def text_of(values: Values, part: Mapping[str, Any]) -> str:
    """An instruction. Text is text: nothing in it is a token or a command."""
    if "text" in part:
        return str(part["text"])
    ext = part["member"]
    if ext.endswith("txt"):
        try:
            return values.data(ext, MAX_TEXT_BYTES).decode().strip()
        except UnicodeDecodeError as error:
            raise BadValue("schema", f"{values.where}: .{ext} is no UTF-8 text") from error
    text = dotted(values.json(ext), part, values.where)
    if not isinstance(text, str) or len(text) > MAX_TEXT_BYTES:
        raise BadValue("schema", f"{values.where}: .{ext}: the instruction is no text of at most {MAX_TEXT_BYTES} characters")
    return text.strip()


def _npy(data: bytes, where: str) -> np.ndarray:
    """What the header claims is held against the bytes that are there before anything is allocated; objects are refused."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise BadValue("schema", f"{where} is no .npy ({error})") from error
    count = int(np.prod(shape, dtype=np.float64))
    if dtype.kind not in "iuf" or dtype.hasobject or count * dtype.itemsize != len(data) - file.tell():
        raise BadValue("schema", f"{where}: {dtype} of shape {shape} in {len(data)} bytes; want numbers that fill it")
    rows = np.frombuffer(data, dtype, count, file.tell())
    return rows.reshape(shape[::-1]).T if fortran else rows.reshape(shape)


class _NotFinite(ValueError):
    pass


def _no_constant(name: str) -> None:
    raise _NotFinite(f"holds {name}")
