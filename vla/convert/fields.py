"""One field of a state or action, from the columns of a raw episode: what the words of a card's field do.

Everything is float64, one row per step of the source; `following` fields are one row shorter. The order is that of `FieldMap`'s keys.
What cannot be the field's is a `BadEpisode`, and never repaired.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vla.convert.raw import RawEpisode
from vla.convert.vocabulary import UNIT_FACTORS, Binarise, FieldMap, Gripper, Packed
from vla.embodiment import ROTATION_UNITS, Field, from_rotation, to_rotation
from vla.errors import SchemaError, UserError

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

MAX_PACKED_BYTES = 1 << 20
"""Numbers of one step inside a string; what unpacks to more is hostile."""
RANGE = 0.1
"""Openings may pass the declared ends by this much: sensors do. More says that the ends are wrong."""


class BadEpisode(UserError):
    """An episode that cannot be converted. `cause` is one of CAUSES."""

    exit_code = 1

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause

    def __reduce__(self) -> tuple:
        return BadEpisode, (self.cause, str(self))  # found in one process, counted in another


CAUSES = {
    "damaged": "the file cannot be read there",
    "schema": "a column is missing or has another shape",
    "nonfinite": "NaN or infinity in state, action or time",
    "rotation": "numbers that are no rotation in the declared convention",
    "range": "an opening far beyond the declared ends",
    "time": "the clock does not rise, or has another rate",
    "image": "a picture that does not decode or is not as declared",
    "language": "no instruction, or none that is text",
    "refused": "the shard format refuses it",
}


def compute(how: FieldMap, field: Field, raw: RawEpisode, state: Mapping[str, tuple[Field, np.ndarray]]) -> np.ndarray:
    """-> float64 (steps, size), or (steps - 1, size) where `how.following`. `state`: the state's fields by name, for `delta`."""
    if how.constant is not None:
        return np.tile(np.array(how.constant, np.float64), (raw.steps, 1))
    values = _read(how, raw)
    values = _chosen(how, values)
    if how.unit:
        values = values * UNIT_FACTORS["rad" if how.rotation else field.unit][how.unit]
    if how.scale is not None:
        values = values * np.array(how.scale)
    if how.offset is not None:
        values = values + np.array(how.offset)
    if not np.isfinite(values).all():  # before anything clips or compares it away
        row = int(np.flatnonzero(~np.isfinite(values).all(-1))[0])
        raise BadEpisode("nonfinite", f"{_from(how)}: step {row} holds NaN or infinity")
    if how.clip is not None:
        low, high = how.clip
        values = values.clip(low, high)
    if how.rotation:
        values = rotate(values, how.rotation, field.unit, _from(how))
    if how.seen_from:
        values = _seen_from(values, column(raw, how.seen_from), how)
    if how.gripper:
        values = openings(values, how.gripper, _from(how))
    if values.shape[1] != field.size:
        raise BadEpisode("schema", f"{_from(how)} gives {values.shape[1]} numbers; field '{field.name}' takes {field.size}")
    if how.next:
        values = values[1:]
    elif how.difference:
        values = _difference(values, field, how.wrap)
    if how.delta:
        own, turns = state[how.delta.by]
        values = _along(values, field, how.delta.axes, turns[: len(values)], own.unit)
    return values


def rotate(values: np.ndarray, convention: str, unit: str, where: str = "") -> np.ndarray:
    """(n, width) in a source's convention (radians) -> (n, width of the unit). BadEpisode where a row is no rotation."""
    from scipy.spatial.transform import Rotation

    try:
        if convention.startswith("euler"):
            _, axes, about = convention.split("_")
            turns = Rotation.from_euler(axes if about == "extrinsic" else axes.upper(), values)
        elif convention == "quat_wxyz":
            turns = to_rotation(values[:, [1, 2, 3, 0]], "quat_xyzw")
        elif convention in ("matrix", "rot6d_rows"):
            turns = _from_matrix(values) if convention == "matrix" else to_rotation(values, "rot6d").inv()
        else:
            turns = to_rotation(values, {"rot6d_columns": "rot6d"}.get(convention, convention))
    except SchemaError as error:
        raise BadEpisode("rotation", f"{where}: {error}") from error
    return from_rotation(turns, unit)


def openings(values: np.ndarray, how: Gripper, where: str = "") -> np.ndarray:
    """Source values (n, k) -> openings (n, k), 0 closed and 1 open."""
    if how.relative:
        signed = (2 * values - (how.open + how.closed)) / (how.open - how.closed)  # 1 opens, -1 closes
        return np.apply_along_axis(_remembered, 0, signed, how.threshold) if len(signed) else signed
    opening = (values - how.closed) / (how.open - how.closed)
    if how.clip:
        opening = opening.clip(0.0, 1.0)
    elif len(opening) and not (opening.min() >= -RANGE and opening.max() <= 1 + RANGE):
        low, high = values.min(), values.max()
        raise BadEpisode("range", f"{where} reaches from {low:.4g} to {high:.4g}; the card says closed {how.closed:g}, open {how.open:g}")
    if how.binarise and len(opening):
        opening = np.apply_along_axis(_decided, 0, opening, how.binarise)
    return opening


def unpack(text: str, how: Packed) -> np.ndarray:
    """The numbers inside one step's string, float64 (k,)."""
    try:
        data = text.encode("utf-8", "surrogateescape")
        if how.compression == "zlib":
            stream = zlib.decompressobj()
            data = stream.decompress(data, MAX_PACKED_BYTES)
            if stream.unconsumed_tail or not stream.eof:
                raise BadEpisode("schema", f"packed numbers that end early, or are more than {MAX_PACKED_BYTES} bytes")
        return np.frombuffer(data, np.dtype(how.dtype).newbyteorder("<")).astype(np.float64)
    except (zlib.error, ValueError) as error:
        if isinstance(error, BadEpisode):
            raise
        raise BadEpisode("schema", f"packed numbers do not unpack: {error}") from error


