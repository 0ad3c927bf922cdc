"""Simulator processes: started, watched, and killed when they wedge. Each runs `vla.evaluate.worker`."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from vla.child import command, environment
from vla.evaluate.wire import receive, send

START_TIMEOUT_S = 120.0
"""For Python, numpy and gymnasium to be imported on a busy machine; nothing of the policy or the simulator is in it."""
ONE_THREAD = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Process:
    """One simulator process and the messages that it has not answered yet, oldest first (`pending`; one slot each).

    Started apart rather than forked or spawned by `multiprocessing`: the caller's program is neither imported again (no torch in a
    simulator) nor sent anywhere, and its threads and GL state are not inherited. `python`: another interpreter, in whose environment a
    simulator lives that cannot be installed beside torch.
    """

    def __init__(self, setup: Mapping[str, Any], python: str | None = None) -> None:
        ours, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        with theirs:
            self._process = subprocess.Popen(
                command("vla.evaluate.worker", str(theirs.fileno()), python=python),
                pass_fds=[theirs.fileno()],
                env=environment(**ONE_THREAD),
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
            )
        self.connection = Connection(ours.detach())
        self.pending: deque[int] = deque()
        self.clock: dict[str, float] = {}
        self._greeted = False
        self.heard = time.monotonic()
        """When it last said something, or was given work after having none."""
        self.send(setup)

    def send(self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """A message and its arrays to the worker. One that has died is noticed by the next `receive`."""
        if not self.pending:
            self.heard = time.monotonic()
        if "slot" in message:
            self.pending.append(message["slot"])
        try:
            send(self.connection, message, arrays)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died; the next `receive` says so, with what it had to say

    def receive(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The next answer, or None when the process has died."""
        try:
            message, arrays = receive(self.connection)
        except (EOFError, ConnectionResetError):
            return None
        self.heard = time.monotonic()
        self.clock = message.pop("clock")
        oldest = self.pending.popleft()
        assert oldest == message["slot"], (oldest, message)
        return message, arrays

    def greeted(self) -> bool:
        """Takes its first word, which says that it has started, if that is what there is to read."""
        if self._greeted:
            return False
        try:
            receive(self.connection)
        except (EOFError, ConnectionResetError):
            return False
        self._greeted, self.heard = True, time.monotonic()
        return True

    def overdue(self, timeout_s: float) -> bool:
        """Whether it has owed an answer for longer than that."""
        silent_s = time.monotonic() - self.heard if self.pending else 0.0
        return silent_s > (timeout_s if self._greeted else START_TIMEOUT_S)

    def kill(self) -> str:
        """Ends it at once. Returns its last words, or by what it ended."""
        self.connection.close()
        self._process.kill()
        return self._last_words()

    def close(self) -> str:
        """Lets it end by itself (it does, once its socket closes), and returns as `kill`."""
        self.connection.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._last_words()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self._errors.close()
        if code < 0:
            return f"killed by signal {-code}"
        return lines[-1].strip() if lines else f"exit code {code}"


def ready(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Those with an answer to read (or dead), waiting at most so long for the first."""
    by_connection = {process.connection: process for process in processes}
    readable = [by_connection[connection] for connection in wait(list(by_connection), timeout_s)]  # type: ignore[index]
    return [process for process in readable if not process.greeted()]
