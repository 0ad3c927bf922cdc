"""What every protocol shares: how a request is put to the service, how it is refused, and what one connection's protocol has to offer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

PROTOCOL_VERSION = 1
"""Of what we add to the public protocols: `request` in observations, the `Vla-Expect` header, errors as JSON with a kind."""

MOST_UNRECORDED = 256
"""Refused requests in a row of which is remembered what they say was carried out."""

KINDS: Mapping[str, int] = {
    "malformed": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "mismatch": 409,
    "stale": 409,
    "reordered": 409,
    "too_large": 413,
    "bad_observation": 422,
    "unsafe": 500,
    "policy_failed": 500,
    "internal": 500,
    "busy": 503,
    "draining": 503,
    "deadline": 504,
}
"""Kind of refusal -> HTTP status. A client may rely on the kind; the message is for people, short, and names no path."""


def log_mistake(what: str, error: BaseException) -> None:
    """A mistake in code, with its traceback, for whoever runs the server: on standard error, unless `logging` is told otherwise."""
    logging.getLogger("vla.serve").error(what, exc_info=error)


def log_warning(what: str) -> None:
    """Something that whoever runs the server should look at."""
    logging.getLogger("vla.serve").warning(what)


class Refusal(Exception):
    """A request that gets no action. `differences`: what a handshake expected and did not find, a line each."""

    def __init__(self, kind: str, message: str, differences: tuple[str, ...] = ()) -> None:
        assert kind in KINDS
        super().__init__(message)
        self.kind, self.message, self.differences = kind, message[:600], differences

    def to_json(self) -> dict[str, Any]:
        return {"error": self.kind, "message": self.message, **({"differences": list(self.differences)} if self.differences else {})}


def internal() -> Refusal:
    """What a client is told of an error that nobody foresaw: no more than that, since its text may name files."""
    return Refusal("internal", "the server failed over this request by a mistake of its own; its log says which")


@dataclass(frozen=True)
class Compressed:
    """A picture as PNG or JPEG, not decoded yet."""

    data: bytes


@dataclass(frozen=True)
class Heard:
    """A request as its protocol said it, in no protocol's terms. `values`: by wire name, arrays, texts or `Compressed`; nested maps
    as `images.wrist`. `seq`: rises within a session. `age_s`: how long ago the observation was made when it was sent. `timeout_s`:
    how long the client waits. `executed`: the commands it has carried out since it asked last, up to this observation. `execute`: where
    it does not say so, how many of this answer's it will, by its protocol."""

    values: Mapping[str, Any]
    offsets_s: tuple[float, ...] = (0.0,)
    seq: int | None = None
    age_s: float = 0.0
    timeout_s: float | None = None
    executed: Any = None
    execute: int | None = None


@dataclass
class Session:
    """What is remembered of one client. `step`: commands that it has carried out, as far as it or its protocol says; `given`: those of
    the last answer that count as carried out if the next request does not say. `unrecorded`: what it said in requests since the last
    that was answered, (n, A) each."""

    id: int
    calls: int = 0
    newest_seq: int | None = None
    step: int = 0
    given: int = 0
    unrecorded: deque[Any] = field(default_factory=lambda: deque(maxlen=MOST_UNRECORDED))

    def key(self) -> int:
        """Of the call that is being made: tells it apart from all others, for its noise, and holds the step, for what is replayed."""
        return ((self.id % _SESSIONS) * _STEPS + self.step % _STEPS) * _CALLS + self.calls % _CALLS


_SESSIONS, _STEPS, _CALLS = 2**23, 2**20, 2**20  # 63 bits


def step_of(key: int) -> int:
    """At which step of its episode a request is, from its key."""
    return key // _CALLS % _STEPS


class Wire(Protocol):
    """One protocol on one connection."""

    def greeting(self) -> bytes | None:
        """The first message, sent before any is heard; None for a protocol in which the client speaks first."""
        ...

    async def answer(self, message: bytes | str) -> bytes | str | None:
        """The answer to a message, if it has one. Raises Refusal."""
        ...

    def refusal(self, refusal: Refusal) -> bytes | str:
        """A refusal in this protocol's words."""
        ...


@dataclass(frozen=True)
class Limits:
    """What one client may cost, whatever it sends."""

    message_bytes: int = 16 * 2**20
    held_bytes: int = 256 * 2**20
    """Of messages that have not come whole, over all connections."""
    head_bytes: int = 16 * 2**10
    connections: int = 512
    frames_a_message: int = 1024
    head_s: float = 5.0
    """For the head of a request, and for an idle connection between two of them."""
    message_s: float = 10.0
    ping_s: float = 20.0
    """A connection that was silent for so long is pinged; silent for twice as long, it is closed."""
    send_s: float = 5.0


@dataclass(frozen=True)
class Door:
    """Who may come in. Without a token, only this machine's own programs: no other host, and no page in its browser."""

    token: str | None = None
    hosts: tuple[str, ...] = field(default=("127.0.0.1", "localhost", "[::1]"))
