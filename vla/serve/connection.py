"""One TCP connection, and the websocket that it may become; counts what it holds, so that nobody can fill the memory slowly."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from vla.serve.http import Head
from vla.serve.wire import Limits, Refusal

READ_BYTES = 2**18


class Closed(ConnectionError):
    """The other side has gone, or was sent away."""


class Held:
    """Bytes of messages that have not come whole or are not answered yet, over all connections."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0


class Connection:
    """`state`: "head" while a request's head is read or awaited, "body", "websocket" between messages, "busy" while one is answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits, held: Held) -> None:
        self.state = "head"
        self.heard_s = self.since_s = time.monotonic()
        """When bytes came last; when the present head or message began, or the last one ended."""
        self.pinged = False
        self.websocket: Any = None
        self._reader, self._writer, self._limits, self._held = reader, writer, limits, held
        self._buffer = bytearray()
        self.partial = False
        """Whether a part of a message has come and the rest has not."""
        self._holding = 0
        self._frames: list[bytes] = []
        self._text = False
        self._messages: deque[bytes | str] = deque()

    async def head(self) -> bytes:
        """Bytes up to the empty line. Closed at an end; Refusal if it is too long."""
        self._answered()
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > self._limits.head_bytes:
                raise Refusal("too_large", f"a head has at most {self._limits.head_bytes} bytes")
            self._buffer += await self._read()
        if end > self._limits.head_bytes:
            raise Refusal("too_large", f"a head has at most {self._limits.head_bytes} bytes")
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    async def body(self, length: int) -> bytes:
        """The next `length` bytes after a head. Closed if they do not come."""
        while len(self._buffer) < length:
            self._buffer += await self._read()
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        self.partial = False
        return body

    def upgrade(self, head: Head, raw: bytes) -> None:
        """Answers the handshake (RFC 6455). Raises Refusal if it is none."""
        from websockets.server import ServerProtocol

        logger = logging.getLogger("vla.serve.websocket")
        logger.disabled = True  # its errors are the clients'
        self.websocket = ServerProtocol(max_size=self._limits.message_bytes, logger=logger)
        self.websocket.receive_data(raw + b"\r\n\r\n")
        requests = self.websocket.events_received()
        if not requests:
            raise Refusal("malformed", "not a websocket handshake")
        response = self.websocket.accept(requests[0])
        if response.status_code != 101:
            raise Refusal("malformed", "not a websocket handshake")
        self.websocket.send_response(response)
        self._flush()
        self.state = "websocket"
        if self._buffer:
            self.websocket.receive_data(bytes(self._buffer))
            self._buffer.clear()
            self._collect()

    async def message(self) -> bytes | str:
        """The next whole message; asking for it says that the one before is answered. Raises Closed."""
        self._answered()
        while not self._messages:
            data = await self._read()
            self.websocket.receive_data(data)
            self._collect()
            await self.drain()  # of pongs: who does not take them gets no more
            if self.websocket.close_expected() and not self._messages:
                raise Closed
        return self._messages.popleft()

    async def send(self, message: bytes | str) -> None:
        """One websocket message. Closed if the connection ends, or the other side does not take it in time."""
        from websockets.exceptions import InvalidState

        try:
            if isinstance(message, str):
                self.websocket.send_text(message.encode())
            else:
                self.websocket.send_binary(message)
        except InvalidState as error:  # closing already
            raise Closed from error
        self._flush()
        await self.drain()

    async def write(self, data: bytes) -> None:
        """Bytes as they are (HTTP). Closed as for `send`."""
        self._writer.write(data)
        await self.drain()

    async def drain(self) -> None:
        """Raises Closed if the other side does not take what it is sent."""
        if not self._writer.transport.get_write_buffer_size():
            return
        try:
            await asyncio.wait_for(self._writer.drain(), self._limits.send_s)
        except (ConnectionError, asyncio.TimeoutError) as error:
            raise Closed from error

    def ping(self) -> None:
        """Asks a silent websocket for a sign of life."""
        self.pinged = True
        self.websocket.send_ping(b"")
        self._flush()

    def farewell(self, code: int, reason: str) -> None:
        """Says that the connection ends; `close` ends it."""
        if self.websocket is not None and self.websocket.state == 1:  # OPEN
            self.websocket.send_close(code, reason)
            self._flush()

    def close(self, at_once: bool = False) -> None:
        """`at_once`: what is still to be sent is dropped."""
        self._answered()
        if at_once:
            self._writer.transport.abort()
        else:
            self._writer.close()

    async def wait_closed(self) -> None:
        """Until the socket is closed, cut if the other side holds it."""
        try:
            await asyncio.wait_for(self._writer.wait_closed(), 1.0)
        except (ConnectionError, asyncio.TimeoutError):
            self._writer.transport.abort()

    async def _read(self) -> bytes:
        try:
            data = await self._reader.read(READ_BYTES)
        except ConnectionError as error:
            raise Closed from error
        if not data:
            raise Closed
        now_s = time.monotonic()
        if not self.partial:
            self.partial, self.since_s = True, now_s
        self.heard_s, self.pinged = now_s, False
        self._holding += len(data)
        self._held.bytes += len(data)
        if self._held.bytes > self._held.limit:
            raise Refusal("busy", "too much is on its way from all clients together; ask again later")
        return data

    def _answered(self) -> None:
        """Nothing of this connection's is held any more."""
        self._held.bytes -= self._holding
        self._holding = 0
        self.since_s = self.heard_s = time.monotonic()

    def _collect(self) -> None:
        """Frames -> messages."""
        from websockets.frames import Opcode

        for frame in self.websocket.events_received():
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if frame.opcode is not Opcode.CONT:
                    self._text = frame.opcode is Opcode.TEXT
                self._frames.append(bytes(frame.data))
                if len(self._frames) > self._limits.frames_a_message:
                    raise Refusal("too_large", f"more than {self._limits.frames_a_message} frames in one message")
                if frame.fin:
                    data = self._frames[0] if len(self._frames) == 1 else b"".join(self._frames)
                    self._messages.append(data.decode("utf-8", "replace") if self._text else data)
                    self._frames = []
                    self.partial = False
            elif not self._frames:
                self.partial = False  # a ping or a pong is whole
        self._flush()

    def _flush(self) -> None:
        for data in self.websocket.data_to_send():
            if data:
                self._writer.write(data)
            elif self._writer.can_write_eof():
                self._writer.write_eof()
