"""The server under what networks and strangers do to it. A few hundred of each in the default run; ten thousand under `faults`."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import random
import resource
import threading
import time
from collections.abc import Sequence

import msgpack
import numpy as np
import pytest
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

from tests.serve.parts import LONG_S, ROBOT, Echo, Gated, eventually, get, raw, request, said, service, statistics
from tests.serve.test_protocols import from_openpi, numpy_json, to_openpi
from vla.serve import connection
from vla.serve.background import serving
from vla.serve.batcher import outcomes_of
from vla.serve.codec import DTYPES, to_json
from vla.serve.observe import Names, observe
from vla.serve.openpi import heard
from vla.serve.server import Server
from vla.serve.wire import KINDS, Limits
from vla_client import PolicyClient, Refused, Unavailable

MANY = [pytest.param(200, id="200"), pytest.param(10_000, id="10000", marks=pytest.mark.faults)]
SHAPES = [
    (),
    (0,),
    (1,),
    (2,),
    (3,),
    (1, 3),
    (2, 3),
    (16, 16, 3),
    (1, 16, 16, 3),
    (16, 16),
    (16, 16, 4),
    (3, 16, 16),
    (1, 1, 1, 1, 1, 1),
    (7, 1, 3),
]
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXTS = ["", "open the door", "\x00", "a" * 3000, "<|im_end|>", "../../etc/passwd", "\u202e", "'; rm -rf /"]


def odd_array(rng: random.Random) -> dict:
    """An array that is lawful, or wrong in its type, its shape, its data or its form."""
    shape = list(rng.choice(SHAPES))
    dtype = rng.choice(DTYPES)
    count = int(np.prod(shape)) if shape else 1
    data = rng.choice([bytes, rng.randbytes])(count * np.dtype(dtype).itemsize)
    if rng.random() < 0.3:
        data = rng.choice([data[:-1], data + b"\0", b"", "text", None, 3, [1, 2]])
    if rng.random() < 0.2:
        dtype = rng.choice(["|O", "<c8", ">f4", "|V8", "<M8[s]", "<U4", "f", "", None, 5, [["a", "<f4"]], "|S9999999999"])
    if rng.random() < 0.2:
        shape = rng.choice([[-1], [-3, -1], [2**40, 2**40], [0, 2**62], [1.5], ["1"], None, "3", [[1]], [True], [3] * 9, list(range(200))])
    found = {"__ndarray__": True, "data": data, "dtype": dtype, "shape": shape}
    if rng.random() < 0.1:
        found.pop(rng.choice(list(found)))
    return found


def odd_value(rng: random.Random, depth: int = 0):
    simple = [None, True, 0, -1, 2**63, -(2**63), 1e308, float("nan"), float("inf"), b"", b"\xff" * 20, *TEXTS]
    kind = rng.randrange(8 if depth < 12 else 5)
    if kind < 3:
        return odd_array(rng)
    if kind < 5:
        return rng.choice(simple)
    if kind == 5:
        return [odd_value(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 5]))]
    if kind == 6:
        return {rng.choice([*TEXTS, "state", "images", "request"]): odd_value(rng, depth + 1) for _ in range(rng.choice([0, 1, 3]))}
    value: object = rng.choice([[], {}, 1])
    for _ in range(rng.choice([3, 9, 40])):
        value = [value]
    return value


def odd_message(rng: random.Random):
    """A lawful observation with one to three places changed: dtype, shape, data, nesting, keys."""
    message = copy.deepcopy(LAWFUL)
    for _ in range(rng.randrange(1, 4)):
        place = rng.choice(["prompt", "state", "images", "wrist", "request", "new", "top"])
        if place == "wrist" and isinstance(message.get("images"), dict):
            message["images"][rng.choice(["wrist", "third_person", "unknown", ""])] = odd_value(rng)
        elif place == "request":
            names = rng.sample(["seq", "age_s", "timeout_s", "offsets_s", "executed"], 2)
            message["request"] = {name: odd_value(rng) for name in names}
        elif place == "new":
            message[rng.choice(TEXTS)] = odd_value(rng)
        elif place == "top" and rng.random() < 0.3:
            return odd_value(rng)
        else:
            message[place] = odd_value(rng)
            if rng.random() < 0.3:
                message.pop(place)
    return message


def as_said(value):
    """A lawful observation with its arrays spelled out."""
    if isinstance(value, np.ndarray):
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    return {key: as_said(item) for key, item in value.items()} if isinstance(value, dict) else value


LAWFUL = as_said(said(0.25))


class Lawful:
    """A client that asks all the while, and must be answered rightly every time."""

    def __init__(self, address: str) -> None:
        self.answered, self.wrong = 0, []
        self._address, self._ending = address, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Lawful:
        self._thread.start()
        eventually(lambda: self.answered or self.wrong)  # it has come in before anything is done to the server
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        assert not self.wrong and self.answered > 0

    def _run(self) -> None:
        with PolicyClient(f"ws://{self._address}", LONG_S) as client:
            while not self._ending.is_set():
                number = (self.answered % 100) / 100
                try:
                    answer = client.infer(said(number))["actions"]
                except (Unavailable, ValueError) as error:
                    self.wrong.append(repr(error))
                    return
                if not np.array_equal(answer, np.full((4, 2), number)):
                    self.wrong.append(str(answer))
                self.answered += 1
                time.sleep(0.02)


def send_all(address: str, messages) -> tuple[int, int]:
    """Sends each and takes its answer: (actions, refusals). Whatever else comes fails."""
    actions = refusals = 0
    socket_ = None
    for message in messages:
        if socket_ is None:
            socket_ = opened(address)
            socket_.recv(timeout=LONG_S)
        socket_.send(message)
        try:
            answer = socket_.recv(timeout=LONG_S)
        except WebSocketException:  # closed after a refusal that ends a connection
            socket_, refusals = None, refusals + 1
            continue
        if isinstance(answer, str):
            refused = json.loads(answer)
            assert refused["error"] in {*KINDS} - {"internal"} and len(refused["message"]) <= 600
            assert "Traceback" not in answer and "site-packages" not in answer
            refusals += 1
        else:
            action_TA = msgpack.unpackb(answer, object_hook=from_openpi)["actions"]
            assert action_TA.shape == (4, 2) and np.isfinite(action_TA).all() and np.abs(action_TA).max() <= 1
            actions += 1
    if socket_ is not None:
        socket_.close()
    return actions, refusals


def opened(address: str):
    """A websocket without a `with`, as every version of the library lets one have it."""
    return connect(f"ws://{address}", compression=None, open_timeout=LONG_S).__enter__()


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("count", MANY)
def test_messages_odd_in_structure_are_answered_or_refused_and_cost_no_memory(count):
    rng = random.Random(1)
    packed = lambda: msgpack.packb(odd_message(rng))  # noqa: E731
    with serving(service(Echo())) as server, Lawful(server.address):
        send_all(server.address, (packed() for _ in range(count // 5)))
        before = resident_bytes()
        actions, refusals = send_all(server.address, (packed() for _ in range(count)))
        assert actions + refusals == count and refusals > count / 2
        assert resident_bytes() < before * 1.05 + 2**22
        assert not server.broken and get(server.address, "/healthz")[0] == 200


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut out, doubled, or exchanged for what lengths are made of."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(min(len(out), 120))
        kind = rng.randrange(4)
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            del out[at : at + rng.choice([1, 2, 50])]
        elif kind == 2:
            out[at:at] = out[at : at + rng.choice([1, 4, 50])]
        else:
            out[at : at + 5] = bytes([rng.choice([0xC1, 0xC6, 0xC9, 0xDB, 0xDD, 0xDF])]) + b"\xff\xff\xff\xff"
        if not out:
            return b"\x00"
    return bytes(out)


@pytest.mark.parametrize("count", MANY)
def test_mutated_bytes_are_answered_or_refused(count):
    rng = random.Random(2)
    whole = msgpack.packb(LAWFUL)
    with serving(service(Echo())) as server, Lawful(server.address):
        actions, refusals = send_all(server.address, (mutated(rng, whole) for _ in range(count)))
        assert actions + refusals == count and refusals > count / 4 and not server.broken


@pytest.mark.parametrize("count", MANY)
def test_mutated_requests_of_openvla_and_of_http_are_answered_or_refused(count):
    rng = random.Random(3)
    picture = np.zeros((16, 16, 3), np.uint8)
    whole = json.dumps({"image": picture, "wrist_image": picture, "instruction": "x", "state": np.zeros(3)}, default=numpy_json).encode()
    head = b"POST /act HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    statuses = set()
    with serving(service(Echo(), limits=Limits(head_s=0.3, message_s=0.3))) as server, Lawful(server.address):
        for number in range(count // 10):
            body = mutated(rng, whole)
            first = head % len(body)
            with raw(server.address, (mutated(rng, first) if number % 2 else first) + body) as peer, contextlib.suppress(ConnectionError):
                answer = b""
                while data := peer.recv(65536):
                    answer += data
                statuses |= {answer[9:12]} if answer else set()
        assert not server.broken
    assert statuses <= {b"200", b"400", b"403", b"404", b"409", b"413", b"422", b"503", b"101", b"100"} and b"400" in statuses


def test_what_is_too_large_is_refused_before_it_is_read():
    with serving(service(Echo(), limits=Limits(message_bytes=2**20))) as server, Lawful(server.address):
        status, body = request(server.address, "POST", "/act", b"", {"Content-Length": str(2**50)})
        assert status == 413 and json.loads(body)["error"] == "too_large"
        before = resident_bytes()
        # A frame that says it has 2 GB is refused by its header alone (RFC 6455: 0x82, 127, length, mask).
        with connect(f"ws://{server.address}", compression=None) as client:
            client.recv()
            client.socket.sendall(b"\x82\xff" + (2**31).to_bytes(8, "big") + b"mask" + bytes(1000))
            with pytest.raises(WebSocketException, match="1009"):
                client.recv(timeout=LONG_S)
        with connect(f"ws://{server.address}", compression=None) as client:
            client.recv()
            with pytest.raises(WebSocketException):  # a megabyte in pieces is as much as one whole
                client.send(bytes(2**16) for _ in range(40))
                client.recv(timeout=LONG_S)
        with raw(server.address, b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000) as peer:
            assert peer.recv(100).startswith(b"HTTP/1.1 413")
        assert resident_bytes() < before + 2**25


def test_frames_are_frames_however_they_are_cut():
    rng = random.Random(4)
    ping = Frame(Opcode.PING, b"?")
    asked = []
    for number in (0.1, 0.2, 0.3, 0.4):
        message = msgpack.packb(as_said(said(number)))
        first, second = sorted(rng.sample(range(len(message)), 2))
        asked += [Frame(Opcode.BINARY, message), ping] if number in (0.1, 0.3) else []
        if number in (0.2, 0.4):
            asked += [Frame(Opcode.BINARY, message[:first], fin=False), ping, Frame(Opcode.CONT, message[first:second], fin=False)]
            asked += [Frame(Opcode.CONT, message[second:])]
    data = b"".join(frame.serialize(mask=True) for frame in asked)
    with serving(service(Echo())) as server:
        for longest in (len(data), 2000, 50):
            with connect(f"ws://{server.address}", compression=None) as client:
                client.recv(timeout=LONG_S)
                rest = data
                while rest:
                    cut = rng.randint(1, longest)
                    client.socket.sendall(rest[:cut])
                    rest = rest[cut:]
                answers = [msgpack.unpackb(client.recv(timeout=LONG_S), object_hook=from_openpi)["actions"] for _ in range(4)]
                assert [answer[0, 0] for answer in answers] == [0.1, 0.2, 0.3, 0.4]
        eventually(lambda: server.connections == 0)
        assert (server._held.bytes, server._held.kept) == (0, 0)


def test_buffers_of_large_messages_are_kept_while_there_is_room(monkeypatch):
    monkeypatch.setattr(connection, "KEPT_BYTES", 2**20)
    with serving(service(Echo())) as server, contextlib.ExitStack() as clients:
        for _ in range(3):  # of 400 kB
            client = clients.enter_context(PolicyClient(f"ws://{server.address}", LONG_S))
            for number in (0.1, 0.2):
                assert client.infer(said(number, side=256))["actions"][0, 0] == number
        assert 2**19 < server._held.kept <= 2**20
        clients.close()
        eventually(lambda: server._held.kept == 0)


def test_a_message_of_a_thousand_frames_is_refused():
    with serving(service(Echo())) as server, Lawful(server.address), connect(f"ws://{server.address}", compression=None) as client:
        client.recv()
        with pytest.raises(WebSocketException):
            client.send(b"x" for _ in range(5000))
            for _ in range(3):
                client.recv(timeout=LONG_S)


def test_slow_senders_are_cut_and_others_are_served():
    limits = Limits(head_s=0.5, message_s=0.5, ping_s=0.5)
    with serving(service(Echo(), limits=limits)) as server, Lawful(server.address):
        half_head = raw(server.address, b"GET / HTT")
        half_body = raw(server.address, b"POST /act HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        silent = raw(server.address)
        half_frame = opened(server.address)
        half_frame.recv()
        half_frame.socket.sendall(b"\x82\xfe\x10\x00mask")
        for peer in (half_head, half_body, silent):
            with peer, contextlib.suppress(ConnectionError):
                while peer.recv(4096):
                    pass  # ends when the server cuts it
        with pytest.raises(WebSocketException):
            half_frame.recv(timeout=LONG_S)
        eventually(lambda: server.connections <= 2)


@pytest.mark.faults
def test_one_that_has_gone_without_a_word_is_found_out():
    with serving(service(Echo(), limits=Limits(ping_s=0.3))) as server, Lawful(server.address):
        with raw(server.address, UPGRADE) as dead:  # it answers no ping
            assert b"101" in dead.recv(20)
            with contextlib.suppress(ConnectionError):
                while dead.recv(65536):
                    pass
        with connect(f"ws://{server.address}", compression=None) as living:  # it answers pings, and may be silent as long as it likes
            living.recv()
            time.sleep(1.5)
            living.send(msgpack.packb(LAWFUL))
            assert isinstance(living.recv(timeout=LONG_S), bytes)


@pytest.mark.parametrize("count", [pytest.param(150, id="150"), pytest.param(1000, id="1000", marks=pytest.mark.faults)])
def test_idle_connections_take_no_place_and_their_descriptors_return(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with serving(service(Echo(), limits=Limits(connections=64, head_s=30))) as server, Lawful(server.address):
            before = len(os.listdir("/proc/self/fd"))
            idle = [raw(server.address) for _ in range(count)]
            with PolicyClient(f"ws://{server.address}", LONG_S) as late:  # it comes in all the same
                assert late.infer(said(0.1))["actions"][0, 0] == 0.1
            assert server.connections <= 64
            for peer in idle:
                peer.close()
            eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 8)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_that_came_in_properly_keep_their_place_and_one_too_many_is_told():
    with serving(service(Echo(), limits=Limits(connections=4))) as server:
        clients = [PolicyClient(f"ws://{server.address}", LONG_S) for _ in range(4)]
        for client in clients:
            client.infer(said(0.1))
        with PolicyClient(f"ws://{server.address}", LONG_S) as fifth, pytest.raises(Unavailable, match="busy: 4 connections are open"):
            fifth.infer(said(0.1))
        for client in clients:
            assert client.infer(said(0.2))["actions"][0, 0] == 0.2
            client.close()
        eventually(lambda: server.connections == 0)


@pytest.mark.parametrize("clients", [1, 2, 8, 32, pytest.param(128, marks=pytest.mark.faults)])
def test_no_client_ever_gets_anothers_answer(clients):
    echo, wrong = Echo(), []

    def run(number: int) -> None:
        with PolicyClient(f"ws://{address}", LONG_S) as client:
            for call in range(5):
                mine = (number * 5 + call) / 1000
                if not np.array_equal(client.infer(said(mine))["actions"], np.full((4, 2), mine)):
                    wrong.append(number)

    with serving(service(echo, max_batch=16)) as server:
        address = server.address
        threads = [threading.Thread(target=run, args=[number]) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.service.answered == 5 * clients
    assert not wrong and max(echo.batches) <= 16 and sum(echo.batches) == 5 * clients


def asked_behind_one(gated: Gated, server: Server, sides: Sequence[int]) -> None:
    """A request that the policy is held in, then the others meanwhile; three calls answer all. `sides`: of their pictures, in pixels."""
    clients = [PolicyClient(f"ws://{server.address}", LONG_S) for _ in sides]
    threads = [threading.Thread(target=client.infer, args=[said(0.1, side)]) for client, side in zip(clients, sides, strict=True)]
    threads[0].start()
    assert gated.begun.acquire(timeout=LONG_S)  # the first runs alone, at once
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: statistics(server.address)["in_flight"] == len(sides))
    gated.go.release(3)
    for thread, client in zip(threads, clients, strict=True):
        thread.join()
        client.close()


def test_whatever_waits_is_one_batch_and_a_lone_request_waits_for_nobody():
    gated = Gated()
    with serving(service(gated, max_batch=8)) as server:
        asked_behind_one(gated, server, [16] * 10)
        assert gated.batches == [1, 8, 1]
        assert statistics(server.address)["batches"] == {"1": 2, "8": 1}


def test_observations_of_other_sizes_never_share_a_batch():
    gated = Gated()
    with serving(service(gated)) as server:
        asked_behind_one(gated, server, (16, 16, 32, 16, 32))
        assert gated.batches == [1, 2, 2]


def test_health_is_told_without_a_body_to_who_asks_for_the_head_alone():
    with serving(service(Echo())) as server:
        for path, length in (("/healthz", 3), ("/health", 16)):
            with raw(server.address, f"HEAD {path} HTTP/1.1\r\n\r\nGET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode()) as peer:
                answer = b"".join(iter(lambda peer=peer: peer.recv(65536), b""))
            head, _, second = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n") and f"Content-Length: {length}".encode() in head
            assert second.startswith(b"HTTP/1.1 200 OK\r\n") and len(second.partition(b"\r\n\r\n")[2]) == length


def test_health_and_pings_are_answered_while_the_policy_thinks():
    gated = Gated()
    with serving(service(gated)) as server, connect(f"ws://{server.address}", compression=None) as client:
        client.recv(timeout=LONG_S)
        client.send(msgpack.packb(LAWFUL))
        assert gated.begun.acquire(timeout=LONG_S)
        assert client.ping().wait(LONG_S)
        for _ in range(20):
            assert get(server.address, "/healthz") == (200, b"OK\n")  # the gate is closed all the while
        assert statistics(server.address)["in_flight"] == 1
        gated.go.release()
        assert isinstance(client.recv(timeout=LONG_S), bytes)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Vla-Expect": "[1]"}, 400),
        ({"Vla-Expect": '{"embodiment": "wide"}'}, 409),
        ({"Transfer-Encoding": "chunked"}, 400),
        ({"Content-Length": "-1"}, 400),
        ({"Content-Length": "1_0"}, 400),
    ],
    ids=str,
)
def test_heads_that_may_not_come_in(headers, status):
    with serving(service(Echo())) as server:
        found, body = get(server.address, "/metadata", headers)
        assert found == status and (status == 200 or json.loads(body)["error"] in KINDS)


def test_a_token_is_asked_of_every_protocol_and_the_wrong_one_gets_nowhere():
    with serving(service(Echo()), token="0123456789abcdef") as server:
        for token in (None, "0123456789abcdeF", "0123456789abcdef0", ""):
            for url in (f"ws://{server.address}", f"ws://{server.address}/vla-eval"):
                with pytest.raises(WebSocketException, match="401"):
                    connect(url, additional_headers={"Authorization": f"Api-Key {token}"} if token else None)
        with PolicyClient(f"ws://{server.address}", LONG_S, token="0123456789abcdef") as client:
            assert client.infer(said(0.1))["actions"][0, 0] == 0.1


@pytest.mark.faults
def test_answers_that_nobody_reads_hold_up_no_one():
    with serving(service(Echo(), limits=Limits(send_s=0.3))) as server, Lawful(server.address) as lawful:
        with connect(f"ws://{server.address}", compression=None, max_queue=1) as deaf:
            with contextlib.suppress(WebSocketException, OSError):
                for _ in range(300):
                    deaf.send(msgpack.packb(said(0.1), default=to_openpi))
            answered = lawful.answered
            eventually(lambda: lawful.answered > answered + 3 or lawful.wrong)
            assert not lawful.wrong


@pytest.mark.faults
def test_pongs_that_nobody_reads_do_not_gather():
    with serving(service(Echo(), limits=Limits(send_s=0.3))) as server, Lawful(server.address), raw(server.address, UPGRADE) as deaf:
        assert b"101" in deaf.recv(20)
        before, sent = resident_bytes(), 0
        with pytest.raises(OSError):
            while sent < 2**28:
                sent += deaf.send((b"\x89\xfdmask" + bytes(125)) * 1000)
        assert resident_bytes() < before + 2**25


def test_a_server_that_stops_answers_what_was_asked_and_pings_and_says_goodbye():
    gated = Gated()
    served = service(gated)
    with contextlib.ExitStack() as clients:
        with serving(served) as server:
            asking, idle = (clients.enter_context(connect(f"ws://{server.address}", compression=None)) for _ in range(2))
            for client in (asking, idle):
                client.recv(timeout=LONG_S)
            asking.send(msgpack.packb(LAWFUL))
            assert gated.begun.acquire(timeout=LONG_S)
            pongs = [client.ping() for client in (asking, idle)]

            def let() -> None:
                eventually(lambda: served.draining)
                gated.go.release()

            threading.Thread(target=let).start()
        assert isinstance(asking.recv(timeout=LONG_S), bytes)
        for client in (asking, idle):
            with pytest.raises(WebSocketException, match="1001"):
                client.recv(timeout=LONG_S)
        assert all(pong.wait(LONG_S) for pong in pongs)


def test_a_policy_that_fails_over_one_observation_is_asked_row_by_row():
    def before(observations) -> None:
        if any(seen.state[0, 0] == 0.5 for seen in observations):
            raise RuntimeError("CUDA error at /secret/path/model.py")

    gated = Gated(before=before)
    with serving(service(gated)) as server:
        results: dict[float, object] = {}

        def ask(number: float) -> None:
            with PolicyClient(f"ws://{server.address}", LONG_S) as client:
                try:
                    results[number] = client.infer(said(number))["actions"][0, 0]
                except Refused as refused:
                    results[number] = refused

        threads = [threading.Thread(target=ask, args=[number]) for number in (0.1, 0.2, 0.5, 0.3)]
        threads[0].start()
        assert gated.begun.acquire(timeout=LONG_S)
        for thread in threads[1:]:
            thread.start()
        eventually(lambda: statistics(server.address)["in_flight"] == 4)
        gated.go.release(100)
        for thread in threads:
            thread.join()
    refused = results.pop(0.5)
    assert results == {0.1: 0.1, 0.2: 0.2, 0.3: 0.3}
    assert refused.kind == "policy_failed" and "RuntimeError" in str(refused) and "secret" not in str(refused)


@pytest.mark.parametrize("mistake", [TypeError, AttributeError, AssertionError, MemoryError])
def test_a_mistake_that_one_observation_meets_costs_that_one_its_answer_and_nobody_else_theirs(mistake, caplog):
    def before(observations) -> None:
        if any(seen.instruction == "odd" for seen in observations):
            raise mistake("at /secret/path/model.py")

    served = service(Echo(before=before))
    with serving(served) as server, Lawful(server.address), PolicyClient(f"ws://{server.address}", LONG_S) as client:
        for _ in range(3):  # alone in its batch, or with the lawful one's
            with pytest.raises(Refused, match=f"policy_failed: {mistake.__name__}$"):
                client.infer({**said(0.5), "prompt": "odd"})
        assert not server.broken and served.refused == {"policy_failed": 3}
    assert any(record.exc_info and record.exc_info[0] is mistake for record in caplog.records)


def test_rows_that_act_alone_are_answered_though_their_batch_meets_a_mistake():
    def before(observations) -> None:
        if len(observations) > 1:
            raise MemoryError

    observations = [observe(heard(said(number)), ROBOT, Names()) for number in (0.1, 0.2)]
    outcomes = outcomes_of(Echo(before=before), observations, range(2))
    assert [outcome.action_TA[0, 0] for outcome in outcomes] == [0.1, 0.2]


def test_half_a_surrogate_pair_is_no_instruction():
    """`tokenizers` answers it with a TypeError."""
    served, observation = service(Echo()), to_json(said(0.1)).replace(b"the door", rb"\ud800")
    with serving(served) as server:
        status, body = request(server.address, "POST", "/act", observation)
        assert status == 422 and b"half of a surrogate pair" in body
        assert request(server.address, "POST", "/act", observation.replace(rb"\ud800", rb"\ud83d\ude00"))[0] == 200  # whole: a smile
    assert served.actor.batches == [1]


def test_a_picture_that_would_unpack_to_a_hundred_megabytes_is_refused_by_its_header():
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 6_000, 6_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    message = copy.deepcopy(LAWFUL)
    message["images"] = {role: {"__image__": True, "format": "png", "data": bomb, "shape": [1]} for role in ROBOT.cameras}
    with serving(service(Echo())) as server, connect(f"ws://{server.address}", compression=None) as client:
        client.recv()
        client.send(msgpack.packb(message))
        assert "6000 x 6000 pixels" in json.loads(client.recv(timeout=LONG_S))["message"]


def test_the_lawful_message_of_these_tests_is_lawful():
    with serving(service(Echo())) as server:
        assert send_all(server.address, [msgpack.packb(LAWFUL)]) == (1, 0)
