"""A server beside other work: in tests, benchmarks and notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vla.serve.server import Server
from vla.serve.service import Service


@contextmanager
def serving(service: Service, *, token: str | None = None) -> Iterator[Server]:
    """Serves on a free port of this machine, in a thread with an event loop of its own, until the block ends."""
    ready, started = threading.Event(), []
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        started.append(Server(service, port=0, token=token))
        await started[0].run(ready.set)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="server", daemon=True)
    thread.start()
    if not ready.wait(60):
        raise RuntimeError("the server did not start")
    try:
        yield started[0]
    finally:
        with suppress(RuntimeError):  # a server whose policy broke has ended by itself, and its loop is closed
            loops[0].call_soon_threadsafe(started[0].stop)
        thread.join(60)
