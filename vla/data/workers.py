"""Loader processes: batches are built in memory that both sides see, so that what is sent is only where they lie.

Worker w of W makes batches w, w + W, w + 2W, ... and the parent takes them in turn, so the order is that of one process. A block of
shared memory belongs to the consumer until the last array or tensor that was cut from it is gone; then the worker builds in it
again. A worker notes which position it is at: when it hangs, crashes or is killed, the sample it was at is named.

Between these processes objects travel as `multiprocessing` sends them; nothing from a file goes that way.
"""

from __future__ import annotations

import gc
import io
import mmap
import multiprocessing
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from vla.data.memory import FIRST_BYTES, Block, Canvas
from vla.errors import Damaged, UserError

Make = Callable[[Iterator[int], Callable[[], Canvas]], Iterator[Any]]
"""(numbers of batches, what gives the next canvas) -> the batches, one for each number, lazily."""
SPARE = 3
"""Blocks a worker has beyond those it may be ahead by: the batch in the consumer's hands, the one before, the one being built."""
_FREE, _SENT = 0, 1
_HEAD = struct.Struct("<qq")
"""In front of what is sent: number of the block that it points into (-1: none), and its bytes."""
_PARENT_CHECK_S = 2.0


class LoaderFailed(UserError):
    """A loader process hung, crashed or was killed."""

    exit_code = 1


def from_workers(
    make: Make,
    begin: Callable[[int, np.ndarray], None],
    where: Callable[[int], str],
    count: int | None,
    workers: int,
    ahead: int,
    timeout_s: float,
) -> Generator[Any, None, None]:
    """The batches of `make`, 0..count-1, made by `workers` processes that stay up to `ahead` batches each in front.

    `begin(worker number, position cell)` runs in each first; the cell, int64 (1,), is where it notes the position it is at, and
    `where(position)` says which sample that is. Raises a worker's UserError; LoaderFailed after `timeout_s` of waiting for one
    batch, or when a process is gone.
    """
    cells = np.frombuffer(mmap.mmap(-1, 8 * workers), np.int64)
    cells[:] = -1
    crew = [_Worker(number, workers, make, begin, cells[number : number + 1], count, max(ahead, 1)) for number in range(workers)]
    try:
        number = 0
        while count is None or number < count:
            worker = crew[number % workers]
            try:
                yield worker.receive(timeout_s)
            except _Gone as error:
                at = int(worker.cell[0])
                place = where(at) if at >= 0 else "before its first sample"
                raise LoaderFailed(f"loader process {worker.number} of {workers} {error} at {place}") from None
            number += 1
    finally:
        for worker in crew:
            worker.stop()


class _Gone(UserError):
    pass


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way home."""

    message: str
    exit_code: int


class _Worker:
    """The parent's side of one process."""

    def __init__(
        self,
        number: int,
        workers: int,
        make: Make,
        begin: Callable[[int, np.ndarray], None],
        cell: np.ndarray,
        count: int | None,
        ahead: int,
    ) -> None:
        self.number, self.cell = number, cell
        self._blocks = [Block(shared=True) for _ in range(ahead + SPARE)]
        self._flags = np.frombuffer(mmap.mmap(-1, len(self._blocks)), np.uint8)
        context = multiprocessing.get_context("fork")  # what it works on is shared, not sent
        self._conn, theirs = context.Pipe()
        numbers = range(number, sys.maxsize if count is None else count, workers)
        side = _Side(os.getpid(), theirs, self._blocks, self._flags, ahead)
        self._process: BaseProcess = context.Process(
            target=_work, args=(side, make, begin, number, cell, numbers), name=f"vla-loader-{number}", daemon=True
        )
        self._process.start()
        theirs.close()
        self._ready = select.poll()  # kept: `Connection.poll` makes one anew each time
        self._fd = self._conn.fileno()
        for fd in (self._fd, self._process.sentinel):
            self._ready.register(fd, select.POLLIN)

    def receive(self, timeout_s: float) -> Any:
        ready = self._ready.poll(timeout_s * 1000)
        if not ready:
            raise _Gone(f"gave nothing for {timeout_s:g} s, and was stopped,")
        try:
            if not self._sent(ready) and not self._sent(self._ready.poll(0)):  # it may have ended right after it sent
                raise EOFError
            data = self._conn.recv_bytes()
        except (EOFError, ConnectionError):
            self._process.join(5)
            raise _Gone(_how(self._process.exitcode)) from None
        value = _unpack(memoryview(data)[_HEAD.size :], self._adopt(*_HEAD.unpack_from(data)))
        with suppress(ConnectionError):  # it may be gone by the time: then the next batch says so
            self._conn.send_bytes(b"\0")  # one more may be made
        if isinstance(value, _Failure):
            raise Damaged(value.message) if value.exit_code == Damaged.exit_code else UserError(value.message)
        return value

    def _sent(self, ready: list[tuple[int, int]]) -> bool:
        return any(fd == self._fd for fd, _ in ready)

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(5)
        if self._process.is_alive():  # stuck in a system call
            self._process.kill()
            self._process.join(5)
        self._conn.close()
        for block in self._blocks:
            os.close(block.fd)

    def _adopt(self, block: int, size: int) -> np.ndarray:
        if block < 0:
            return np.zeros(0, np.uint8)
        flags = self._flags
        return self._blocks[block].lend(size, lambda _: flags.__setitem__(block, _FREE))


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "closed its pipe"
    if exit_code == -signal.SIGKILL:
        return "was killed (out of memory?)"
    if exit_code < 0:
        return f"crashed with {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code} (its traceback is above)"


