"""What the tests of the server share: policies that behave as told, a service around them, and bare HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.parts import robot
from vla.embodiment import Embodiment
from vla.serve.service import Service, Settings
from vla.types import Chunk, Observation

ROBOT = robot("narrow", action=2, state=3, horizon=4)
LONG_S = 60.0


def said(number: float = 0.0, side: int = 16, of: Embodiment = ROBOT) -> dict:
    """An observation as a client says it; its state is `number` throughout."""
    images = {role: np.full((side, side, 3), 7, np.uint8) for role in of.cameras}
    return {"prompt": "open the door", "images": images, "state": np.full(of.state.size, number)}


@dataclass
class Echo:
    """Answers the state's first number in every row, so that an answer shows whose observation it belongs to. `before` is called first,
    with the observations of the batch."""

    robot: Embodiment = ROBOT
    before: Callable[[Sequence[Observation]], None] = lambda observations: None
    batches: list[int] = field(default_factory=list)

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        self.before(observations)
        self.batches.append(len(observations))
        return [self.chunk(observation) for observation in observations]

    def chunk(self, observation: Observation) -> Chunk:
        shape = (self.robot.horizon, self.robot.command.size)
        return Chunk(np.full(shape, observation.state[-1, 0]), self.robot.name, self.robot.rate_hz)


@dataclass
class Gated(Echo):
    """Begins a batch, tells so, and goes on when it is let."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        self.begun.release()
        assert self.go.acquire(timeout=LONG_S)
        return super().act_batch(observations, keys)


def service(actor, of: Embodiment = ROBOT, **settings) -> Service:
    settings.setdefault("deadline_s", LONG_S)
    return Service(actor, of, Settings(**settings))


def get(address: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    return request(address, "GET", path, headers=headers)


def request(address: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=LONG_S)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def statistics(address: str) -> dict:
    return json.loads(get(address, "/statistics")[1])


def eventually(condition: Callable[[], bool], seconds: float = LONG_S) -> None:
    """Waits until it holds; fails if it does not within a time that only a broken program needs."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def raw(address: str, data: bytes = b"") -> socket.socket:
    """A connection by hand."""
    host, port = address.rsplit(":", 1)
    peer = socket.create_connection((host, int(port)), timeout=LONG_S)
    peer.sendall(data)
    return peer


def beside_groot(server, talk: Callable[[str], list]) -> list:
    """What `talk` returns in a thread of its own, told where the server's GR00T socket listens while it serves."""
    from vla.serve.groot import serve_groot

    async def both() -> list:
        ready = asyncio.Event()
        serve = asyncio.create_task(server.run(ready.set))
        await ready.wait()
        groot = await serve_groot(server, 0)
        found = await asyncio.to_thread(talk, groot.get_name())
        groot.cancel()
        server.stop()
        await serve
        return found

    return asyncio.run(both())
