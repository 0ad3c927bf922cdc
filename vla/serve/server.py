"""One port: HTTP and websockets, each connection a task, none of which can hold up another.

GET  /healthz, /health    is it serving? Needs no token, touches no policy.
GET  /metadata            what is served
GET  /statistics          what was done so far
POST /act                 OpenVLA's protocol
POST /reset               its clients begin an episode
/                         openpi's protocol (websocket)
/vla-eval                 vla-eval's protocol (websocket)
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable

from vla.errors import UserError
from vla.serve.connection import Closed, Connection, Held
from vla.serve.http import Head, admit, expected_facts, parse_head, refuse, respond
from vla.serve.openpi import OpenPi
from vla.serve.openvla import OpenVla
from vla.serve.service import Service, expectation
from vla.serve.vla_eval import PATH, VlaEval
from vla.serve.wire import Door, Refusal, Wire, internal, log_mistake

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MIN_TOKEN = 16
_GOING_AWAY, _REFUSED, _MISTAKE = 1001, 1008, 1011  # RFC 6455, 7.4.1
REFUSED_AFTER_S = 1.0
"""How long a connection that is one too many may take to say what it wants, to be told so."""
PASSES = 4
"""Of the event loop at the end: what was answered last is written, and a ping that has come is read and answered."""
FAREWELL_S = 0.5


def check_door(host: str, port: int, token: str | None, listen: bool = False, flag: str = "--port") -> None:
    """UserError for what cannot be served. `listen`: also takes the port for a moment, so that a model is not loaded in vain.
    `flag`: who chose it."""
    if token is None and host not in LOOPBACK:
        raise UserError(f"bound to {host}, the server is open to others: give a token (--token-file), or bind 127.0.0.1")
    if token is not None and len(token) < MIN_TOKEN:
        raise UserError(f"the token has {len(token)} letters; give at least {MIN_TOKEN} random ones")
    if not 0 <= port <= 65535:
        raise UserError(f"{flag} {port} is none; give 1 to 65535, or 0 for a free one")
    if listen and port:
        try:
            socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        except OSError as error:
            raise cannot_listen(host, port, error, flag) from error


def cannot_listen(host: str, port: int, error: OSError, flag: str = "--port") -> UserError:
    """For whom the system refuses a port."""
    return UserError(f"cannot listen on {host}:{port}: {error.strerror or error}. Give another {flag}.")


class Server:
    """`run` serves until `stop`, or until the policy breaks. `port` 0 is a free one; `address` tells, once `ready`."""

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 8000, token: str | None = None) -> None:
        check_door(host, port, token)
        self.service, self.host, self.port = service, host, port
        self.broken, self.token = False, token
        self._door, self._limits = Door(token), service.settings.limits
        self._rest = OpenVla(service)
        self._held = Held(self._limits.held_bytes)
        self._connections: set[Connection] = set()
        self._tasks: dict[asyncio.Task[None], Connection] = {}
        self._stop = asyncio.Event()

    @property
    def address(self) -> str:
        """`host:port`, as a URL has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def connections(self) -> int:
        """That are open now."""
        return len(self._connections)

    def stop(self) -> None:
        """Begins to drain: what is being answered is answered, nothing new is taken. Call it in the loop."""
        self.service.draining = True
        self._stop.set()

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Raises UserError if the port is taken."""
        loop = asyncio.get_running_loop()
        self.service.batcher.start(loop, self._break)

        def connection() -> Connection:
            return Connection(self._limits, self._held, self._accept)

        try:
            listener = await loop.create_server(connection, self.host, self.port, backlog=1024)
        except OSError as error:
            self.service.batcher.stop()
            raise cannot_listen(self.host, self.port, error) from error
        self.port = listener.sockets[0].getsockname()[1]
        janitor = asyncio.create_task(self._tidy())
        ready()
        try:
            await self._stop.wait()
        finally:
            listener.close()
            await self._drain()
            janitor.cancel()
            self.service.batcher.stop()

    def _break(self) -> None:
        """The policy's code is wrong: nothing it says can be trusted any more."""
        self.broken = True
        self.stop()

    async def _drain(self) -> None:
        until_s = time.monotonic() + (0 if self.broken else self.service.deadline_s + 0.5)
        while self.service.in_flight and time.monotonic() < until_s:
            await asyncio.sleep(0.005)
        for _ in range(PASSES):
            await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.farewell(_GOING_AWAY, "the server is stopping")
        # Who is told goodbye answers it. Closing before that could reset the connection and take the last answer with it.
        told = [task for task, connection in self._tasks.items() if connection.websocket is not None]
        if told and not self.broken:
            await asyncio.wait(told, timeout=FAREWELL_S)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=2.0)

    def _accept(self, connection: Connection) -> None:
        if len(self._connections) >= self._limits.connections:
            self._make_room()
        self._connections.add(connection)
        task = asyncio.create_task(self._serve(connection))
        self._tasks[task] = connection
        task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        log_failed(task)

    def _make_room(self) -> None:
        """Whoever has said nothing for longest goes; if all have come in properly, the newest is refused, by `_serve`."""
        idle = [connection for connection in self._connections if connection.state == "head"]
        if idle:
            oldest = min(idle, key=lambda connection: connection.since_s)
            oldest.close(at_once=True)
            self._connections.discard(oldest)

    async def _serve(self, connection: Connection) -> None:
        try:
            if len(self._connections) > self._limits.connections:
                # What it says is read first: a socket that is closed on unread bytes is reset, and the answer would be lost with it.
                try:
                    await asyncio.wait_for(connection.head(), REFUSED_AFTER_S)
                except asyncio.TimeoutError:
                    return
                raise Refusal("busy", f"{self._limits.connections} connections are open already")
            while await self._request(connection):
                connection.state = "head"
        except Refusal as refusal:
            await self._last_words(connection, refusal)
        except Closed:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException:  # the last net: nobody is left without an answer
            await self._last_words(connection, internal())
            raise  # to `_served`, which logs it
        finally:
            connection.close()
            await connection.wait_closed()
            self._connections.discard(connection)

    async def _last_words(self, connection: Connection, refusal: Refusal) -> None:
        self.service.refused[refusal.kind] += 1
        try:
            if connection.wire is None:
                await connection.write(refuse(refusal))
            else:
                await connection.send(connection.wire.refusal(refusal))
                connection.farewell(_MISTAKE if refusal.kind == "internal" else _REFUSED, refusal.kind)
        except (Closed, ConnectionError):
            pass

    async def _request(self, connection: Connection) -> bool:
        """One request, or a whole websocket. Whether another may follow."""
        raw = await connection.head()
        head = parse_head(raw)
        if head.path in ("/healthz", "/health") and head.method in ("GET", "HEAD"):
            await connection.write(self._health(head))
            return head.keeps_alive
        admit(head, self._door)
        expectation(expected_facts(head), self.service)
        if head.upgrades:
            wire = self._websocket(head)
            connection.upgrade(raw)
            await self._converse(connection, wire)
            return False
        length = head.length(self._limits.message_bytes)
        connection.state = "body"
        if length and "100-continue" in head.headers.get("expect", ""):
            await connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await connection.body(length)
        connection.state = "busy"
        await connection.write(await self._plain(head, body))
        return head.keeps_alive

    def _health(self, head: Head) -> bytes:
        serving = not self.service.draining
        status, head_alone = 200 if serving else 503, head.method == "HEAD"
        if head.path == "/healthz":
            return respond(status, b"OK\n" if serving else b"draining\n", "text/plain", head_alone=head_alone)
        return respond(status, json.dumps({"status": "ok" if serving else "draining"}).encode(), head_alone=head_alone)

    def _websocket(self, head: Head) -> Wire:
        if self.service.draining:
            raise Refusal("draining", "the server is stopping; connect again later")
        if head.path == "/":
            return OpenPi(self.service)
        if head.path == PATH:
            return VlaEval(self.service)
        raise Refusal("not_found", f"websockets are at / (openpi) and {PATH}")

    async def _plain(self, head: Head, body: bytes) -> bytes:
        route = (head.method, head.path)
        if route == ("GET", "/metadata"):
            return respond(200, json.dumps(self.service.facts).encode())
        if route == ("GET", "/statistics"):
            return respond(200, json.dumps({**self.service.statistics(), "connections": self.connections}).encode())
        if route == ("POST", "/act"):
            return respond(200, await self._rest.answer(body))
        if route == ("POST", "/reset"):
            self._rest.reset()
            return respond(200, b"{}")
        raise Refusal(
            "not_found", "there are GET /healthz, /health, /metadata, /statistics, POST /act, /reset, and websockets at / and /vla-eval"
        )

    async def _converse(self, connection: Connection, wire: Wire) -> None:
        """Refusals of single messages do not end it; mistakes of ours do, since nobody knows what the session has become."""
        connection.wire = wire
        greeting = wire.greeting()
        if greeting is not None:
            await connection.send(greeting)
        while True:
            message = await connection.message()
            connection.state = "busy"
            try:
                reply = await wire.answer(message)
            except Refusal as refusal:
                self.service.refused[refusal.kind] += 1
                reply = wire.refusal(refusal)
            if reply is not None:
                await connection.send(reply)
            connection.state = "websocket"

    async def _tidy(self) -> None:
        """Ends what is too slow, and finds out who has gone without a word."""
        limits = self._limits
        while True:
            await asyncio.sleep(min(1.0, limits.head_s / 4, limits.ping_s / 4))
            now_s = time.monotonic()
            for connection in list(self._connections):
                waited_s, silent_s = now_s - connection.since_s, now_s - connection.heard_s
                slow = waited_s > (limits.head_s if connection.state == "head" else limits.message_s)
                if connection.state == "busy":
                    continue
                if connection.state in ("head", "body") or connection.partial:
                    if slow:
                        connection.close(at_once=True)
                elif connection.pinged and silent_s > 2 * limits.ping_s:
                    connection.close(at_once=True)
                elif not connection.pinged and silent_s > limits.ping_s:
                    connection.ping()


def log_failed(task: asyncio.Task[None]) -> None:
    """A task's mistake, if it ended by one."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log_mistake("a request failed by a mistake in the server's code", error)
