"""A websocket's bytes <-> messages (RFC 6455). A whole binary message in one frame, which is what robots send, is taken as it lies there;
handshake, control frames, texts, pieces and whatever is wrong are `websockets`' to judge."""

from __future__ import annotations

import logging
from typing import Any

from vla.serve.wire import Limits, Refusal

_WHOLE_BINARY = 0x82
_MASKED = 0x80
_OPEN = 1


class Frames:
    """The server's side of one websocket. What is to be sent after any call lies in `to_send`."""

    def __init__(self, raw: bytes, limits: Limits) -> None:
        """`raw`: the head of the request that asks for it. Raises Refusal if that is no handshake."""
        from websockets.frames import Opcode, apply_mask
        from websockets.server import ServerProtocol

        logger = logging.getLogger("vla.serve.websocket")
        logger.disabled = True  # its errors are the clients'
        self._protocol: Any = ServerProtocol(max_size=limits.message_bytes, logger=logger)
        self._limits, self._unmask, self._opcodes = limits, apply_mask, Opcode
        self._parts: list[bytes] = []
        self._text = False
        self._protocol.receive_data(raw + b"\r\n\r\n")
        requests = self._protocol.events_received()
        response = self._protocol.accept(requests[0]) if requests else None
        if response is None or response.status_code != 101:
            raise Refusal("malformed", "not a websocket handshake")
        self._protocol.send_response(response)

    @property
    def open(self) -> bool:
        """Whether messages may be sent."""
        return bool(self._protocol.state == _OPEN)

    @property
    def ended(self) -> bool:
        """Whether nothing is listened to any more: after the other side's goodbye, or a mistake of its."""
        return bool(self._protocol.eof_sent)

    @property
    def held(self) -> int:
        """Bytes of a message that came in pieces and is not whole."""
        return sum(map(len, self._parts)) if self._parts else 0

    def take(self, view: memoryview) -> tuple[int, bytes | str | None]:
        """Bytes of the first frame, 0 if it has not come whole, and the message that it makes whole. Refusal for too many pieces."""
        if self.ended:
            return len(view), None
        sizes = _sizes(view)
        if sizes is None:
            return 0, None
        head, length = sizes
        if not view[1] & _MASKED or length + self.held > self._limits.message_bytes:
            self._protocol.receive_data(bytes(view[:head]))  # which ends it, by the header alone
            assert self._protocol.eof_sent
            return len(view), None
        whole = head + length
        if len(view) < whole:
            return 0, None
        if view[0] == _WHOLE_BINARY and not self._parts and self.open:
            return whole, self._unmask(view[head:whole], bytes(view[head - 4 : head]))
        self._protocol.receive_data(bytes(view[:whole]))
        return whole, self._collect()

    def say(self, message: bytes | str) -> bytes:
        """A message as a frame, while the websocket is `open`."""
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
            return b"".join(self.to_send())
        length = len(message)
        wide = 0 if length < 126 else 2 if length < 2**16 else 8
        first = bytes([_WHOLE_BINARY, {0: length, 2: 126, 8: 127}[wide]])
        return b"".join([first, length.to_bytes(wide, "big") if wide else b"", message])

    def ping(self) -> None:
        self._protocol.send_ping(b"")

    def farewell(self, code: int, reason: str) -> None:
        if self.open:
            self._protocol.send_close(code, reason)

    def to_send(self) -> list[bytes]:
        """In order; an empty one means the end."""
        return self._protocol.data_to_send()

    def _collect(self) -> bytes | str | None:
        for frame in self._protocol.events_received():
            if frame.opcode not in (self._opcodes.TEXT, self._opcodes.BINARY, self._opcodes.CONT):
                continue
            if frame.opcode is not self._opcodes.CONT:
                self._text = frame.opcode is self._opcodes.TEXT
            self._parts.append(bytes(frame.data))
            if len(self._parts) > self._limits.frames_a_message:
                raise Refusal("too_large", f"more than {self._limits.frames_a_message} frames in one message")
            if frame.fin:
                data, self._parts = b"".join(self._parts), []
                return data.decode("utf-8", "replace") if self._text else data
        return None


def _sizes(view: memoryview) -> tuple[int, int] | None:
    """Bytes of a frame's header, mask included, and of what follows (5.2); None while they are not known."""
    if len(view) < 2:
        return None
    wide = {126: 2, 127: 8}.get(view[1] & 127, 0)
    if len(view) < 2 + wide:
        return None
    length = int.from_bytes(view[2 : 2 + wide], "big") if wide else view[1] & 127
    return 2 + wide + (4 if view[1] & _MASKED else 0), length
