"""As much of HTTP/1.1 as a robot needs: a head with limits, a body of a stated length, an answer of one piece."""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla.serve.wire import KINDS, Door, Refusal


@dataclass(frozen=True)
class Head:
    """`headers`: by lower-case name; of one that came twice, the values joined by commas."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a websocket."""
        return self.headers.get("upgrade", "").lower() == "websocket"

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow."""
        return "close" not in self.headers.get("connection", "").lower()

    def length(self, limit: int) -> int:
        """Bytes of the body. Raises Refusal before any of them is read."""
        if "transfer-encoding" in self.headers:
            raise Refusal("malformed", "transfer codings are not read; send a Content-Length")
        text = self.headers.get("content-length", "0")
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise Refusal("malformed", "Content-Length must be one number")
        if int(text) > limit:
            raise Refusal("too_large", f"a message has at most {limit} bytes")
        return int(text)


def parse_head(data: bytes) -> Head:
    """Everything up to the empty line -> Head. Raises Refusal."""
    try:
        first, *lines = data.decode("ascii").split("\r\n")
        method, target, version = first.split(" ")
    except (UnicodeDecodeError, ValueError) as error:
        raise Refusal("malformed", "not HTTP") from error
    if version != "HTTP/1.1" or not method.isalpha() or not target.startswith("/"):
        raise Refusal("malformed", "speak HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Refusal("malformed", "not a header")
        key = name.lower()
        headers[key] = f"{headers[key]},{value.strip()}" if key in headers else value.strip()
    return Head(method, target.partition("?")[0], headers)


def admit(head: Head, door: Door) -> None:
    """Raises Refusal unless this may come in: by token, or from this machine and from no page in its browser.

    A page of any site may talk to 127.0.0.1, under a name of its own if it likes; Origin and Host give both away.
    """
    if "origin" in head.headers:
        raise Refusal("forbidden", "no pages of a browser here")
    if door.token is None:
        name = head.headers.get("host", "").rsplit(":", 1)[0] if not head.headers.get("host", "").endswith("]") else head.headers["host"]
        if name.lower() not in door.hosts:
            raise Refusal("forbidden", f"without a token this answers to {', '.join(door.hosts)} alone")
        return
    kind, _, given = head.headers.get("authorization", "").partition(" ")
    if kind not in ("Api-Key", "Bearer") or not same_secret(given.strip(), door.token):
        raise Refusal("unauthorized", "send the token as `Authorization: Api-Key ...`")


def same_secret(given: str, secret: str) -> bool:
    """Whether they are equal, in a time that tells nothing about either."""
    import hashlib
    import hmac

    return hmac.compare_digest(*(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, secret)))


def expected_facts(head: Head) -> dict[str, Any]:
    """What the robot expects of this server: the `Vla-Expect` header, a JSON map; empty without it."""
    text = head.headers.get("vla-expect")
    if text is None:
        return {}
    try:
        expected = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal("malformed", "Vla-Expect must be a JSON map") from error
    if not isinstance(expected, dict):
        raise Refusal("malformed", "Vla-Expect must be a JSON map")
    return expected


def respond(status: int, body: bytes, kind: str = "application/json", close: bool = False, head_alone: bool = False) -> bytes:
    """A whole HTTP/1.1 answer; `kind` is its content type. `head_alone`: as a HEAD request wants it, with the length but no body."""
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Connection: {'close' if close else 'keep-alive'}\r\nX-Content-Type-Options: nosniff\r\n\r\n"
    )
    return head.encode() + (b"" if head_alone else body)


def refuse(refusal: Refusal) -> bytes:
    """A refusal as a whole HTTP answer, after which the connection ends."""
    return respond(KINDS[refusal.kind], json.dumps(refusal.to_json()).encode(), close=True)
