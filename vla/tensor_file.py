"""Writing safetensors straight from memory, hashed on the way: no second copy of a state, no second look at its bytes, no lock on the
interpreter while they go to the disk.

The library's own `save_file` copies every tensor first and holds Python's lock until the last byte, so that a training that saves in
the background would stand still. The format: 8 bytes of the header's length, the header in JSON, the tensors one after another.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
PIECE = 1 << 20
"""Bytes of one write: they are hashed from the caches that writing them has filled."""
FLUSHED = 1 << 26
"""Bytes after which the disk is told to take what it has been given, while the next ones are written."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """The file as the library writes it: largest items first, then by name; on the disk when this returns. Its sha256.

    Tensors on another device come to the host one at a time. They may share memory; each is written whole. OSError where the disk does
    not take it.
    """
    order, head = header({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    return write_bytes(path, chain([memoryview(head)], chain.from_iterable(bytes_of(tensors[name]) for name in order)))


def write_bytes(path: Path, parts: Iterable[memoryview]) -> str:
    """A file of these bytes, one part after another, each asked for when the one before is written; on the disk when this returns. Its
    sha256, in hex. OSError where the disk does not take it."""
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file, _Flushing(file.fileno()) as flushing:
        for data in parts:
            for at in range(0, len(data), PIECE):
                piece = data[at : at + PIECE]
                _write(file.fileno(), piece)
                digest.update(piece)
                flushing.written(len(piece))
    return digest.hexdigest()


def header(rows: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[list[str], bytes]:
    """The names in the order of their data (as the library's: every tensor is aligned), and the bytes that stand before it."""
    order = sorted(rows, key=lambda name: (-rows[name][0].itemsize, name))
    said: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        dtype, shape = rows[name]
        size = math.prod(shape) * dtype.itemsize
        said[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return order, len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """Its data in memory, brought to the host when it is asked for; nothing of an empty one."""
    host = tensor.detach().cpu().contiguous()
    if host.numel():
        yield memoryview(host.view(-1).view(torch.uint8).numpy())


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _flush(handle: int) -> None:
    os.fsync(handle)


class _Flushing(threading.Thread):
    """Flushes an open file again and again while it is written, and once more at its end, which waits for it.

    A daemon: a process that is told to leave at once does not wait for the disk.
    """

    def __init__(self, handle: int) -> None:
        super().__init__(name="vla-flush", daemon=True)
        self._handle, self._bytes, self._ended = handle, 0, False
        self._changed = threading.Condition()
        self._failure: OSError | None = None

    def written(self, size: int) -> None:
        """So many bytes more."""
        with self._changed:
            self._bytes += size
            if self._bytes >= FLUSHED:
                self._changed.notify()

    def run(self) -> None:
        ended = False
        while not ended:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._bytes >= FLUSHED)
                self._bytes, ended = 0, self._ended
            try:
                _flush(self._handle)
            except OSError as error:
                self._failure = error
                return

    def __enter__(self) -> _Flushing:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self.join()
        if self._failure is not None and error is None:
            raise self._failure
