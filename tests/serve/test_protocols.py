"""Each public protocol, spoken by a client written from its facts alone (and, by hand, by the public clients themselves)."""

from __future__ import annotations

import base64
import io
import json
import time

import msgpack
import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import connect

from tests.serve.parts import ROBOT, Echo, beside_groot, get, request, said, service
from vla.serve.background import serving
from vla.serve.observe import Names
from vla_client import PolicyClient


def to_openpi(value):
    """openpi's msgpack_numpy: keys as bytes, shape as a tuple."""
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def from_openpi(value):
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    return value


def test_openpi_metadata_on_connecting_then_actions():
    with serving(service(Echo())) as server, connect(f"ws://{server.address}", compression=None, max_size=None) as socket:
        metadata = msgpack.unpackb(socket.recv(), object_hook=from_openpi)
        assert metadata["embodiment"] == "narrow" and metadata["cameras"] == ["third_person", "wrist"]
        assert metadata["action_width"] == 2 and metadata["horizon"] == 4 and metadata["limits"] == [[-1, 1], [-1, 1]]
        assert metadata["state"] == [{"name": "joints", "size": 3, "unit": "rad", "frame": "absolute"}]
        for number in (0.25, -0.5):
            socket.send(msgpack.packb(said(number), default=to_openpi))
            answer = msgpack.unpackb(socket.recv(), object_hook=from_openpi)
            assert np.array_equal(answer["actions"], np.full((4, 2), number)) and answer["server_timing"]["infer_ms"] >= 0


def test_openpi_an_error_is_a_text_and_the_connection_goes_on():
    with serving(service(Echo())) as server, connect(f"ws://{server.address}", compression=None) as socket:
        socket.recv()
        socket.send(msgpack.packb({"prompt": "open"}))
        error = json.loads(socket.recv())
        assert error == {"error": "bad_observation", "message": "no picture of camera 'third_person'"}
        socket.send(msgpack.packb(said(0.5), default=to_openpi))
        assert isinstance(socket.recv(), bytes)


def test_health_is_plain_http():
    with serving(service(Echo())) as server:
        assert get(server.address, "/healthz") == (200, b"OK\n")
        assert get(server.address, "/health") == (200, b'{"status": "ok"}')
        status, body = get(server.address, "/metadata")
        assert status == 200 and json.loads(body)["embodiment"] == "narrow"
        assert get(server.address, "/nowhere")[0] == 404


def test_names_of_other_clients_are_mapped_and_never_guessed():
    names = {
        "observation/image": "images.third_person",
        "observation/wrist_image": "images.wrist",
        "observation/state": "state",
        "id": "ignore",
    }
    theirs = said(0.5)
    theirs = {
        "prompt": theirs["prompt"],
        "observation/image": theirs["images"]["third_person"],
        "observation/wrist_image": theirs["images"]["wrist"],
        "observation/state": theirs["state"],
        "id": 3,
    }
    with serving(service(Echo(), names=Names(names))) as server, PolicyClient(f"ws://{server.address}", 60) as client:
        assert client.infer(theirs)["actions"][0, 0] == 0.5
    with serving(service(Echo())) as server, PolicyClient(f"ws://{server.address}", 60) as client:
        with pytest.raises(ConnectionError, match="'observation/image' is not known here; expected are instruction, images.third_person"):
            client.infer(theirs)


def numpy_json(array: np.ndarray) -> dict:
    """json-numpy's form."""
    return {"__numpy__": base64.b64encode(array.tobytes()).decode(), "dtype": array.dtype.str, "shape": array.shape}


def post(address: str, payload) -> tuple[int, object]:
    status, body = request(address, "POST", "/act", json.dumps(payload, default=numpy_json).encode(), {"Content-Type": "application/json"})
    return status, json.loads(body)


def from_numpy_json(said: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(said["__numpy__"]), said["dtype"]).reshape(said["shape"])


def test_openvla_one_action_for_an_image_and_an_instruction():
    with serving(service(Echo(), state_optional=False)) as server:
        picture, payload = np.zeros((16, 16, 3), np.uint8), said(0.5)
        ask = {"image": picture, "wrist_image": picture, "instruction": "open it", "state": payload["state"]}
        status, answer = post(server.address, ask)
        assert status == 200 and np.array_equal(from_numpy_json(answer), [0.5, 0.5])
        assert post(server.address, {**ask, "unnorm_key": "narrow"})[0] == 200
        status, answer = post(server.address, {**ask, "unnorm_key": "bridge_orig"})
        assert status == 409 and answer["error"] == "mismatch" and answer["differences"] == ["embodiment is narrow here"]
        status, answer = post(server.address, {"encoded": json.dumps(ask, default=numpy_json)})
        assert status == 200 and np.array_equal(from_numpy_json(json.loads(answer)), [0.5, 0.5])
        status, answer = post(server.address, {"image": picture, "instruction": "open it"})
        assert status == 422 and answer["error"] == "bad_observation"


def test_openvla_oft_is_answered_with_the_list_of_a_chunk():
    picture = np.zeros((16, 16, 3), np.uint8)
    with serving(service(Echo())) as server:
        ask = {"full_image": picture, "wrist_image": picture, "state": np.full(3, 0.25), "instruction": "open it"}
        status, answer = post(server.address, ask)
        assert status == 200 and [list(from_numpy_json(row)) for row in answer] == [[0.25, 0.25]] * 4


