"""GR00T's protocol: msgpack over ZeroMQ, arrays as .npy files, on a port of its own. An extra: it needs pyzmq.

{endpoint, data, api_token} with the endpoints ping, get_action, reset and get_modality_config. Both forms of an observation are understood:
N1.6's {video: {camera: (1, T, H, W, 3)}, state: {field: (1, T, D)}, language: {...: [[text]]}}, answered by [{field: (1, T, D)}, {}], and
N1.5's flat {"video.camera": (T, H, W, 3), "state.field": (T, D), "annotation...": [text]}, answered by {"action.field": (T, D)}.
Their `kill` is not offered: nobody stops a server over the network.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from vla.errors import UserError
from vla.serve.codec import to_npy, unpack
from vla.serve.http import same_secret
from vla.serve.server import Server, cannot_listen, check_door, log_failed
from vla.serve.wire import Heard, Refusal, Session, internal

MAX_TASKS = 256


def check_groot(host: str, port: int, token: str | None, beside: int) -> None:
    """UserError for what `serve_groot` would refuse beside a server on port `beside`, before a model is loaded."""
    if port and port == beside:
        raise UserError(f"--port and --groot-port are both {port}; give each its own")
    check_door(host, port, token, listen=True, flag="--groot-port")
    _zmq()


async def serve_groot(server: Server, port: int) -> asyncio.Task[None]:
    """Listens beside the server, with its host and token, and returns the task that answers. UserError without pyzmq or port."""
    zmq = _zmq()
    socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.MAXMSGSIZE, server.service.settings.limits.message_bytes)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        socket.bind(f"tcp://{server.host}:{port}" if port else f"tcp://{server.host}:*")
    except zmq.ZMQError as error:
        socket.close()
        raise cannot_listen(server.host, port, error, "--groot-port") from error
    task = asyncio.create_task(_answer_all(server, socket), name=socket.getsockopt_string(zmq.LAST_ENDPOINT))
    task.add_done_callback(lambda _: socket.close())
    return task


def _zmq() -> Any:
    try:
        import zmq
        import zmq.asyncio
    except ImportError as error:
        raise UserError("GR00T's protocol needs pyzmq, which is not installed: `pip install 'vla[groot]'`") from error
    return zmq


async def _answer_all(server: Server, socket: Any) -> None:
    """Each request in a task of its own, so that they share batches."""
    wire, tasks = Groot(server), set[asyncio.Task[None]]()
    while True:
        *envelope, message = await socket.recv_multipart()
        if len(tasks) >= MAX_TASKS:
            await socket.send_multipart([*envelope, wire.refused(Refusal("busy", f"{MAX_TASKS} requests wait already"))])
            continue
        task = asyncio.create_task(_answer(wire, socket, envelope, message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(log_failed)


async def _answer(wire: Groot, socket: Any, envelope: list[bytes], message: bytes) -> None:
    try:
        reply = await wire.reply(message)
    except asyncio.CancelledError:
        raise
    except BaseException:  # the last net: a client that asks and hears nothing would wait for ever
        await socket.send_multipart([*envelope, wire.refused(internal())])
        raise  # to `log_failed`
    await socket.send_multipart([*envelope, reply])


class Groot:
    """All clients of the socket; GR00T's protocol tells them apart by nothing, so that they share one session, until one resets."""

    def __init__(self, server: Server) -> None:
        self._server, self._service = server, server.service
        self._session: Session = self._service.session()

    async def reply(self, message: bytes) -> bytes:
        try:
            return _pack(await self.answer(message))
        except Refusal as refusal:
            return self.refused(refusal)

    def refused(self, refusal: Refusal) -> bytes:
        """A refusal in this protocol's words, counted."""
        self._service.refused[refusal.kind] += 1
        return _pack({"error": f"{refusal.kind}: {refusal.message}", "kind": refusal.kind})

    async def answer(self, message: bytes) -> Any:
        if len(message) > self._service.settings.limits.message_bytes:
            raise Refusal("too_large", "the message is too large")
        request = unpack(message)
        if not isinstance(request, dict):
            raise Refusal("malformed", "a request is a map")
        token, given = self._server.token, request.get("api_token")
        if token is not None and not (isinstance(given, str) and same_secret(given, token)):
            raise Refusal("unauthorized", "send the token as api_token")
        endpoint, data = request.get("endpoint", "get_action"), request.get("data")
        if not isinstance(endpoint, str):
            raise Refusal("malformed", "endpoint is a text")
        if endpoint == "ping":
            return {"status": "ok", "message": "Server is running"}
        if endpoint == "reset":  # an episode begins
            self._session = self._service.session()
            return {}
        if endpoint == "get_modality_config":
            return self._modalities()
        if endpoint != "get_action":
            raise Refusal("not_found", "endpoints are ping, get_action, reset, get_modality_config")
        if not isinstance(data, dict):
            raise Refusal("malformed", "data is a map, the observation")
        return await self._act(data)

    async def _act(self, data: dict[str, Any]) -> Any:
        nested = isinstance(data.get("observation"), dict)
        values = _nested(data["observation"]) if nested else _flat(data)
        answer = await self._service.act(Heard(values), self._session)
        fields = self._service.robot.command.unpack(answer.action_TA)
        if nested:
            return [{name: rows[None].astype(np.float32) for name, rows in fields.items()}, {}]
        return {f"action.{name}": rows for name, rows in fields.items()}

    def _modalities(self) -> dict[str, Any]:
        robot = self._service.robot
        names = {
            "video": (list(robot.cameras), [0]),
            "state": ([field.name for field in robot.state.fields], [0]),
            "action": ([field.name for field in robot.command.fields], list(range(robot.horizon))),
            "language": (["task"], [0]),
        }
        config = {kind: {"delta_indices": steps, "modality_keys": keys} for kind, (keys, steps) in names.items()}
        return {kind: {"__ModalityConfig_class__": True, "as_json": said} for kind, said in config.items()}


def _nested(observation: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, ours in (("video", "images"), ("state", "state")):
        parts = observation.get(kind, {})
        if not isinstance(parts, dict):
            raise Refusal("malformed", f"{kind} is a map")
        for name, value in parts.items():
            found[f"{ours}.{name}"] = _one(value)
    language = observation.get("language")
    texts = list(language.values()) if isinstance(language, dict) else []
    if len(texts) != 1:
        raise Refusal("bad_observation", "language is a map with one text")
    found["instruction"] = _text(texts[0])
    return found


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        kind, _, rest = str(name).partition(".")
        if kind == "annotation":
            found["instruction"] = _text(value)
        else:
            found[f"images.{rest}" if kind == "video" else str(name)] = value
    return found


def _one(value: Any) -> Any:
    """(1, ...) -> (...): one observation a request, since batches are made here."""
    if not isinstance(value, np.ndarray) or value.ndim < 2 or len(value) != 1:
        raise Refusal("bad_observation", "send one observation a request: arrays of shape (1, ...)")
    return value[0]


def _text(value: Any) -> Any:
    """The text in a list of a list of one text."""
    for _ in range(2):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
    return value


def _pack(message: Any) -> bytes:
    import msgpack

    def encode(value: Any) -> Any:
        assert isinstance(value, np.ndarray), value
        return {"__ndarray_class__": True, "as_npy": to_npy(np.ascontiguousarray(value))}

    return msgpack.packb(message, default=encode)