@dataclass(frozen=True)
class _Side:
    """The worker's side."""

    parent: int
    conn: Connection
    blocks: list[Block]
    flags: np.ndarray
    ahead: int


def _work(side: _Side, make: Make, begin: Callable[[int, np.ndarray], None], number: int, cell: np.ndarray, numbers: range) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    gc.freeze()  # what the parent had is no garbage of ours: neither searched again and again nor copied for it
    begin(number, cell)
    allowed, size, current = side.ahead, FIRST_BYTES, -1
    canvas = Canvas(np.zeros(0, np.uint8))

    def next_canvas() -> Canvas:
        nonlocal current, canvas
        canvas = Canvas(np.zeros(0, np.uint8))  # the last one is free, but for what the batch's maker still holds
        current = next((i for i, block in enumerate(side.blocks) if side.flags[i] == _FREE and not block.lent), -1)
        canvas = Canvas(np.zeros(0, np.uint8) if current < 0 else side.blocks[current].lend(size))
        return canvas

    made = make(iter(numbers), next_canvas)
    asked = select.poll()
    asked.register(side.conn.fileno(), select.POLLIN)
    while True:
        while not allowed or asked.poll(0):
            if not asked.poll(_PARENT_CHECK_S * 1000):
                if os.getppid() != side.parent:
                    return
                continue
            side.conn.recv_bytes()
            allowed += 1
        try:
            value = next(made, None)
        except UserError as error:
            value = _Failure(str(error), error.exit_code)
        if value is None:
            break
        data = _pack(value, canvas)
        if canvas.pointed_to and current >= 0:
            side.flags[current] = _SENT
        side.conn.send_bytes(_HEAD.pack(current if canvas.pointed_to else -1, len(canvas.block)) + data)
        if isinstance(value, _Failure):
            break
        allowed -= 1
        size = max(size, canvas.wanted)
        del value
    side.conn.poll(None)  # stays until it is stopped, so that its end is no crash


class _Packer(ForkingPickler):
    """As `multiprocessing` sends objects, but for arrays, which stay in the canvas where there is room."""

    def __init__(self, file: io.BytesIO, canvas: Canvas) -> None:
        super().__init__(file, 5)
        self._canvas = canvas

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.ndarray and not value.dtype.hasobject and value.dtype.names is None:
            return self._array(value, False)
        torch = sys.modules.get("torch")
        if torch is not None and type(value) is torch.Tensor and value.device.type == "cpu" and value.dtype is not torch.bfloat16:
            return self._array(value.detach().numpy(), True)
        return NotImplemented

    def _array(self, array: np.ndarray, tensor: bool) -> tuple:
        offset = self._canvas.offset(array)
        if offset is None:
            offset = self._canvas.put(array) if array.nbytes else None
        if offset is None:
            return _inline, (array.tobytes(), array.dtype.str, array.shape, tensor)
        self._canvas.pointed_to = True
        return _placed, (offset, array.dtype.str, array.shape, tensor)


def _pack(value: Any, canvas: Canvas) -> bytes:
    file = io.BytesIO()
    _Packer(file, canvas).dump(value)
    return file.getvalue()


_adopted = threading.local()
"""`.block`: what arrays are being unpacked from, within `_unpack`."""


def _unpack(data: bytes | memoryview, block: np.ndarray) -> Any:
    _adopted.block = block
    try:
        return ForkingPickler.loads(data)
    finally:
        del _adopted.block


def _placed(offset: int, dtype: str, shape: tuple[int, ...], tensor: bool) -> Any:
    return _as(np.ndarray(shape, np.dtype(dtype), _adopted.block, offset), tensor)


def _inline(data: bytes, dtype: str, shape: tuple[int, ...], tensor: bool) -> Any:
    return _as(np.frombuffer(bytearray(data), np.dtype(dtype)).reshape(shape), tensor)


def _as(array: np.ndarray, tensor: bool) -> Any:
    if tensor:
        import torch  # which the worker may be the first to have imported

        return torch.from_numpy(array)
    return array
