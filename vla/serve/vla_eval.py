"""The protocol of the VLA evaluation harness (`vla-eval`): {type, payload, seq, timestamp} as msgpack over a websocket.

The client says hello, starts an episode, and is answered one action for each observation: the queue of a chunk's commands is kept here,
per connection, and emptied when an episode starts, which is a session. Answers carry the seq of their observation; one that does not
rise is refused.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from vla.execute.queue import ChunkQueue, usually_executed
from vla.serve.codec import pack, unpack
from vla.serve.openpi import flat
from vla.serve.service import Service
from vla.serve.wire import Heard, Refusal
from vla.types import Chunk

HARNESS_PROTOCOL = 1
PATH = "/vla-eval"


class VlaEval:
    """One harness."""

    def __init__(self, service: Service) -> None:
        self._service, self._seq = service, 0
        self._begin()

    def greeting(self) -> None:
        return None

    async def answer(self, message: bytes | str) -> bytes | None:
        if isinstance(message, str):
            raise Refusal("malformed", "send binary messages")
        kind, payload, self._seq = _message(unpack(message))
        if kind == "hello":
            return self._say("hello", self._hello(payload))
        if kind == "observation":
            return self._say("action", {"actions": await self._act(payload)})
        if kind == "episode_start":
            self._begin(self._session.newest_seq)
        elif kind not in ("episode_end", "error"):
            raise Refusal("malformed", f"unknown message type '{kind[:40]}'")
        return None

    def refusal(self, refusal: Refusal) -> bytes:
        said = refusal.to_json()
        return self._say("error", {**said, "error": f"{refusal.kind}: {refusal.message}", "kind": refusal.kind})

    def _begin(self, newest_seq: int | None = None) -> None:
        """An episode."""
        service = self._service
        self._session = service.session()
        self._session.newest_seq = newest_seq
        self._queue = ChunkQueue(service.robot, service.settings.execute or usually_executed(service.robot.horizon))
        self._sent: list[np.ndarray] = []

    async def _act(self, payload: dict[str, Any]) -> Any:
        robot, newest = self._service.robot, self._session.newest_seq
        if newest is not None and self._seq <= newest:
            raise Refusal("reordered", f"message {self._seq} came after {newest}")
        self._session.newest_seq = self._seq
        if self._queue.wants_chunk:
            heard = Heard(flat(payload), executed=np.array(self._sent).reshape(-1, robot.command.size))
            self._sent = []  # said now; the service keeps it also if it refuses
            answer = await self._service.act(heard, self._session)
            self._queue.put(Chunk(answer.action_TA, robot.name, robot.rate_hz))
        self._sent.append(self._queue.pop())
        return self._sent[-1]

    def _hello(self, payload: dict[str, Any]) -> dict[str, Any]:
        theirs = payload.get("protocol_version", HARNESS_PROTOCOL)
        if not (isinstance(theirs, (int, float)) and theirs == HARNESS_PROTOCOL):
            difference = f"protocol_version is {HARNESS_PROTOCOL} here, and {str(theirs)[:20]} was expected"
            raise Refusal("mismatch", difference, (difference,))
        return {
            "harness_version": str(payload.get("harness_version", ""))[:40],
            "protocol_version": HARNESS_PROTOCOL,
            "model_server": "vla",
            "capabilities": {},
            "metadata": self._service.facts,
        }

    def _say(self, kind: str, payload: dict[str, Any]) -> bytes:
        return pack({"type": kind, "payload": payload, "seq": self._seq, "timestamp": time.time()}, text_keys=True)


def _message(message: Any) -> tuple[str, dict[str, Any], int]:
    if not isinstance(message, dict):
        raise Refusal("malformed", "a message is a map")
    kind, payload, seq = (message.get(name) for name in ("type", "payload", "seq"))
    if not isinstance(kind, str) or not isinstance(payload, dict) or isinstance(seq, bool) or not isinstance(seq, int):
        raise Refusal("malformed", "a message is {type, payload, seq, timestamp}")
    return kind, payload, seq
