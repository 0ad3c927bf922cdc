"""Being asked to stop: the step in progress is finished and saved, and a second interrupt leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: stopped on request, everything saved; the same command with --resume goes on."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is what Slurm sends ahead of time (`--signal=USR1@120`)."""


@dataclass
class Stop:
    """`requested`: the name of the signal, or ''."""

    requested: str = ""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Watches for `SIGNALS` while inside. Outside the main thread Python has no handlers, and nothing is watched."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
