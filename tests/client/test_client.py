"""The client against a real websocket server on the loopback device: lawful, late, silent, cut and hostile."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from websockets.sync.server import serve

from vla_client import Mismatch, PolicyClient, ProtocolError, Refused, TooLate, Unavailable, link, pack, unpack

METADATA = {"embodiment": "so101", "action_width": 6}
SHORT_S = 0.3
LONG_S = 20.0


@contextmanager
def server(handler, **options):
    """A websocket server on a free port: `handler(connection)` runs for each client, in a thread of its own."""
    with serve(handler, "127.0.0.1", 0, compression=None, max_size=None, **options) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}"
        finally:
            running.shutdown()
            thread.join()


def echo(connection):
    """An openpi server whose policy doubles the state."""
    connection.send(pack(METADATA))
    for message in connection:
        observation = unpack(message)
        connection.send(pack({"actions": np.tile(observation["state"] * 2, (4, 1)), "server_timing": {"infer_ms": 1.5}}))


def test_metadata_then_an_answer_to_each_observation():
    with server(echo) as url, PolicyClient(url, timeout_s=LONG_S, expect={"embodiment": "so101"}) as client:
        for step in range(20):
            image = np.full((224, 224, 3), step, np.uint8)
            reply = client.infer({"image": image, "state": np.full(6, step, np.float32), "prompt": "lift"})
            assert np.array_equal(reply["actions"], np.full((4, 6), 2 * step)) and reply["actions"].dtype == np.float32
        assert client.metadata == METADATA


def test_the_token_is_sent_in_the_header():
    seen = []

    def handler(connection):
        seen.append(connection.request.headers["Authorization"])
        echo(connection)

    with server(handler) as url, PolicyClient(url, timeout_s=LONG_S, token="secret") as client:
        client.infer({"state": np.zeros(6)})
    assert seen == ["Api-Key secret"]


def test_another_server_than_expected_is_refused_with_the_difference():
    with server(echo) as url:
        client = PolicyClient(url, timeout_s=LONG_S, expect={"embodiment": "so100", "action_width": 6})
        with pytest.raises(Mismatch, match="embodiment is 'so101', not 'so100'"):
            client.infer({"state": np.zeros(6)})


def test_a_late_answer_is_never_returned_and_the_next_request_reconnects():
    release = threading.Event()
    connections = []

    def handler(connection):
        connections.append(connection)
        connection.send(pack(METADATA))
        for message in connection:
            state = unpack(message)["state"]
            if len(connections) == 1:
                release.wait(60)
            connection.send(pack({"actions": state[None]}))

    with server(handler) as url:
        client = PolicyClient(url, timeout_s=SHORT_S)
        with pytest.raises(TooLate, match=r"nothing within 0\.3 s"):
            client.infer({"state": np.array([1.0])})
        release.set()  # the first answer is now on its way, over a connection that is closed
        client._timeout_s = LONG_S
        assert client.infer({"state": np.array([2.0])})["actions"] == [[2.0]]
        client.close()
    assert len(connections) == 2


def test_an_error_in_words_is_a_refusal():
    def handler(connection):
        connection.send(pack(METADATA))
        connection.recv()
        connection.send("Traceback: the policy has no camera 'wrist'")

    with server(handler) as url, PolicyClient(url, timeout_s=LONG_S) as client:
        with pytest.raises(Refused, match="no camera 'wrist'"):
            client.infer({})


@pytest.mark.parametrize("reply", [b"\xc1", pack([1, 2]), pack(3)], ids=["garbage", "list", "number"])
def test_an_answer_that_is_no_map_is_a_protocol_error(reply):
    def handler(connection):
        connection.send(pack(METADATA))
        connection.recv()
        connection.send(reply)

    with server(handler) as url, PolicyClient(url, timeout_s=LONG_S) as client:
        with pytest.raises(ProtocolError):
            client.infer({})


def test_an_oversized_answer_is_refused():
    def handler(connection):
        connection.send(pack(METADATA))
        connection.recv()
        connection.send(bytes(17 * 2**20))

    with server(handler) as url, PolicyClient(url, timeout_s=LONG_S) as client:
        with pytest.raises(Unavailable):
            client.infer({})


def test_a_cut_connection_is_unavailable_and_the_next_request_reconnects():
    alive = [False, True]

    def handler(connection):
        connection.send(pack(METADATA))
        if alive.pop(0):
            connection.send(pack({"actions": unpack(connection.recv())["state"]}))
        else:
            connection.recv()
            connection.socket.shutdown(socket.SHUT_RDWR)

    with server(handler) as url, PolicyClient(url, timeout_s=LONG_S) as client:
        with pytest.raises(Unavailable) as caught:
            client.infer({"state": np.zeros(2)})
        assert not isinstance(caught.value, TooLate)
        assert np.array_equal(client.infer({"state": np.ones(2)})["actions"], [1, 1])


def test_what_nobody_asked_for_is_never_taken_for_an_answer():
    sent = threading.Event()

    def handler(connection):
        connection.send(pack(METADATA))
        state = unpack(connection.recv())["state"]
        for _ in range(2):
            connection.send(pack({"actions": state}))
        sent.set()
        connection.recv()

    with server(handler) as url, PolicyClient(url, timeout_s=LONG_S) as client:
        assert np.array_equal(client.infer({"state": np.zeros(2)})["actions"], [0, 0])
        assert sent.wait(LONG_S)
        with pytest.raises(Unavailable, match="not asked"):
            client.infer({"state": np.ones(2)})


def test_pings_are_answered_while_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(link, "KEEP_S", 0.05)
    answered = threading.Event()

    def handler(connection):
        connection.send(pack(METADATA))
        for message in connection:
            connection.send(pack({"actions": unpack(message)["state"]}))
            if not answered.is_set() and connection.ping().wait(LONG_S):
                answered.set()

    with server(handler) as url, PolicyClient(url, timeout_s=LONG_S) as client:
        client.infer({"state": np.zeros(2)})
        assert answered.wait(LONG_S)
        assert np.array_equal(client.infer({"state": np.ones(2)})["actions"], [1, 1])


def test_an_answer_may_come_in_pieces_and_be_the_last():
    def handler(connection):
        connection.send(pack(METADATA))
        answer = pack({"actions": unpack(connection.recv())["state"]})
        connection.ping()
        connection.send([answer[:5], answer[5:6], answer[6:]])
        connection.close(1001, "the server is stopping")

    with server(handler) as url, PolicyClient(url, timeout_s=LONG_S) as client:
        for _ in range(2):
            assert np.array_equal(client.infer({"state": np.ones(70_000)})["actions"], np.ones(70_000))
            with pytest.raises(Unavailable, match="1001"):
                client.infer({"state": np.zeros(2)})


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate")
def test_a_server_with_a_certificate_is_asked_over_tls_and_another_is_not(tmp_path, monkeypatch):
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", certificate, "-days", "2"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(["openssl", "req", "-x509", *made, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with server(echo, ssl=context) as url:
        url = url.replace("ws://127.0.0.1", "wss://localhost")
        with PolicyClient(url, timeout_s=LONG_S) as client, pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            client.infer({"state": np.zeros(2)})
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        with PolicyClient(url, timeout_s=LONG_S) as client:
            for number in (1.0, 2.0):
                assert np.array_equal(client.infer({"state": np.full(2, number), "blob": bytes(2**22)})["actions"][0], [2 * number] * 2)


def test_no_server_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable):
        PolicyClient(f"ws://127.0.0.1:{port}", timeout_s=LONG_S).infer({})


def test_a_peer_that_never_speaks_is_too_late():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(TooLate):
            PolicyClient(f"ws://127.0.0.1:{silent.getsockname()[1]}", timeout_s=SHORT_S).infer({})


def test_a_peer_that_stops_reading_is_too_late():
    # A server by hand: handshake (RFC 6455), metadata, and then it reads nothing more, so that sending blocks.
    done = threading.Event()

    def serve_one(listening):
        peer, _ = listening.accept()
        with peer:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += peer.recv(4096)
            key = re.search(rb"Sec-WebSocket-Key: (\S+)", request).group(1)
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            metadata = pack(METADATA)
            peer.sendall(upgrade + accept + b"\r\n\r\n" + bytes([0x82, len(metadata)]) + metadata)
            done.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve_one, args=[listening])
        thread.start()
        client = PolicyClient(f"ws://127.0.0.1:{listening.getsockname()[1]}", timeout_s=SHORT_S)
        with pytest.raises(TooLate):
            client.infer({"blob": bytes(32 * 2**20)})
        done.set()
        thread.join()
    assert client.metadata == METADATA


def test_failures_leave_no_threads_and_no_descriptors_behind():
    def handler(connection):
        connection.send(pack(METADATA))
        connection.recv()
        connection.send("no")

    def held() -> int:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return sum(os.readlink(link).startswith("socket:") for link in links if os.path.lexists(link)) + threading.active_count()

    with server(handler) as url:
        client = PolicyClient(url, timeout_s=LONG_S)
        before = held()
        for _ in range(30):
            with pytest.raises(Refused):
                client.infer({})
        for _ in range(200):  # the last connections' threads need a moment to see their end
            if held() <= before:
                break
            time.sleep(0.05)
        assert held() <= before


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1", "ws://", ""])
def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(ValueError, match="ws://host:port"):
        PolicyClient(url, timeout_s=1.0)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_deadline_must_be_positive(timeout_s):
    with pytest.raises(ValueError, match="timeout_s"):
        PolicyClient("ws://127.0.0.1:1", timeout_s=timeout_s)
