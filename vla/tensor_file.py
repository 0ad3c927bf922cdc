"""Writing safetensors straight from memory: no second copy of a state, and no lock on the interpreter while bytes go to the disk.

The library's own `save_file` copies every tensor first and holds Python's lock until the last byte, so that a training that saves in
the background would stand still. The format: 8 bytes of the header's length, the header in JSON, the tensors one after another.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

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
PIECE = 1 << 26
"""Bytes of one write."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The file as the library writes it: largest items first, then by name. OSError where the disk does not take it.

    Tensors on another device come to the host one at a time. They may share memory; each is written whole.
    """
    order, head = header({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    with open(path, "wb", buffering=0) as file:
        _write(file.fileno(), memoryview(head))
        for name in order:
            host = tensors[name].detach().cpu().contiguous()
            if host.numel():
                _write(file.fileno(), memoryview(host.view(-1).view(torch.uint8).numpy()))


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


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data[:PIECE]) :]
