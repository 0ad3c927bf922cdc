"""One TCP connection, and the websocket that it may become; counts what it holds, so that nobody can fill the memory slowly.

Bytes are read into one buffer and looked at there as they come, also while a request is answered: a ping never waits for the policy.
Nothing more is read while a message waits to be taken, or while the other side does not take what it is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vla.serve.frames import Frames
from vla.serve.wire import Limits, Refusal, Wire

READ_BYTES = 2**16
"""Room that is offered for what comes next, at least."""
KEPT_BYTES = 2**26
"""Of buffers that outlast their messages, over all connections: whose does not fit any more begins small again."""


class Closed(ConnectionError):
    """The other side has gone, or was sent away."""


class Held:
    """Bytes of messages that have not come whole or are not answered yet, over all connections; and of buffers that are `kept` beside."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes, self.kept = limit, 0, 0


class Connection(asyncio.BufferedProtocol):
    """`state`: "head" while a request's head is read or awaited, "body", "websocket" between messages, "busy" while one is answered.

    `accepted` is called once it is open. One task then asks for heads, bodies and messages; each raises Closed, or Refusal for what a
    client may not do. The methods that asyncio calls come last.
    """

    def __init__(self, limits: Limits, held: Held, accepted: Callable[[Connection], None]) -> None:
        self.state = "head"
        self.heard_s = self.since_s = time.monotonic()
        """When bytes came last; when the present head or message began, or the last one ended."""
        self.pinged = self.partial = False
        """Whether it was asked for a sign of life since; whether a part of a message has come and the rest has not."""
        self.websocket: Frames | None = None
        self.wire: Wire | None = None
        """The protocol that is spoken on the websocket."""
        self._limits, self._held, self._accepted = limits, held, accepted
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._buffer = bytearray(READ_BYTES)
        self._start = self._end = 0  # of what is in the buffer and not taken
        self._holding = self._kept = 0
        self._message: bytes | str | None = None
        self._failure: Exception | None = None
        self._ended = False
        self._waiting: asyncio.Future[None] | None = None
        self._wanted = 1
        self._reading = True
        self._congested: asyncio.Future[None] | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()

    async def head(self) -> bytes:
        """Bytes up to the empty line. Refusal if it is too long."""
        self._answered()
        while (end := self._buffer.find(b"\r\n\r\n", self._start, self._end)) < 0:
            if self._end - self._start > self._limits.head_bytes:
                break
            await self._more(self._end - self._start + 1)
        if not 0 <= end - self._start <= self._limits.head_bytes:
            raise Refusal("too_large", f"a head has at most {self._limits.head_bytes} bytes")
        head = bytes(self._buffer[self._start : end])
        self._start = end + 4
        return head

    async def body(self, length: int) -> bytes:
        """The next `length` bytes after a head."""
        while self._end - self._start < length:
            await self._more(length)
        body = bytes(memoryview(self._buffer)[self._start : self._start + length])
        self._start += length
        return body

    def upgrade(self, raw: bytes) -> None:
        """Answers the handshake that the head `raw` is. Raises Refusal if it is none."""
        self.websocket = Frames(raw, self._limits)
        self.state = "websocket"
        self._advance()

    async def message(self) -> bytes | str:
        """The next whole message; asking for it says that the one before is answered."""
        assert self.websocket is not None
        self._answered()
        while self._message is None:
            if self.websocket.ended:
                raise Closed
            await self._more(1)
        message, self._message = self._message, None
        self._advance()
        return message

    async def send(self, message: bytes | str) -> None:
        """One websocket message. Closed if the connection ends, or the other side does not take it in time."""
        if self.websocket is None or not self.websocket.open:
            raise Closed
        await self.write(self.websocket.say(message))

    async def write(self, data: bytes) -> None:
        """Bytes as they are (HTTP). Closed as for `send`."""
        self._transport.write(data)
        if self._congested is not None:  # `pause_writing` sees to it that this ends
            await self._congested

    def ping(self) -> None:
        """Asks a silent websocket for a sign of life."""
        assert self.websocket is not None
        self.pinged = True
        self.websocket.ping()
        self._flush()

    def farewell(self, code: int, reason: str) -> None:
        """Says that the connection ends; `close` ends it."""
        if self.websocket is not None:
            self.websocket.farewell(code, reason)
            self._flush()

    def close(self, at_once: bool = False) -> None:
        """`at_once`: what is still to be sent is dropped."""
        self._fail(Closed())
        if at_once:
            self._transport.abort()
        else:
            self._transport.close()

    async def wait_closed(self) -> None:
        """Until the socket is closed, cut if the other side holds it."""
        try:
            await asyncio.wait_for(asyncio.shield(self._lost), 1.0)
        except asyncio.TimeoutError:
            self._transport.abort()

    async def _more(self, wanted: int) -> None:
        """Until there are `wanted` bytes in the buffer; of a websocket, until there is a message or its end."""
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise Closed
        self._wanted, self._waiting = wanted, self._loop.create_future()
        self._steer()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _answered(self) -> None:
        """Of this connection's bytes, only those are held that came since."""
        self._tidy()
        parts = 0 if self.websocket is None else self.websocket.held
        self._hold(self._end - self._start + len(self._message or b"") + parts)
        self.since_s = self.heard_s = time.monotonic()

    def _tidy(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
            kept = len(self._buffer) - READ_BYTES
            if self._held.kept + kept - self._kept > KEPT_BYTES:
                self._buffer, kept = bytearray(READ_BYTES), 0
            self._keep(kept)

    def _keep(self, count: int) -> None:
        self._held.kept += count - self._kept
        self._kept = count

    def _hold(self, count: int) -> None:
        self._held.bytes += count - self._holding
        self._holding = count

    def _fail(self, error: Exception) -> None:
        """Nothing more is taken, and what was not is dropped."""
        self._failure = self._failure or error
        self._start = self._end = 0
        self._message = None
        self._hold(0)
        self._wake()
        self._steer()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _steer(self) -> None:
        """Reads on, or stops."""
        wanted = self._waiting is not None or (self.websocket is not None and self._message is None)
        reading = wanted and self._failure is None and self._congested is None
        if reading != self._reading:
            self._reading = reading
            (self._transport.resume_reading if reading else self._transport.pause_reading)()

    def _advance(self) -> None:
        """Frames that have come whole -> a message, pongs, a goodbye. No further than to a message, which is to be taken first."""
        assert self.websocket is not None
        view = memoryview(self._buffer)
        try:
            while self._message is None and self._start < self._end:
                taken, self._message = self.websocket.take(view[self._start : self._end])
                if not taken:
                    break
                self._start += taken
        except Refusal as refusal:
            self._fail(refusal)
        self._tidy()
        partial = self._start < self._end or self.websocket.held > 0
        if partial and not self.partial:
            self.since_s = self.heard_s
        self.partial = partial
        self._flush()
        if self._message is not None or self.websocket.ended:
            self._wake()
        self._steer()

    def _flush(self) -> None:
        assert self.websocket is not None
        for data in self.websocket.to_send():
            if self._transport.is_closing():
                continue
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                with suppress(OSError):  # the other side is gone already, which `connection_lost` will say
                    self._transport.write_eof()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._accepted(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if len(self._buffer) - self._end < READ_BYTES:
            pending, buffer = self._end - self._start, self._buffer
            if len(buffer) - pending < READ_BYTES:
                buffer = bytearray(len(buffer) + max(len(buffer) // 2, READ_BYTES))
            buffer[:pending] = self._buffer[self._start : self._end]
            self._buffer, self._start, self._end = buffer, 0, pending
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._failure is not None:
            return
        self.heard_s, self.pinged = time.monotonic(), False
        self._end += nbytes
        self._hold(self._holding + nbytes)
        if self._held.bytes > self._held.limit:
            self._fail(Refusal("busy", "too much is on its way from all clients together; ask again later"))
        elif self.websocket is not None:
            self._advance()
        else:
            if self._end - self._start >= self._wanted:
                self._wake()
            self._steer()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return True  # what was asked before is still answered

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Closed())
        self._keep(0)
        self.resume_writing()
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._congested = self._loop.create_future()
        self._cut = self._loop.call_later(self._limits.send_s, self._transport.abort)
        self._steer()

    def resume_writing(self) -> None:
        if self._congested is not None and self._cut is not None:
            self._cut.cancel()
            if not self._congested.done():
                self._congested.set_result(None)
            self._congested = self._cut = None
            self._steer()
