"""YAML values -> frozen dataclasses, strictly: an unknown key, a missing one or a wrong type is an error that names its place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeVar

from vla.errors import SchemaError

T = TypeVar("T")
Read = Callable[[Any, str], Any]


def entry(read: Read, key: str = "", **kwargs: Any) -> Any:
    """A dataclass field that `build` fills with `read(value, place)`; `key` where YAML's name is a word of Python (`from`)."""
    return dataclasses.field(metadata={"read": read, "key": key}, **kwargs)


def build(cls: type[T], data: Any, where: str, **given: Any) -> T:
    """A mapping -> an instance of the dataclass; SchemaError with `where` in front. `given`: fields that the mapping has not."""
    if not isinstance(data, Mapping):
        raise SchemaError(f"{where}: {data!r} must be keys and values")
    entries = {f.metadata["key"] or f.name: f for f in dataclasses.fields(cls) if "read" in f.metadata}  # type: ignore[arg-type]
    unknown = [str(key) for key in data if key not in entries]
    if unknown:
        raise SchemaError(f"{where}: unknown key '{unknown[0]}'. Keys: {', '.join(entries)}.")
    required = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [key for key, f in entries.items() if key not in data and (f.default, f.default_factory) == required]
    if missing:
        raise SchemaError(f"{where}: the key '{missing[0]}' is missing")
    values = {entries[key].name: entries[key].metadata["read"](value, f"{where}: {key}") for key, value in data.items()}
    try:
        return cls(**values, **given)
    except SchemaError as error:
        raise error if str(error).startswith(where) else SchemaError(f"{where}: {error}") from error


def nested(cls: type[T]) -> Read:
    """A mapping, read as the dataclass."""
    return lambda value, where: build(cls, value, where)


def named(read: Read) -> Read:
    """{name: value} with every value read alike."""

    def read_all(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise SchemaError(f"{where}: {value!r} must be names and values")
        return {name: read(item, f"{where}: {name}") for name, item in value.items()}

    return read_all


def listed(read: Read, lone: bool = False) -> Read:
    """A list of values; `lone`: one value stands for a list of one."""

    def read_all(value: Any, where: str) -> tuple[Any, ...]:
        if lone and not isinstance(value, list):
            value = [value]
        if not isinstance(value, list) or not value:
            raise SchemaError(f"{where}: {value!r} must be a list of at least one")
        return tuple(read(item, f"{where}: {number}") for number, item in enumerate(value, 1))

    return read_all


def optional(read: Read) -> Read:
    """`null`, or what `read` takes."""
    return lambda value, where: None if value is None else read(value, where)


def choice(*choices: Any) -> Read:
    """One of these values."""

    def read(value: Any, where: str) -> Any:
        if value not in choices or isinstance(value, bool) is not any(isinstance(c, bool) for c in choices):
            raise SchemaError(f"{where}: {value!r}; choose one of {', '.join(map(str, choices))}")
        return value

    return read


def text(value: Any, where: str) -> str:
    """Text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise SchemaError(f"{where}: {value!r} must be text; quote it if YAML takes it for something else")
    return value


def boolean(value: Any, where: str) -> bool:
    """true or false; no 0 or 1."""
    if not isinstance(value, bool):
        raise SchemaError(f"{where}: {value!r} must be true or false")
    return value


def integer(value: Any, where: str) -> int:
    """A whole number; no truth value."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise SchemaError(f"{where}: {value!r} must be a whole number")
    return value


def number(value: Any, where: str) -> float:
    """A finite number; no truth value."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise SchemaError(f"{where}: {value!r} must be a finite number")
    return float(value)


def rational(value: Any, where: str) -> Fraction:
    """`10`, `12.5`, or `30000/1001` in text: a number as it is written, not the nearest binary one."""
    try:
        found = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise SchemaError(f"{where}: {value!r} must be a number or a fraction such as 30000/1001") from None
    if isinstance(value, bool) or found <= 0:
        raise SchemaError(f"{where}: {value!r} must be above 0")
    return found


def plain(value: Any, where: str) -> Any:
    """A number, text, truth value or None."""
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise SchemaError(f"{where}: {value!r} must be a number, text, true or false")
    return value


def plain_tree(value: Any, where: str) -> Any:
    """Plain values, and lists and mappings of them."""
    if isinstance(value, list):
        return [plain_tree(item, where) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain_tree(item, f"{where}: {key}") for key, item in value.items()}
    return plain(value, where)