class Harness:
    """vla-eval's client: {type, payload, seq, timestamp}, arrays under text keys, pictures as PNG."""

    def __init__(self, socket) -> None:
        self.socket, self.seq = socket, 0

    def send(self, kind: str, payload: dict) -> int:
        self.seq += 1
        message = {"type": kind, "payload": payload, "seq": self.seq, "timestamp": time.time()}
        self.socket.send(msgpack.packb(message, default=self.encode))
        return self.seq

    def ask(self, kind: str, payload: dict) -> dict:
        seq = self.send(kind, payload)
        answer = msgpack.unpackb(self.socket.recv(), object_hook=self.decode)
        assert set(answer) == {"type", "payload", "seq", "timestamp"} and answer["seq"] == seq
        return answer

    @staticmethod
    def encode(array: np.ndarray) -> dict:
        if array.ndim == 3:
            file = io.BytesIO()
            Image.fromarray(array).save(file, format="PNG")
            return {"__image__": True, "format": "png", "data": file.getvalue(), "shape": list(array.shape)}
        return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}

    @staticmethod
    def decode(said: dict):
        return np.frombuffer(said["data"], said["dtype"]).reshape(said["shape"]).copy() if "__ndarray__" in said else said


def episode_said(number: float) -> dict:
    ours = said(number)
    return {"images": ours["images"], "states": ours["state"], "task_description": ours["prompt"]}


def test_vla_eval_hello_episodes_and_one_action_per_observation():
    echo = Echo()
    with serving(service(echo, execute=2)) as server, connect(f"ws://{server.address}/vla-eval", compression=None) as socket:
        harness = Harness(socket)
        hello = harness.ask("hello", {"harness_version": "0.3", "protocol_version": 1, "benchmark": "x"})
        assert hello["type"] == "hello" and hello["payload"]["protocol_version"] == 1 and hello["payload"]["model_server"] == "vla"
        harness.send("episode_start", {"task": {"name": "x"}})
        actions = [harness.ask("observation", episode_said(number)) for number in (0.1, 0.2, 0.3, 0.4)]
        assert [answer["payload"]["actions"].tolist() for answer in actions] == [[0.1] * 2, [0.1] * 2, [0.3] * 2, [0.3] * 2]
        harness.ask("observation", episode_said(0.5))
        harness.send("episode_end", {"success": True})
        harness.send("episode_start", {})  # what is left of the chunk is not carried over
        assert harness.ask("observation", episode_said(0.6))["payload"]["actions"].tolist() == [0.6, 0.6]
        harness.send("episode_start", {})
        error = harness.ask("observation", {"images": {}})
        assert error["type"] == "error" and error["payload"]["kind"] == "bad_observation"


def test_vla_eval_another_protocol_version_is_refused_at_the_hello():
    with serving(service(Echo())) as server, connect(f"ws://{server.address}/vla-eval", compression=None) as socket:
        error = Harness(socket).ask("hello", {"protocol_version": 2})
        assert error["type"] == "error" and error["payload"]["differences"] == ["protocol_version is 1 here, and 2 was expected"]


def test_vla_eval_a_damaged_picture_is_refused():
    with serving(service(Echo())) as server, connect(f"ws://{server.address}/vla-eval", compression=None) as socket:
        harness, observation = Harness(socket), episode_said(0.1)
        for data in (b"", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff\xe0"):
            observation["images"] = {role: {"__image__": True, "format": "png", "data": data, "shape": [1, 1, 3]} for role in ROBOT.cameras}
            assert harness.ask("observation", observation)["payload"]["kind"] == "bad_observation"


def npy(array: np.ndarray) -> dict:
    """GR00T's MsgSerializer."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def from_npy(said: dict):
    return np.load(io.BytesIO(said["as_npy"]), allow_pickle=False) if "__ndarray_class__" in said else said


def test_groot_ping_get_action_and_reset():
    zmq = pytest.importorskip("zmq", reason="GR00T's protocol is an extra: pyzmq")

    from vla.serve.server import Server

    def robot(endpoint: str) -> list:
        context = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 60_000)
        socket.connect(endpoint)

        def call(endpoint: str, data: dict | None = None, token: str = "t" * 20):
            socket.send(msgpack.packb({"endpoint": endpoint, "data": data, "api_token": token}, default=npy))
            return msgpack.unpackb(socket.recv(), object_hook=from_npy)

        video = {role: np.zeros((1, 1, 16, 16, 3), np.uint8) for role in ROBOT.cameras}
        state = {"joints": np.full((1, 1, 3), 0.5, np.float32)}
        nested = {"video": video, "state": state, "language": {"task": [["open it"]]}}
        flat = {f"video.{role}": pixels[0] for role, pixels in video.items()} | {"state.joints": state["joints"][0]}
        found = [
            call("ping"),
            call("get_action", {"observation": nested, "options": None}),
            call("get_action", {**flat, "annotation.human.task_description": ["open it"]}),
            call("reset", {"options": None}),
            call("kill"),
            call("ping", token="wrong"),
            call("get_modality_config")["video"],
        ]
        socket.close()
        context.term()
        return found

    server = Server(service(Echo()), port=0, token="t" * 20)
    pong, nested, flat, reset, kill, wrong, video = beside_groot(server, robot)
    assert pong == {"status": "ok", "message": "Server is running"}
    assert np.array_equal(nested[0]["move"], np.full((1, 4, 2), 0.5, np.float32)) and nested[1] == {}
    assert np.array_equal(flat["action.move"], np.full((4, 2), 0.5))
    assert reset == {} and kill["kind"] == "not_found" and wrong["kind"] == "unauthorized"
    assert video["as_json"]["modality_keys"] == ["third_person", "wrist"]
