"""Each protocol's lawful message with something odd in each of its places: it is answered, or refused for a reason, whatever it is.
And the last net, for what nobody thought of."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.serve.parts import LONG_S, ROBOT, Echo, beside_groot, raw, request, said, service, statistics
from tests.serve.test_protocols import Harness, episode_said, npy, numpy_json, to_openpi
from vla.serve import server as server_module
from vla.serve.background import serving
from vla.serve.groot import Groot
from vla.serve.openpi import OpenPi
from vla.serve.openvla import OpenVla
from vla.serve.server import Server
from vla.serve.service import Service
from vla.serve.vla_eval import VlaEval
from vla.serve.wire import Refusal

HUGE = 10**400
"""JSON's integers have no end; a float of 64 bits has."""
ODD = [None, True, -1, 0, 1.5, 1e308, "", "odd", [], {}, [[[]]], {"": {"": {}}}, np.zeros(2, np.uint8), np.zeros((0, 3)), np.ones((2, 2))]
SAID_IN_JSON = [*ODD, HUGE, [HUGE], "\ud800", {"\ud800": 1}, {"__numpy__": "", "dtype": "<f4", "shape": [0, HUGE]}, {"__numpy__": "\ud800"}]
SAID_IN_MSGPACK = [*ODD, b"\xff", {b"\xff": 1}, {b"__ndarray__": 1, b"data": b"", b"dtype": "<f4", b"shape": [0, 2**62]}]


def in_json(message) -> bytes:
    return json.dumps(message, default=numpy_json).encode()


def hidden_in_json(message) -> bytes:
    """For clients that have no json-numpy."""
    return in_json({"encoded": in_json(message).decode()})


def in_msgpack(message) -> bytes:
    return msgpack.packb(message, default=to_openpi)


def as_groot(message) -> bytes:
    return msgpack.packb(message, default=npy)


def harness(kind: str, payload: dict) -> dict:
    return {"type": kind, "payload": payload, "seq": 1, "timestamp": 0.0}


REQUEST = {"seq": 1, "age_s": 0.0, "timeout_s": 30.0, "offsets_s": [0.0], "executed": np.zeros((1, 2))}
POSTED = {"image": np.zeros((16, 16, 3), np.uint8), "wrist_image": np.zeros((16, 16, 3), np.uint8), "instruction": "x", "state": [0.0] * 3}
VIDEO = {role: np.zeros((1, 1, 16, 16, 3), np.uint8) for role in ROBOT.cameras}
NESTED = {"video": VIDEO, "state": {"joints": np.zeros((1, 1, 3))}, "language": {"task": [["x"]]}}
FLAT = {f"video.{role}": pixels[0] for role, pixels in VIDEO.items()} | {"state.joints": np.zeros((1, 3)), "annotation.task": ["x"]}
groot = lambda served: Groot(SimpleNamespace(service=served, token=None))  # noqa: E731
PROTOCOLS = {
    "openpi": (OpenPi, in_msgpack, SAID_IN_MSGPACK, said() | {"request": REQUEST}),
    "openvla": (OpenVla, in_json, SAID_IN_JSON, {**POSTED, "unnorm_key": "narrow", "request": REQUEST}),
    "openvla-encoded": (OpenVla, hidden_in_json, SAID_IN_JSON, POSTED),
    "vla-eval": (VlaEval, in_msgpack, SAID_IN_MSGPACK, harness("observation", episode_said(0.1))),
    "vla-eval-hello": (VlaEval, in_msgpack, SAID_IN_MSGPACK, harness("hello", {"protocol_version": 1, "harness_version": "0.3"})),
    "vla-eval-start": (VlaEval, in_msgpack, SAID_IN_MSGPACK, harness("episode_start", {"task": {"name": "x"}})),
    "groot": (groot, as_groot, SAID_IN_MSGPACK, {"endpoint": "get_action", "data": {"observation": NESTED}}),
    "groot-flat": (groot, as_groot, SAID_IN_MSGPACK, {"endpoint": "get_action", "data": FLAT, "api_token": "x"}),
}


def places(value) -> Iterator[tuple]:
    """The keys that lead to each part of a message, itself included."""
    yield ()
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from ((key, *rest) for rest in places(item))


def changed(message, place: tuple, odd):
    if not place:
        return odd
    message = copy.deepcopy(message)
    part = message
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = odd
    return message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_whatever_stands_in_a_place_of_a_message_is_answered_or_refused(protocol):
    make, encode, oddities, lawful = PROTOCOLS[protocol]
    served = service(Echo())

    async def run() -> tuple[int, int]:
        served.batcher.start(asyncio.get_running_loop(), lambda: None)
        await make(served).answer(encode(lawful))
        refused = asked = 0
        for place in places(lawful):
            for odd in oddities:
                wire, asked = make(served), asked + 1
                try:
                    await wire.answer(encode(changed(lawful, place, odd)))
                except Refusal:
                    refused += 1
        served.batcher.stop()
        return refused, asked

    refused, asked = asyncio.run(run())
    assert 0 < refused < asked and served.in_flight == 0


