"""safetensors written from memory: the library reads them back, bit for bit, and would have written the same bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla import tensor_file
from vla.tensor_file import DTYPES, write_tensors


def tensors():
    torch.manual_seed(0)
    found = {f"of {dtype}": (torch.randn(3, 5) * 50).to(dtype) for dtype in DTYPES}
    return {**found, "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "turned": torch.randn(4, 6).T, "é": torch.ones(2)}


def test_the_library_reads_what_was_written_and_writes_the_same(tmp_path):
    write_tensors(tmp_path / "ours", tensors())
    found = load_file(tmp_path / "ours")
    assert set(found) == set(tensors())
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    save_file({name: tensor.contiguous() for name, tensor in tensors().items()}, tmp_path / "theirs", metadata={"format": "pt"})
    again = load_file(tmp_path / "theirs")
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_tensors_may_share_memory(tmp_path):
    whole = torch.arange(10.0)
    write_tensors(tmp_path / "file", {"whole": whole, "part": whole[2:5], "tied": whole})
    found = load_file(tmp_path / "file")
    assert torch.equal(found["part"], whole[2:5]) and torch.equal(found["tied"], whole)


def test_a_full_disk_is_the_systems_own_error():
    with pytest.raises(OSError) as raised:
        write_tensors(Path("/dev/full"), {"a": torch.ones(1 << 20)})
    assert raised.value.errno == errno.ENOSPC


def test_it_is_hashed_on_the_way_and_the_disk_begins_before_the_end(tmp_path, monkeypatch):
    """Pieces of a megabyte that end anywhere; the writer stops after two of them until the disk was told."""
    flushes, told, flush, write = [], threading.Event(), tensor_file._flush, tensor_file._write

    def flushed(handle: int) -> None:
        flushes.append(os.fstat(handle).st_size)
        flush(handle)
        told.set()

    def waits(handle: int, data: memoryview) -> None:
        if os.fstat(handle).st_size > 2 << 20:
            assert told.wait(60), "the disk is not told until the end"
        write(handle, data)

    monkeypatch.setattr(tensor_file, "FLUSHED", 1 << 20)
    monkeypatch.setattr(tensor_file, "_flush", flushed)
    monkeypatch.setattr(tensor_file, "_write", waits)
    path = tmp_path / "file"
    digest = write_tensors(path, {"a": torch.randn(700_001), "b": torch.randn(500_003), "c": torch.randn(3)})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert flushes[0] < flushes[-1] == path.stat().st_size


@pytest.mark.parametrize("last", [False, True])
def test_a_flush_that_fails_is_told_whenever_it_was(tmp_path, monkeypatch, last):
    tensor = torch.randn(1_000_001)

    def fails(handle: int) -> None:
        if not last or os.fstat(handle).st_size > tensor.nbytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(tensor_file, "FLUSHED", 1 << 20)
    monkeypatch.setattr(tensor_file, "_flush", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write_tensors(tmp_path / "file", {"a": tensor})
