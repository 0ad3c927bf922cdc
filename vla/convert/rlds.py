"""RLDS (Ramos et al. 2021) as tensorflow-datasets stores it: one TFRecord per episode, its steps nested in it. No TensorFlow.

Columns, texts and pictures of the steps have their names below `steps` (`observation/image`). What holds for the whole episode keeps its
full name (`episode_metadata/file_path`) and is a fact of the episode; where it is text, a text too. Images stay encoded; a uint8 tensor
(H, W, 3) is a picture. `language_instruction` is a text per step; `is_first`, `is_last` and `is_terminal` are columns, and what they mean
is the card's.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vla.convert.raw import Encoded, Feature, Pictures, Pixels, RawEpisode, Reader, Size, Unreadable
from vla.convert.rlds_features import Leaf, Shard, numpy_dtype, read_leaves, read_shards
from vla.convert.store import Store
from vla.convert.tfrecord import Broken, Value, parse_example, records
from vla.errors import Damaged, SchemaError, UserError

MAX_STEPS = 1_000_000
MAX_FACT_NUMBERS = 64


class Rlds(Reader):
    """A folder of one version of a dataset (with `features.json`), here or far away. A part is a file.

    `steps`: the name of the nested dataset. `splits`: which to read, by default all. `partial`: whether some files may be missing.
    """

    streams = True

    def __init__(self, source: Store | Path, steps: str = "steps", splits: Sequence[str] = (), partial: bool = False) -> None:
        self.store = source if isinstance(source, Store) else Store.of(source)
        self.steps, self.splits, self.partial = steps, tuple(splits), partial

    def features(self) -> Sequence[Feature]:
        return [leaf.feature() for leaf in self._leaves if leaf.kind != "other" and (leaf.of_step or leaf.kind == "text")]

    def size(self) -> Size:
        counts = [shard.records for shard in self._shards]
        files = self.store.files()
        return Size(
            sum(files[s.path] for s in self._shards), None if None in counts else sum(count for count in counts if count is not None)
        )

    def parts(self) -> Sequence[str]:
        return [shard.path for shard in self._shards]

    def episodes(self, part: str) -> Iterator[RawEpisode | Unreadable]:
        shard = self._shard(part)
        leaves = [leaf for leaf in self._leaves if self._reads(leaf)]
        keys = {key: dtype for leaf in leaves for key, dtype in _keys(leaf).items()}
        place = f"{shard.split}-{shard.number:05d}"
        number, lost = -1, ""
        with self.store.local(part) as path:
            try:
                for number, record in enumerate(records(path)):
                    found = _read_record(f"{place}-{number:06d}", record, leaves, keys, {"file": part, "record": number})
                    del record  # not held while somebody looks at the episode
                    yield found
            except Damaged as error:
                if shard.records is None:
                    raise
                lost = str(error)
        for missing in range(number + 1, shard.records or 0):  # each counts: a file that is cut has lost more than one
            yield Unreadable(f"{place}-{missing:06d}", lost or f"{part} holds {number + 1} records; dataset_info.json says {shard.records}")
        if shard.records is not None and number + 1 > shard.records:
            raise Damaged(f"{part} holds {number + 1} records; dataset_info.json says {shard.records}")

    def _shard(self, part: str) -> Shard:
        for shard in self._shards:
            if shard.path == part:
                return shard
        raise UserError(f"{self.store} has no part {part}")

    def _reads(self, leaf: Leaf) -> bool:
        """What the card wants; of the episode, every fact; and something to count steps by."""
        if not leaf.of_step:
            return leaf.kind != "other"
        if self.wanted is None:
            return leaf.kind != "other" and not leaf.ragged
        return leaf.name in self.wanted or leaf.name == "is_first"

    @cached_property
    def _leaves(self) -> tuple[Leaf, ...]:
        return read_leaves(self.store, self.steps)

    @cached_property
    def _shards(self) -> list[Shard]:
        return read_shards(self.store, self.splits, self.partial)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("store", "steps", "splits", "partial", "wanted")
        return {name: value for name, value in vars(self).items() if name in kept}


def _read_record(
    name: str, record: bytes | Broken, leaves: Sequence[Leaf], keys: Mapping[str, np.dtype], facts: Mapping[str, Any]
) -> RawEpisode | Unreadable:
    if isinstance(record, Broken):
        return Unreadable(name, record.detail)
    try:
        return to_episode(name, parse_example(record, keys), leaves, facts)
    except (Damaged, SchemaError) as error:
        return Unreadable(name, f"record {facts['record']}: {error}")


def to_episode(name: str, values: Mapping[str, Value], leaves: Sequence[Leaf], facts: Mapping[str, Any]) -> RawEpisode:
    """The parsed record of one episode, put into shape. SchemaError where it is not what features.json says."""
    columns: dict[str, np.ndarray] = {}
    texts: dict[str, Sequence[str]] = {}
    pictures: dict[str, Pictures] = {}
    known: dict[str, Any] = dict(facts)
    steps = _count(values, leaves)
    where = np.arange(steps)
    for leaf in leaves:
        if not leaf.of_step:
            _take_fact(leaf, values.get(leaf.key), texts, known)
        elif leaf.kind == "text":
            texts[leaf.name] = [_text(item) for item in _strings(leaf, values, steps)]
        elif leaf.kind == "pictures":
            pictures[leaf.name] = Encoded(where, _strings(leaf, values, steps))
        elif leaf.kind == "pixels":
            pictures[leaf.name] = Pixels(where, list(_numbers(leaf, values, steps)))
        elif leaf.kind == "column":
            columns[leaf.name] = _numbers(leaf, values, steps)
    return RawEpisode(name, steps, columns, texts, pictures, facts=known)


def _keys(leaf: Leaf) -> dict[str, np.dtype]:
    """The names of a feature in a record, and what its integers are stored as."""
    own = numpy_dtype(leaf) if leaf.kind in ("column", "pixels") else np.dtype(np.int64)
    if leaf.ragged:
        return {leaf.key: own, f"{leaf.key}/ragged_flat_values": own, f"{leaf.key}/ragged_row_lengths_0": np.dtype(np.int64)}
    return {leaf.key: own}


def _count(values: Mapping[str, Value], leaves: Sequence[Leaf]) -> int:
    for leaf in leaves:
        found = values.get(leaf.key)
        if leaf.of_step and found is not None and (isinstance(found, list) or leaf.size):
            steps = len(found) if isinstance(found, list) else len(found) // leaf.size
            if steps > MAX_STEPS:
                raise SchemaError(f"{steps} steps; at most {MAX_STEPS} are read")
            return steps
    return 0


def _strings(leaf: Leaf, values: Mapping[str, Value], steps: int) -> list[bytes]:
    found = values.get(leaf.key, [])
    if not isinstance(found, list) or len(found) != steps:
        raise SchemaError(f"'{leaf.name}' holds {len(found)} values for {steps} steps, or numbers")
    return found


def _numbers(leaf: Leaf, values: Mapping[str, Value], steps: int) -> np.ndarray:
    dtype, shape = numpy_dtype(leaf), leaf.shape
    if leaf.encoding != "none":
        rows = [_unpacked(leaf, data) for data in _strings(leaf, values, steps)]
        return np.stack(rows) if rows else np.zeros((0, *(size or 0 for size in shape)), dtype)
    if leaf.ragged:
        found, shape = _even(leaf, values, steps)
    else:
        found = values.get(leaf.key, np.zeros(0))
    if isinstance(found, list):
        if found:
            raise SchemaError(f"'{leaf.name}' holds strings, where features.json has {leaf.dtype}")
        found = np.zeros(0)
    if len(found) != steps * math.prod(size or 0 for size in shape):
        raise SchemaError(f"'{leaf.name}' holds {len(found)} numbers for {steps} steps of shape {shape}")
    return found.astype(dtype, copy=False).reshape(steps, *(size or 0 for size in shape))


def _even(leaf: Leaf, values: Mapping[str, Value], steps: int) -> tuple[Value, tuple[int | None, ...]]:
    """A feature of varying length, where it does not vary in this episode."""
    lengths = values.get(f"{leaf.key}/ragged_row_lengths_0")
    if lengths is None or isinstance(lengths, list) or len(lengths) != steps or leaf.shape.count(None) != 1 or leaf.shape[0] is not None:
        raise SchemaError(f"'{leaf.name}' varies in more ways than one")
    if steps and (lengths != lengths[0]).any():
        raise SchemaError(f"'{leaf.name}' has {lengths.min()} to {lengths.max()} rows at different steps; a field needs as many at each")
    return values.get(f"{leaf.key}/ragged_flat_values", np.zeros(0)), (int(lengths[0]) if steps else 0, *leaf.shape[1:])


def _unpacked(leaf: Leaf, data: bytes) -> np.ndarray:
    """A tensor stored as bytes (little-endian), perhaps compressed; of exactly the size that features.json says."""
    dtype = numpy_dtype(leaf).newbyteorder("<")
    expected = leaf.size * dtype.itemsize
    if leaf.encoding == "zlib":
        try:
            data = zlib.decompressobj().decompress(data, expected + 1)  # a bomb is not unpacked past what it should be
        except zlib.error as error:
            raise SchemaError(f"'{leaf.name}' does not decompress: {error}") from error
    if len(data) != expected:
        raise SchemaError(f"'{leaf.name}' holds {len(data)} bytes; {leaf.dtype} {leaf.shape} takes {expected}")
    return np.frombuffer(data, dtype).astype(numpy_dtype(leaf)).reshape([size or 0 for size in leaf.shape])


def _take_fact(leaf: Leaf, value: Value | None, texts: dict[str, Sequence[str]], facts: dict[str, Any]) -> None:
    if value is None or not len(value):
        return
    if leaf.kind == "text" and isinstance(value, list):
        texts[leaf.name] = [_text(value[0])]
        if (said := value[0].decode("utf-8", "replace")) and len(said) <= 1000:
            facts[leaf.name] = said
    elif not isinstance(value, list) and leaf.encoding == "none" and len(value) <= MAX_FACT_NUMBERS:
        plain = [item if math.isfinite(item) else None for item in value.astype(numpy_dtype(leaf)).tolist()]
        facts[leaf.name] = plain if leaf.shape else plain[0]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