def test_half_a_surrogate_pair_in_json_in_json_is_refused():
    with serving(service(Echo())) as server:
        status, body = request(server.address, "POST", "/act", rb'{"encoded": "\ud800"}')
        assert status == 400 and json.loads(body)["message"] == "half of a surrogate pair is no letter; send whole ones"


@pytest.mark.parametrize(("odd", "kind"), [({"request": {"age_s": HUGE}}, "malformed"), ({"state": [HUGE] * 3}, "bad_observation")])
def test_numbers_of_hundreds_of_digits_are_refused(odd, kind):
    with serving(service(Echo())) as server:
        status, body = request(server.address, "POST", "/act", in_json({**POSTED, **odd}))
        assert status in (400, 422) and json.loads(body)["error"] == kind
        assert statistics(server.address)["refused"] == {kind: 1}


@pytest.mark.parametrize("target", ["//[", "//[::1", "//host/healthz", "/healthz/", "/a#b"])
def test_a_path_that_is_none_is_not_found_before_anybody_is_let_in(target):
    """RFC 9112, 3.2.1: what begins with a slash is a path, and `//[` no address of another host."""
    with serving(service(Echo())) as server:
        with raw(server.address, f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()) as peer:
            peer.settimeout(LONG_S)
            assert peer.recv(65536).startswith(b"HTTP/1.1 404")
    with serving(service(Echo()), token="0123456789abcdef") as server:
        with raw(server.address, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) as peer:
            assert peer.recv(65536).startswith(b"HTTP/1.1 401")
        with raw(server.address, b"GET /healthz?now HTTP/1.1\r\nHost: localhost\r\n\r\n") as peer:
            assert peer.recv(65536).startswith(b"HTTP/1.1 200")


def mistaken(mistake: Exception) -> Service:
    """Fails over every request, by a mistake in our code."""

    async def act(heard, session):
        raise mistake

    served = service(Echo())
    served.act = act
    return served


def logged(caplog, mistake: Exception) -> int:
    """How many tracebacks of it whoever runs the server reads."""
    return sum(record.name == "vla.serve" and record.exc_info[1] is mistake for record in caplog.records)


MISTAKES = [KeyError("/secret/path"), ConnectionResetError("/secret/path"), TimeoutError("/secret/path"), AssertionError("/secret/path")]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: type(mistake).__name__)
def test_a_mistake_of_the_servers_own_is_answered_and_logged_and_ends_the_connection(mistake, caplog):
    with serving(mistaken(mistake)) as server:
        status, body = request(server.address, "POST", "/act", in_json(POSTED))
        assert status == 500 and json.loads(body)["error"] == "internal" and b"secret" not in body
        with connect(f"ws://{server.address}", compression=None) as client:
            client.recv(timeout=LONG_S)
            client.send(in_msgpack(said()))
            assert json.loads(client.recv(timeout=LONG_S))["error"] == "internal"
            with pytest.raises(WebSocketException, match="1011"):
                client.recv(timeout=LONG_S)
        with connect(f"ws://{server.address}/vla-eval", compression=None) as client:
            assert Harness(client).ask("observation", episode_said(0.1))["payload"]["kind"] == "internal"
            with pytest.raises(WebSocketException, match="1011"):
                client.recv(timeout=LONG_S)
        assert statistics(server.address)["refused"] == {"internal": 3}
    assert logged(caplog, mistake) == 3


def test_a_mistake_before_anybody_is_let_in_is_answered_and_logged(monkeypatch, caplog):
    mistake = KeyError("/secret/path")

    def parse_head(raw: bytes):
        raise mistake

    with serving(service(Echo())) as server:
        monkeypatch.setattr(server_module, "parse_head", parse_head)
        status, body = request(server.address, "GET", "/healthz")
        assert status == 500 and json.loads(body)["error"] == "internal" and b"secret" not in body
    assert logged(caplog, mistake) == 1


def test_a_mistake_over_a_request_of_groots_is_answered_and_logged_and_others_are_answered(caplog):
    zmq = pytest.importorskip("zmq", reason="GR00T's protocol is an extra: pyzmq")
    mistake = KeyError("/secret/path")

    def ask(endpoint: str) -> list:
        with zmq.Context() as context, context.socket(zmq.REQ) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, 60_000)
            socket.connect(endpoint)
            answers = []
            for message in ({"endpoint": "get_action", "data": {"observation": NESTED}}, {"endpoint": "ping"}):
                socket.send(as_groot(message))
                answers.append(msgpack.unpackb(socket.recv()))
            return answers

    server = Server(mistaken(mistake), port=0)
    (refused, pong), counted = beside_groot(server, ask), server.service.refused
    assert refused["kind"] == "internal" and "secret" not in refused["error"]
    assert pong["status"] == "ok" and counted == {"internal": 1} and logged(caplog, mistake) == 1
