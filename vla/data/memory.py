"""Memory that batches are built in, used again once nothing refers to it any more.

Fresh memory costs a page fault per 4 kB, which for a frame of 224 px is more than a tenth of decoding it. So a batch is decoded into
a block that an earlier one has left, and across processes into a block that both sides see, where it need not be sent at all.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Callable, Sequence

import numpy as np

ALIGN, SHIFT = 64, 16
"""Bytes. Arrays begin SHIFT after a cache line: where its output begins at one, libjpeg-turbo (AVX2) writes around the caches, and
decoding a frame of 224 px costs a tenth more."""


FIRST_BYTES = 64 << 20
"""Of a block before any batch was seen. What is not touched takes no memory."""


class Canvas:
    """Arrays cut from one block, in the order asked for. `wanted`: bytes asked for so far, also where there was no
    room. `pointed_to`: for whoever sends it, whether what it sends lies in it."""

    def __init__(self, block: np.ndarray) -> None:
        """`block`: uint8 (bytes,), from the start of a page; every array cut from it keeps it alive."""
        self.block, self.wanted, self.pointed_to, self._used = block, SHIFT, False, SHIFT
        self.address = block.__array_interface__["data"][0]
        self._cuts: dict[int, tuple[int, np.ndarray]] = {}  # by id, of arrays that are kept alive by it
        _canvases[id(block)] = self

    def take(self, shape: tuple[int, ...], dtype: np.dtype | type = np.uint8) -> np.ndarray | None:
        """An array to be filled, or None where the block has no room left."""
        size = -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGN) * ALIGN
        self.wanted += size
        start = self._used
        if start + size > len(self.block):
            return None
        self._used = start + size
        array = np.ndarray(shape, dtype, self.block, start)
        self._cuts[id(array)] = start, array
        return array

    def put(self, array: np.ndarray) -> int | None:
        """Where a copy of it begins, or None where the block has no room left."""
        start = self._used
        place = self.take(array.shape, array.dtype)
        if place is None:
            return None
        place[...] = array
        return start

    def take_many(self, count: int, shape: tuple[int, ...]) -> list[np.ndarray] | list[None]:
        """So many uint8 arrays of one shape, one after the other; None each where there is no room for all."""
        size = -(-math.prod(shape) // ALIGN) * ALIGN
        self.wanted += size * count
        start = self._used
        if start + size * count > len(self.block):
            return [None] * count
        self._used = start + size * count
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        arrays = list(np.ndarray((count, *shape), np.uint8, self.block, start, (size, *strides)))
        for number, array in enumerate(arrays):
            self._cuts[id(array)] = start + number * size, array
        return arrays

    def start(self, array: np.ndarray) -> int:
        """Where an array that was cut from it begins; -1 for any other object. Cheaper than to ask the array."""
        return self._cuts.get(id(array), (-1,))[0]

    def offset(self, array: np.ndarray) -> int | None:
        """Where a C-contiguous array lies in the block; None if it is elsewhere."""
        if array.base is None:  # memory of its own; cheaper than to ask where
            return None
        start = array.__array_interface__["data"][0] - self.address
        inside = start >= 0 and start + array.nbytes <= len(self.block)
        return start if inside and array.nbytes and array.flags.c_contiguous else None


class Block:
    """One piece of memory, lent out once at a time. It grows between two loans.

    `shared`: other processes forked from this one see it too, through the same file, which has no name and is gone with the last.
    """

    def __init__(self, shared: bool = False) -> None:
        self.fd = _nameless_file() if shared else -1
        self._memory: mmap.mmap | None = None
        self._loan: weakref.ref[np.ndarray] | None = None

    @property
    def lent(self) -> bool:
        """Whether an array that was cut from it in this process is still alive."""
        return self._loan is not None and self._loan() is not None

    def lend(self, size: int, back: Callable[[weakref.ref], object] | None = None) -> np.ndarray:
        """The block as uint8 (at least `size` bytes,), empty if `size` is 0. `back` is called once nothing refers to it any more."""
        assert not self.lent
        if size and (self._memory is None or len(self._memory) < size):
            size = -(-size // ALIGN) * ALIGN
            if self.fd >= 0 and os.fstat(self.fd).st_size < size:
                os.ftruncate(self.fd, size)
            self._memory = mmap.mmap(self.fd, size if self.fd < 0 else os.fstat(self.fd).st_size)
        # From the map and not from another array: numpy lets views of views refer to the first array alone, which is then this one.
        loan = np.frombuffer(self._memory, np.uint8) if size and self._memory is not None else np.zeros(0, np.uint8)
        self._loan = weakref.ref(loan, back)
        return loan


class Ring:
    """Canvases for one batch after another in this process, each as large as the largest batch so far."""

    def __init__(self, keep: int = 8) -> None:
        self.keep, self._size = keep, FIRST_BYTES
        self._blocks: list[Block] = []
        self._last: Canvas | None = None

    def canvas(self) -> Canvas:
        """A block that is free, or a new one; past `keep` of them, an empty one, so that its arrays are allocated as usual."""
        if self._last is not None:
            self._size, self._last = max(self._size, self._last.wanted), None
        block = next((block for block in self._blocks if not block.lent), None)
        if block is None:
            if len(self._blocks) >= self.keep:
                return Canvas(np.zeros(0, np.uint8))
            block = Block()
            self._blocks.append(block)
        self._last = Canvas(block.lend(self._size))
        return self._last


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """`np.stack`, without a copy where the arrays lie one after the other in one block, as a batch's images do. Not to be written
    to by whoever did not make the arrays."""
    first = arrays[0]
    canvas = _canvases.get(id(first.base))
    if canvas is None or canvas.block is not first.base:
        return np.stack(arrays)
    starts = [canvas.start(array) for array in arrays]
    step = starts[1] - starts[0] if len(starts) > 1 else first.nbytes
    even = step >= first.nbytes and starts == list(range(starts[0], starts[0] + step * len(starts), step)) and starts[0] >= 0
    if not even or any(array.shape != first.shape or array.dtype != first.dtype for array in arrays):
        return np.stack(arrays)
    return np.ndarray((len(arrays), *first.shape), first.dtype, canvas.block, starts[0], (step, *first.strides))


_canvases: weakref.WeakValueDictionary[int, Canvas] = weakref.WeakValueDictionary()
"""By the id of their block, so that an array's base tells what it was cut from."""


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):  # Linux: memory that no size of /dev/shm limits
        return os.memfd_create("vla-batch", os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