def column(raw: RawEpisode, name: str) -> np.ndarray:
    """A column as float64 (steps, width); axes after the first are flattened row by row."""
    found = raw.columns.get(name)
    if found is None:
        raise BadEpisode("schema", f"column '{name}' is missing")
    array = np.asarray(found)
    if array.dtype.kind not in "fiub" or array.shape[:1] != (raw.steps,):
        raise BadEpisode("schema", f"column '{name}' is {array.dtype} {array.shape}; expected numbers at {raw.steps} steps")
    return array.reshape(raw.steps, math.prod(array.shape[1:])).astype(np.float64)


def _read(how: FieldMap, raw: RawEpisode) -> np.ndarray:
    if how.packed is None:
        return np.concatenate([column(raw, name) for name in how.columns], axis=1)
    parts = []
    for name in how.columns:
        texts = raw.texts.get(name, ())
        if len(texts) != raw.steps:
            raise BadEpisode("schema", f"'{name}' holds {len(texts)} strings for {raw.steps} steps")
        rows = [unpack(text, how.packed) for text in texts]
        if len({len(row) for row in rows}) > 1:
            raise BadEpisode("schema", f"'{name}' holds rows of different lengths")
        parts.append(np.stack(rows) if rows else np.zeros((0, 0)))
    return np.concatenate(parts, axis=1)


def _chosen(how: FieldMap, values: np.ndarray) -> np.ndarray:
    if how.slice is not None:
        return values[:, slice(*how.slice)]
    if how.index is not None:
        width = values.shape[1]
        if not all(-width <= number < width for number in how.index):
            raise BadEpisode("schema", f"{_from(how)} has {width} numbers; the card takes {list(how.index)}")
        return values[:, list(how.index)]
    return values


def _difference(values: np.ndarray, field: Field, wrap: bool) -> np.ndarray:
    if field.unit in ROTATION_UNITS:
        turns = to_rotation(values, field.unit)
        return from_rotation(turns[:-1].inv() * turns[1:], field.unit) if len(values) > 1 else values[1:]
    change = np.diff(values, axis=0)
    return (change + np.pi) % (2 * np.pi) - np.pi if wrap else change


def _along(values: np.ndarray, field: Field, axes: str, turns: np.ndarray, unit: str) -> np.ndarray:
    """A step written along other axes than ours: translations along the base's, rotations about the tool's."""
    base = to_rotation(turns, unit)
    if field.unit in ROTATION_UNITS:
        return from_rotation(base.inv() * to_rotation(values, field.unit) * base, field.unit) if axes == "base" else values
    return base.apply(values) if axes == "tool" else values


def _from_matrix(values: np.ndarray) -> Rotation:
    from scipy.spatial.transform import Rotation

    matrix = values.reshape(-1, 3, 3)
    crooked = np.abs(matrix @ matrix.transpose(0, 2, 1) - np.eye(3)).max(initial=0)
    if crooked > 1e-3 or (np.linalg.det(matrix) < 0).any():
        raise SchemaError(f"a matrix is no rotation (off by {crooked:.3g}, or mirrored); is it row by row?")
    return Rotation.from_matrix(matrix)


def _decided(opening: np.ndarray, how: Binarise) -> np.ndarray:
    """Between the thresholds stands the next decided value; after the last, the last; in an episode without any, the nearer end."""
    decided = np.where(opening > how.above, 1.0, np.where(opening < how.below, 0.0, np.nan))
    where = np.flatnonzero(~np.isnan(decided))
    if not len(where):
        return np.round(opening).clip(0.0, 1.0)
    following = np.searchsorted(where, np.arange(len(opening)))
    return decided[where[following.clip(max=len(where) - 1)]]


def _remembered(signed: np.ndarray, threshold: float) -> np.ndarray:
    """The last command given, as an opening; before the first, its opposite."""
    event = np.flatnonzero(np.abs(signed) > threshold)
    if not len(event):
        return np.ones_like(signed)
    last = np.searchsorted(event, np.arange(len(signed)), side="right") - 1
    held = (signed[event[last.clip(min=0)]] > 0).astype(np.float64)
    held[: event[0]] = 1 - held[event[0]]
    return held


def _seen_from(values: np.ndarray, pose: np.ndarray, how: FieldMap) -> np.ndarray:
    """Points (n, 3 k) in the frame of a pose, given row by row as 4 x 4 numbers, at the same step."""
    if pose.shape[1] != 16 or values.shape[1] % 3:
        raise BadEpisode(
            "schema", f"{_from(how)} seen from '{how.seen_from}': {values.shape[1]} and {pose.shape[1]} numbers, not 3 k and 16"
        )
    pose = pose.reshape(-1, 4, 4)
    if not np.isfinite(pose).all():
        raise BadEpisode("nonfinite", f"'{how.seen_from}' holds NaN or infinity")
    try:
        turns = _from_matrix(pose[:, :3, :3].reshape(-1, 9))
    except SchemaError as error:
        raise BadEpisode("rotation", f"'{how.seen_from}': {error}") from error
    points = values.reshape(len(values), -1, 3) - pose[:, None, :3, 3]
    return np.einsum("nji,nkj->nki", turns.as_matrix(), points).reshape(len(values), -1)


def _from(how: FieldMap) -> str:
    return "'" + "', '".join(how.columns) + "'"
