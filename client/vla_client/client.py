"""Asking a policy server over a websocket, with one deadline for everything that can take time."""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Mapping
from urllib.parse import urlsplit

from websockets.exceptions import InvalidStatus, WebSocketException

from vla_client.codec import Packer, ProtocolError, unpack
from vla_client.link import Link


class Unavailable(ConnectionError):
    """No usable answer: no server, a cut connection, a refusal. Hold or stop the robot; asking again reconnects."""


class TooLate(Unavailable):
    """The deadline passed. A late answer is never returned: the connection it would come over is closed."""


class Refused(Unavailable):
    """The server answered with an error in words. `kind`: of a vla server's refusal ("busy", "stale", "unsafe", ...), else ''."""

    kind = ""


class Mismatch(Unavailable):
    """The server's metadata are not what this robot expects."""


class PolicyClient:
    """One connection to a policy server (openpi's protocol). Connects at the first request; not for use by two threads at once.

    `url`: ws://host:port or wss://host:port. `timeout_s`: deadline of one request, connecting included. `token`: sent as
    `Authorization: Api-Key ...`; only wss keeps it secret. `expect`: metadata that the server must report, such as
    {"embodiment": "my_robot"}; anything else is a Mismatch. A vla server compares by itself too, and lists what differs.
    """

    def __init__(self, url: str, timeout_s: float, token: str | None = None, expect: Mapping[str, Any] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"'{url}' is no websocket address; write ws://host:port or wss://host:port")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, not {timeout_s}")
        self._url, self._timeout_s, self._token, self._expect = url, timeout_s, token, dict(expect or {})
        self._link: Link | None = None
        self._packer, self._seq = Packer(), 0
        self.metadata: dict[str, Any] = {}
        """What the server reported when the present connection was made."""

    def infer(self, observation: Mapping[str, Any], age_s: float = 0.0, executed: Any = None) -> dict[str, Any]:
        """The server's answer to an observation, usually with `actions` of shape (T, A), as it came: pass it to a Guard.

        `age_s`: how long ago the observation was made; `executed`: (n, A), the commands carried out between the last request's
        observation and this one, for the server's record and for what it replays. Both are told to a vla server alone, with the
        request's number and the time that is left, so that it can refuse in time what would be stale, reordered or late.

        Raises Unavailable (TooLate, Refused, Mismatch) or ProtocolError. After any of them the connection is closed, so that
        the answer to one observation is never taken for the answer to another; the next call makes a new one.
        """
        start_s = time.monotonic()
        deadline_s = start_s + self._timeout_s
        if self._link is None:
            self._connect(deadline_s)
        message = dict(observation)
        if self.metadata.get("server") == "vla":
            self._seq += 1
            now_s = time.monotonic()
            told = {"seq": self._seq, "age_s": age_s + now_s - start_s, "timeout_s": max(deadline_s - now_s, 0.0), "executed": executed}
            message["request"] = {**told, **message.get("request", {})}
        return self._exchange(self._packer.pack(message), deadline_s)

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.cut()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, deadline_s: float) -> None:
        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else {}
        if self._expect:
            headers["Vla-Expect"] = json.dumps(self._expect)
        try:
            self._link = Link(self._url, headers, deadline_s)
        except InvalidStatus as error:
            raise self._turned_away(error) from error
        except (OSError, WebSocketException) as error:
            raise self._unavailable(error, deadline_s) from error
        self.metadata = self._exchange(None, deadline_s)
        wrong = {key: self.metadata.get(key) for key, value in self._expect.items() if self.metadata.get(key) != value}
        if wrong:
            self.close()
            listed = "; ".join(f"{key} is {found!r}, not {self._expect[key]!r}" for key, found in wrong.items())
            raise Mismatch(f"{self._url} serves something else: {listed}")

    def _exchange(self, message: memoryview | None, deadline_s: float) -> dict[str, Any]:
        """Sends a message (None: nothing) and returns the next one; whatever goes wrong closes the connection."""
        link, self._link = self._link, None  # put back only after a good answer
        assert link is not None
        try:
            answer = self._understand(link.exchange(message, deadline_s))
        except (Unavailable, ProtocolError, KeyboardInterrupt):
            link.cut()
            raise
        except (OSError, WebSocketException) as error:
            link.cut()
            raise self._unavailable(error, deadline_s) from error
        if time.monotonic() >= deadline_s:
            link.cut()
            raise self._unavailable(TimeoutError(), deadline_s)
        self._link = link
        return answer

    def _understand(self, reply: str | bytes) -> dict[str, Any]:
        if isinstance(reply, str):  # openpi's way to report an error
            raise self._refused(reply, Refused)
        answer = unpack(reply)
        if not isinstance(answer, dict):
            raise ProtocolError(f"{self._url}: answered a {type(answer).__name__} instead of a map")
        return answer

    def _turned_away(self, error: InvalidStatus) -> Unavailable:
        """The handshake was answered with an HTTP error; a vla server says why."""
        body = (error.response.body or b"")[:2000].decode("utf-8", "replace")
        if not body.startswith("{"):
            return Unavailable(f"{self._url}: {error}")
        return self._refused(body, Mismatch if error.response.status_code == 409 else Unavailable, f"{error.response.status_code} ")

    def _refused(self, text: str, kind: type[Unavailable], before: str = "") -> Unavailable:
        """A refusal in words, or in a vla server's JSON."""
        try:
            said = json.loads(text)
        except ValueError:
            said = None
        if not isinstance(said, dict) or not isinstance(said.get("error"), str):
            return kind(f"{self._url}: {before}{text[:500]}")
        refused = kind(f"{self._url}: {before}{said['error']}: {str(said.get('message', ''))[:600]}")
        if isinstance(refused, Refused):
            refused.kind = said["error"]
        return refused

    def _unavailable(self, error: Exception, deadline_s: float) -> Unavailable:
        # Before Python 3.10 a socket's timeout is no TimeoutError.
        if isinstance(error, (TimeoutError, socket.timeout)) or time.monotonic() >= deadline_s:
            return TooLate(f"{self._url}: nothing within {self._timeout_s} s")
        return Unavailable(f"{self._url}: {error}")
