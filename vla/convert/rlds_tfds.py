"""RLDS read by tensorflow-datasets itself, in a process of its own: to compare with `vla/convert/rlds.py`, and for what that does not read.

TensorFlow is imported by the child alone (beside Mesa in one process, both crash). Episodes come back over its output as npz frames
with their length in front; nothing is pickled.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from vla.child import command, environment
from vla.convert.raw import Encoded, Pictures, Pixels, RawEpisode
from vla.convert.rlds import Rlds, _take_fact
from vla.convert.rlds_features import Leaf
from vla.convert.store import Store
from vla.errors import Damaged, UserError

MAX_FRAME_BYTES = 4 << 30


class TfdsRlds(Rlds):
    """Like `Rlds`, a part being a file, for folders on this machine."""

    streams = False

    def __init__(self, source: Path, **options: Any) -> None:
        super().__init__(Store.of(source), **options)

    def episodes(self, part: str) -> Iterator[RawEpisode]:
        shard = self._shard(part)
        leaves = [leaf for leaf in self._leaves if self._reads(leaf)]
        images = [leaf.key for leaf in self._leaves if leaf.of_step and leaf.dtype and leaf.kind == "pictures"]
        order = {"folder": self.store.root, "split": shard.split, "shard": shard.number, "steps": self.steps, "images": images}
        order["keys"] = [leaf.key for leaf in leaves]
        child = subprocess.Popen(command(__name__), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None and child.stdout is not None
        with child, child.stdin, child.stdout:
            child.stdin.write(json.dumps(order).encode())
            child.stdin.close()
            try:
                for number, frame in enumerate(_frames(child.stdout)):
                    name = f"{shard.split}-{shard.number:05d}-{number:06d}"
                    yield _episode(name, frame, leaves, {"file": part, "record": number})
            finally:
                child.stdout.close()  # a child that is still writing ends with it
                if child.wait() and not sys.exc_info()[0]:
                    raise Damaged(f"{part}: tensorflow-datasets gave up with code {child.returncode}; its message stands above")


def _frames(file: IO[bytes]) -> Iterator[Mapping[str, np.ndarray]]:
    while head := file.read(8):
        (length,) = struct.unpack("<Q", head)
        if length > MAX_FRAME_BYTES:
            raise Damaged(f"an episode of {length} bytes")
        with np.load(io.BytesIO(file.read(length)), allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in arrays.files}


def _episode(name: str, frame: Mapping[str, np.ndarray], leaves: list[Leaf], facts: Mapping[str, Any]) -> RawEpisode:
    columns: dict[str, np.ndarray] = {}
    texts: dict[str, Any] = {}
    pictures: dict[str, Pictures] = {}
    known = dict(facts)
    steps = int(frame["#steps"])
    for leaf in leaves:
        held = _strings(frame, leaf.key) if f"{leaf.key}#ends" in frame else frame.get(leaf.key)
        if held is None:
            continue
        if not leaf.of_step:
            _take_fact(leaf, held if isinstance(held, list) else np.atleast_1d(held).ravel(), texts, known)
        elif leaf.kind == "text":
            texts[leaf.name] = [item.decode("utf-8", "surrogateescape") for item in held]
        elif leaf.kind == "pictures":
            pictures[leaf.name] = Encoded(np.arange(steps), [bytes(item) for item in held])
        elif leaf.kind == "pixels":
            pictures[leaf.name] = Pixels(np.arange(steps), list(np.asarray(held)))
        else:
            columns[leaf.name] = np.asarray(held)
    return RawEpisode(name, steps, columns, texts, pictures, facts=known)


def _strings(frame: Mapping[str, np.ndarray], key: str) -> list[bytes]:
    data, ends = frame[key].tobytes(), frame[f"{key}#ends"].tolist()
    return [data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _main() -> None:
    """The child: an order as JSON on its input, frames on its output."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    order = json.loads(sys.stdin.buffer.read())
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever TensorFlow prints is no frame
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"--reader tfds needs TensorFlow: pip install 'vla[tfds]' ({error})") from error
    decoders: dict[str, Any] = {}
    for key in order["images"]:
        place = decoders
        *parents, last = key.split("/")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = tfds.decode.SkipDecoding()
    builder = tfds.builder_from_directory(order["folder"])
    read = tfds.core.ReadInstruction(order["split"], from_=order["shard"], to=order["shard"] + 1, unit="shard")
    config = tfds.ReadConfig(interleave_cycle_length=1)
    for episode in tfds.as_numpy(builder.as_dataset(split=read, decoders=decoders, shuffle_files=False, read_config=config)):
        data = _pack(episode, order["steps"], order["keys"])
        out.write(struct.pack("<Q", len(data)) + data)
        out.flush()


def _pack(episode: Mapping[str, Any], steps: str, keys: list[str]) -> bytes:
    rows = list(episode[steps])
    arrays: dict[str, np.ndarray] = {"#steps": np.array(len(rows))}
    for key in keys:
        first, *rest = key.split("/")
        values = [_at(row, rest) for row in rows] if first == steps else _at(episode, key.split("/"))
        if isinstance(values, bytes) or (isinstance(values, list) and values and isinstance(values[0], bytes)):
            items = values if isinstance(values, list) else [values]
            arrays[key] = np.frombuffer(b"".join(items), np.uint8)
            arrays[f"{key}#ends"] = np.cumsum([len(item) for item in items])
        else:
            arrays[key] = np.asarray(values)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _at(row: Any, path: list[str]) -> Any:
    for name in path:
        row = row[name]
    return row


if __name__ == "__main__":
    _main()
