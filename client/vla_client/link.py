"""A websocket over a socket of our own: `websockets` speaks the protocol, and every wait ends with the deadline of the exchange.

No thread reads: handing over each answer from one costs a robot's computer more time than the answer is on its way.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import ssl
import threading
import time
from typing import Mapping

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Opcode, apply_mask
from websockets.uri import parse_uri

MAX_BYTES = 16 * 2**20
"""Of a message that comes, in however many frames."""
READ_BYTES = 2**16
KEEP_S = 5.0
"""How often pings are answered between two exchanges; servers wait 20 s and longer."""
_WHOLE_BINARY = 0x82


class Link:
    """One open connection. Whatever is raised (OSError, WebSocketException), it is of no use any more: `cut` it."""

    def __init__(self, url: str, headers: Mapping[str, str], deadline_s: float) -> None:
        uri = parse_uri(url)
        self._protocol = ClientProtocol(uri, max_size=MAX_BYTES)
        self._messages: list[bytes | str] = []
        self._buffer, self._parts = bytearray(), bytearray()
        self._text = self._partial = False
        self._lock = threading.Lock()  # of the socket and all above: one exchange, or the keeper between two
        self._ended = threading.Event()
        # A socket of our own never takes a detour over a proxy that the environment names.
        self._socket = socket.create_connection((uri.host, uri.port), timeout=_left(deadline_s))
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if uri.secure:
                self._socket.settimeout(_left(deadline_s))
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=uri.host)
            self._shake_hands(headers, deadline_s)
        except BaseException:
            self._socket.close()
            raise
        threading.Thread(target=self._keep, name="keeper", daemon=True).start()

    def exchange(self, message: bytes | memoryview | None, deadline_s: float) -> bytes | str:
        """Sends a message (None: nothing) and returns the next one. An OSError if the deadline passes before."""
        with self._lock:
            if message is not None:
                self._look()
                if self._messages:  # it would be taken for the answer
                    raise ConnectionError("the server said something that it was not asked")
                self._send(message, deadline_s)
            while not self._messages:
                self._read(deadline_s)
            return self._messages.pop(0)

    def cut(self) -> None:
        """Ends it now, without the closing handshake that a dead peer would never answer."""
        self._ended.set()
        with self._lock:
            with contextlib.suppress(OSError):  # it has ended already
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _shake_hands(self, headers: Mapping[str, str], deadline_s: float) -> None:
        request = self._protocol.connect()
        request.headers.update(headers)
        self._protocol.send_request(request)
        self._flush(deadline_s)
        came = bytearray()
        while (end := came.find(b"\r\n\r\n")) < 0:
            data = self._receive(deadline_s)
            if not data or len(came) > READ_BYTES:
                raise ConnectionError("the handshake was not answered")
            came += data
        rest = bytes(came[end + 4 :])  # of a refusal its body, else the first frames, which are for `_frame`
        self._protocol.receive_data(bytes(came[: end + 4]))
        while self._protocol.handshake_exc is None and not self._protocol.events_received():
            more, rest = rest or self._receive(deadline_s), b""
            if more:
                self._protocol.receive_data(more)
            else:
                self._protocol.receive_eof()
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc
        self._buffer += rest
        while self._frame():
            pass
        self._flush(deadline_s)

    def _keep(self) -> None:
        """Answers pings while nothing is asked, so that a robot that rests is not taken for one that has gone."""
        while not self._ended.wait(KEEP_S):
            if self._lock.acquire(blocking=False):
                try:
                    self._look()
                except (OSError, WebSocketException):
                    with contextlib.suppress(OSError):  # the next exchange finds it closed
                        self._socket.shutdown(socket.SHUT_RDWR)
                    return
                finally:
                    self._lock.release()

    def _look(self) -> None:
        """Takes what has come, without waiting."""
        if _readable(self._socket):
            self._socket.settimeout(0)
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                self._take(self._socket.recv(READ_BYTES), time.monotonic())

    def _send(self, message: bytes | memoryview, deadline_s: float) -> None:
        """As one binary frame (RFC 6455, 5.2); laying on its mask is the only copy that is made of it here."""
        if self._protocol.close_expected():
            raise self._closed()
        length, mask = len(message), secrets.token_bytes(4)
        if length < 126:
            head = bytes([_WHOLE_BINARY, 0x80 | length])
        elif length < 2**16:
            head = b"\x82\xfe" + length.to_bytes(2, "big")
        else:
            head = b"\x82\xff" + length.to_bytes(8, "big")
        frame, sent = [head + mask, apply_mask(message, mask)], 0
        if hasattr(self._socket, "sendmsg") and not isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(_left(deadline_s))
            sent = self._socket.sendmsg(frame)
        if sent < len(frame[0]) + length:
            self._write(memoryview(b"".join(frame))[sent:], deadline_s)

    def _read(self, deadline_s: float) -> None:
        if self._protocol.close_expected():
            raise self._closed()
        self._take(self._receive(deadline_s), deadline_s)

    def _closed(self) -> ConnectionError:
        return ConnectionError(f"the connection was closed: {self._protocol.close_rcvd or self._protocol.parser_exc or 'without a word'}")

    def _receive(self, deadline_s: float) -> bytes:
        self._socket.settimeout(_left(deadline_s))
        return self._socket.recv(READ_BYTES)

    def _take(self, data: bytes, deadline_s: float) -> None:
        if not data:
            raise self._closed()
        self._buffer += data
        while self._frame():
            pass
        self._flush(deadline_s)  # pongs, and a goodbye's echo

    def _frame(self) -> bool:
        """Takes one frame out of the buffer; False if none has come whole. What is no whole message is `websockets`' to judge."""
        if self._protocol.close_expected():
            self._buffer.clear()
        sizes = _sizes(self._buffer)
        if sizes is None:
            return False
        head, length = sizes
        if length + len(self._parts) > MAX_BYTES:
            self._protocol.receive_data(bytes(self._buffer[:head]))  # which ends it, by the header alone
            self._buffer.clear()
            return False
        if len(self._buffer) < head + length:
            return False
        frame = bytes(self._buffer[: head + length])
        del self._buffer[: head + length]
        if frame[0] == _WHOLE_BINARY and frame[1] < 0x80 and not self._partial:
            self._messages.append(frame[head:])
        else:
            self._protocol.receive_data(frame)
            self._collect()
        return True

    def _collect(self) -> None:
        """What `websockets` made of a frame -> a message, or a part of one."""
        for frame in self._protocol.events_received():
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if frame.opcode is not Opcode.CONT:
                    self._text = frame.opcode is Opcode.TEXT
                self._parts += frame.data
                self._partial = not frame.fin
                if frame.fin:
                    data, self._parts = bytes(self._parts), bytearray()
                    self._messages.append(data.decode("utf-8", "replace") if self._text else data)

    def _flush(self, deadline_s: float) -> None:
        for data in self._protocol.data_to_send():
            self._write(data, deadline_s)  # an end of the stream is empty: `cut` ends it

    def _write(self, data: bytes | memoryview, deadline_s: float) -> None:
        view = memoryview(data)
        while view:
            self._socket.settimeout(_left(deadline_s))
            view = view[self._socket.send(view) :]


def _left(deadline_s: float) -> float:
    """Seconds until the deadline; a passed one leaves an instant, in which the call fails as it should."""
    return max(deadline_s - time.monotonic(), 1e-3)


def _readable(peer: socket.socket) -> bool:
    """Whether bytes, or an end, have come."""
    if isinstance(peer, ssl.SSLSocket) and peer.pending():
        return True
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([peer], [], [], 0)[0])
    poll = select.poll()  # `select` knows no descriptor beyond 1023
    poll.register(peer, select.POLLIN)
    return bool(poll.poll(0))


def _sizes(data: bytes | bytearray) -> tuple[int, int] | None:
    """Bytes of a frame's header and of what follows it (RFC 6455, 5.2; a server's frames have no mask); None while they are not known."""
    if len(data) < 2:
        return None
    wide = {126: 2, 127: 8}.get(data[1] & 127, 0)
    if len(data) < 2 + wide:
        return None
    return 2 + wide, int.from_bytes(data[2 : 2 + wide], "big") if wide else data[1] & 127
