"""What a tensorflow-datasets folder says of itself: `features.json` and `dataset_info.json`, without TensorFlow.

Layout after tensorflow/datasets: features/*.proto for the JSON, core/example_serializer.py for the names in a record (nested ones joined by
'/', a feature of unknown inner length as `x/ragged_flat_values` and `x/ragged_row_lengths_0`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla.convert.raw import Feature
from vla.convert.safe import fill
from vla.convert.store import Store
from vla.errors import Damaged, UserError

MAX_JSON_BYTES = 16 << 20
MAX_DEPTH = 32
MAX_SHARDS = 1_000_000
MAX_NUMBERS = 100_000_000
"""Of one feature at one step; what claims more is hostile."""
_DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class Leaf:
    """One feature: `key` in the record, `name` in an episode. `kind`: column, text, pictures (encoded), pixels, or `other` (of a kind
    that no card can use). `shape`: of one step, None where it varies; `encoding`: none, bytes or zlib."""

    key: str
    name: str
    kind: str
    dtype: str
    shape: tuple[int | None, ...]
    encoding: str
    of_step: bool

    @property
    def ragged(self) -> bool:
        return None in self.shape

    @property
    def size(self) -> int:
        """Numbers of one step; of a varying shape, those of one row."""
        return math.prod(size for size in self.shape if size is not None)

    def feature(self) -> Feature:
        return Feature(self.name, "pictures" if self.kind == "pixels" else self.kind, self.dtype, self.shape)


@dataclass(frozen=True)
class Shard:
    """One file: its path, split, and how many records it should hold (None where nothing says)."""

    path: str
    split: str
    number: int
    records: int | None


def read_leaves(store: Store, steps: str) -> tuple[Leaf, ...]:
    """Every feature of an episode and of its steps. UserError where this is no RLDS dataset."""
    data = _read_json(store, "features.json")
    if "pythonClassName" not in data:
        raise UserError(f"{store}: features.json has not the form that tensorflow-datasets 4 writes; re-write it with a newer version")
    try:
        leaves = tuple(_leaves(data, (), (), steps, False, 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise Damaged(f"{store}: features.json is not as tensorflow-datasets writes it ({error!r})") from error
    giant = [leaf.name for leaf in leaves if leaf.size > MAX_NUMBERS]
    if giant:
        raise Damaged(f"{store}: features.json claims more than {MAX_NUMBERS} numbers a step for '{giant[0]}'")
    if not any(leaf.of_step for leaf in leaves):
        names = ", ".join(sorted({leaf.key.split("/")[0] for leaf in leaves}))
        raise UserError(f"{store}: episodes have no nested `{steps}`; they have {names}. In the card, `reader: {{steps: NAME}}`")
    return leaves


def read_shards(store: Store, splits: tuple[str, ...], partial: bool) -> list[Shard]:
    """The files of the splits (all by default), in order. UserError where some are not there, unless `partial`."""
    info = _read_json(store, "dataset_info.json")
    if str(info.get("fileFormat", "tfrecord")) != "tfrecord":
        raise UserError(f"{store}: its files are {info['fileFormat']}; TFRecords are read here, others with --reader tfds")
    try:
        rows = {str(row["name"]): row for row in info["splits"]}
        unknown = sorted(set(splits) - set(rows))
        if unknown:
            raise UserError(f"{store}: no split '{unknown[0]}'; it has {', '.join(rows)}")
        shards = [shard for name, row in rows.items() if name in (splits or rows) for shard in _shards_of(str(info["name"]), name, row)]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise Damaged(f"{store}: dataset_info.json is not as tensorflow-datasets writes it ({error})") from error
    there = [shard for shard in shards if shard.path in store.files()]
    if not there:
        raise UserError(f"{store}: none of its {len(shards)} files is there, such as {shards[0].path if shards else '-'}")
    if len(there) < len(shards) and not partial:
        raise UserError(
            f"{store}: {len(there)} of its {len(shards)} files are there. Fetch the rest, or say `reader: {{partial: true}}` in the card "
            "(--option partial=true) to convert those alone"
        )
    return there


def _shards_of(dataset: str, split: str, row: Mapping[str, Any]) -> Iterator[Shard]:
    lengths: list[int | None] = [int(length) for length in row.get("shardLengths", [])]
    if not lengths:  # as versions before 4 wrote it
        lengths = [None] * min(int(row.get("numShards", 0)), MAX_SHARDS)
    template = str(row.get("filepathTemplate") or TEMPLATE)
    for number, length in enumerate(lengths):
        place = {"SHARD_INDEX": f"{number:05d}", "NUM_SHARDS": f"{len(lengths):05d}"}
        place["SHARD_X_OF_Y"] = f"{place['SHARD_INDEX']}-of-{place['NUM_SHARDS']}"
        words = {"DATASET": dataset, "SPLIT": split, "FILEFORMAT": "tfrecord", **place}
        yield Shard(fill(template, words), split, number, length)


def _leaves(node: Any, path: tuple[str, ...], shape: tuple[int | None, ...], steps: str, of_step: bool, depth: int) -> Iterator[Leaf]:
    if not isinstance(node, Mapping) or depth > MAX_DEPTH:
        raise Damaged(f"features.json: '{'/'.join(path)}' is no feature, or nested too deep")
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, (*path, str(name)), shape, steps, of_step, depth + 1)
    elif "sequence" in node:
        if path == (steps,):
            yield from _leaves(node["sequence"]["feature"], path, (), steps, True, depth + 1)
        else:
            length = int(node["sequence"].get("length", -1))
            yield from _leaves(node["sequence"]["feature"], path, (*shape, length if length >= 0 else None), steps, of_step, depth + 1)
    else:
        yield _leaf(node, path, shape, of_step)


def _leaf(node: Mapping[str, Any], path: tuple[str, ...], outer: tuple[int | None, ...], of_step: bool) -> Leaf:
    key = "/".join(path)
    kind, dtype, encoding, shape = "other", "", "none", outer
    if "image" in node:
        dtype, own = _typed(node["image"])
        shape = (*outer, *own)
        kind = "pictures" if not outer and dtype in ("uint8", "uint16") else "other"  # float pictures are bits in a PNG
    elif "text" in node:
        kind, dtype = ("other" if outer else "text"), "string"
    elif "classLabel" in node:
        kind, dtype = "column", "int64"
    elif "tensor" in node:
        dtype, own = _typed(node["tensor"])
        shape, encoding = (*outer, *own), str(node["tensor"].get("encoding", "none"))
        if dtype in ("string", "object"):
            kind = "text" if not shape else "other"
        elif dtype in _DTYPES and encoding in ("none", "bytes", "zlib") and not (encoding != "none" and None in shape):
            kind = "pixels" if dtype == "uint8" and len(shape) == 3 and shape[2] == 3 and None not in shape else "column"
    return Leaf(key, "/".join(path[1:]) if of_step else key, kind, dtype, shape, encoding, of_step)


def _typed(node: Mapping[str, Any]) -> tuple[str, tuple[int | None, ...]]:
    sizes = [int(size) for size in node.get("shape", {}).get("dimensions", [])]
    dtype = str(node.get("dtype", "uint8"))
    return {"bfloat16": "float32"}.get(dtype, dtype), tuple(size if size >= 0 else None for size in sizes)


def numpy_dtype(leaf: Leaf) -> np.dtype:
    """What its numbers are in numpy."""
    return np.dtype(leaf.dtype)


def _read_json(store: Store, name: str) -> Mapping[str, Any]:
    if name not in store.files():
        near = sorted({path.rpartition("/")[0] for path in store.files() if path.endswith(f"/{name}")})
        hint = f"there is one in {', '.join(near[:5])}: give that folder" if near else "give the folder of one version, such as .../1.0.0"
        raise UserError(f"{store} is no tensorflow-datasets folder: it has no {name}; {hint}")
    try:
        data = json.loads(store.read(name, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{store}: {name} is no JSON ({error})") from error
    if not isinstance(data, Mapping):
        raise Damaged(f"{store}: {name} holds no object")
    return data
