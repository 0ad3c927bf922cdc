"""What a request costs over the policy's own time, whether health is answered while the policy thinks, and what batching keeps.

    python benchmarks/serve.py
    python benchmarks/serve.py --json benchmarks/results/serve.json

The server runs in a process of its own, and so do the clients, which speak openpi's protocol. Three figures, and what the first has to be
compared with:

overhead_ms_p50             a client's round trip with two 224-pixel images, less the policy's own time for it as the server measured it
echo_ms_p50                 the same number of bytes there and back over a bare socket, with the same pause between, in turns with the
                            requests: what this machine takes for it without any of our code
health_ms_during_inference  the slowest of repeated GET /healthz while one inference takes 3 s
batching_efficiency_32      32 clients at once: the time that the same policy, called directly, takes for the same batch sizes, over the
                            time that the server took to answer them

The policies take their time as an accelerator does, off the processor: `a + b * batch` seconds, asleep. Two cores that also run 32
clients could otherwise not tell the server's cost from the clients'. `--checkpoint FOLDER` measures with a real one beside it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import machine
from vla.embodiment import Embodiment, Field, Space
from vla.types import Chunk, Observation

_SPACE = Space((Field("joints", 6, "rad"), Field("gripper", 1, "open01")))
ROBOT = Embodiment("bench", ("third_person", "wrist"), _SPACE, _SPACE, _SPACE, Fraction(30), 16, ((-3.2, 3.2),) * 6 + ((0.0, 1.0),))
SIDE = 224
CLIENTS = 32
POLICY_S = 0.005
"""What a policy takes for one observation where the overhead is measured."""
TURN, WARM = 50, 10
"""Requests of one turn, and those before them, which do not count."""


class Asleep:
    """A policy on an accelerator: `base_s + row_s * batch` seconds off the processor, then no motion."""

    def __init__(self, base_s: float, row_s: float) -> None:
        self.base_s, self.row_s = base_s, row_s

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        time.sleep(self.base_s + self.row_s * len(observations))
        return [Chunk(np.zeros((ROBOT.horizon, ROBOT.command.size)), ROBOT.name, ROBOT.rate_hz) for _ in observations]


def serve(pipe: Any, base_s: float, row_s: float, checkpoint: str | None) -> None:
    """The server's process: says where it serves, then waits to be told to end."""
    from vla.serve.background import serving
    from vla.serve.service import Service, Settings

    actor, robot = loaded(checkpoint) if checkpoint else (Asleep(base_s, row_s), ROBOT)
    service = Service(actor, robot, Settings(deadline_s=60, max_batch=CLIENTS))
    service.warm_up()
    with serving(service) as server:
        pipe.send(server.address)
        pipe.recv()


def loaded(checkpoint: str) -> tuple[Any, Embodiment]:
    """A checkpoint's policy, and the first of its robots."""
    from vla.policy import Policy

    policy = Policy.load(checkpoint)
    return policy, policy.contents.embodiments[0]


class Served:
    """The server in its process, as a context: its address."""

    def __init__(self, base_s: float, row_s: float, checkpoint: str | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, base_s, row_s, checkpoint))

    def __enter__(self) -> str:
        self._process.start()
        return self._pipe.recv()

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()


def observation(robot: Embodiment = ROBOT) -> dict[str, Any]:
    """A request: noise from every camera, a neutral state."""
    from vla.serve.service import neutral_state

    rng = np.random.default_rng(0)
    images = {role: rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for role in robot.cameras}
    return {"prompt": "open the door", "images": images, "state": neutral_state(robot)}


def overhead(requests: int, checkpoint: str | None = None) -> dict[str, float]:
    """Round trips of one client, less the policy's own time, and of as many bytes without us."""
    from vla_client import PolicyClient, pack

    robot = loaded(checkpoint)[1] if checkpoint else ROBOT
    message, over, bare, policy = observation(robot), [], [], []
    answer = {"actions": np.zeros((robot.horizon, robot.command.size)), "server_timing": {"infer_ms": 0.0, "total_ms": 0.0}}
    with (
        Served(0.0, POLICY_S, checkpoint) as address,
        PolicyClient(f"ws://{address}", 60) as client,
        Echo(len(pack(message)), len(pack(answer))) as echo,
    ):
        for _ in range(max(1, requests // TURN)):
            for number in range(WARM + TURN):
                start = time.perf_counter()
                timing = client.infer(message)["server_timing"]
                if number >= WARM:
                    over.append((time.perf_counter() - start) * 1e3 - timing["infer_ms"])
                    policy.append(timing["infer_ms"])
            bare += [echo.round_trip() * 1e3 for _ in range(WARM + TURN)][WARM:]
    over.sort()
    return {
        "overhead_ms_p50": statistics.median(over),
        "overhead_ms_p99": over[int(len(over) * 0.99)],
        "echo_ms_p50": statistics.median(bare),
        "policy_ms_p50": statistics.median(policy),
    }


class Echo:
    """A process that takes `there` bytes over a bare socket, pauses as long as the policy, and gives `back` bytes."""

    def __init__(self, there: int, back: int) -> None:
        self._there, self._back = bytes(there), back
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=echo, args=(theirs, there, back))

    def __enter__(self) -> Echo:
        self._process.start()
        self._socket = socket.create_connection(("127.0.0.1", self._pipe.recv()))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.join()

    def round_trip(self) -> float:
        """Seconds, without the pause."""
        start = time.perf_counter()
        self._socket.sendall(self._there)
        received(self._socket, memoryview(bytearray(self._back)))
        seconds = time.perf_counter() - start
        return seconds - self._pipe.recv()


def echo(pipe: Any, there: int, back: int) -> None:
    """The process of `Echo`, until its client has gone."""
    taken = memoryview(bytearray(there))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pipe.send(listening.getsockname()[1])
        peer, _ = listening.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while received(peer, taken):
        start = time.perf_counter()
        time.sleep(POLICY_S)
        pause_s = time.perf_counter() - start
        peer.sendall(bytes(back))
        pipe.send(pause_s)


def received(peer: socket.socket, whole: memoryview) -> bool:
    """Fills `whole`; False if the other side has gone."""
    rest = whole
    while rest:
        count = peer.recv_into(rest)
        if not count:
            return False
        rest = rest[count:]
    return True


def health(thinking_s: float) -> dict[str, float]:
    """GET /healthz all through one long inference."""
    from vla_client import PolicyClient

    with Served(0.0, 0.0) as quick:  # what a connection costs here without a server that is busy
        idle = [_healthz(quick) for _ in range(20)]
    with Served(thinking_s / 2, 0.0) as address:
        with PolicyClient(f"ws://{address}", 60) as client:
            client.infer(observation())  # connected and warm
            thread = threading.Thread(target=client.infer, args=[observation()])
            thread.start()
            times = []
            while thread.is_alive():
                times.append(_healthz(address))
                time.sleep(0.01)
    return {
        "health_ms_during_inference": max(times),
        "health_ms_p50": statistics.median(times),
        "health_ms_idle_p50": statistics.median(idle),
    }


def _healthz(address: str) -> float:
    start = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read() == b"OK\n"
    connection.close()
    return (time.perf_counter() - start) * 1e3


def ask(address: str, count: int, requests: int, barrier: Any) -> None:
    """One process of clients, a thread each."""
    from vla_client import PolicyClient

    message = observation()

    def run() -> None:
        with PolicyClient(f"ws://{address}", 60) as client:
            client.infer(message)
            barrier.wait()
            for _ in range(requests):
                client.infer(message)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def batching(requests: int) -> dict[str, Any]:
    """32 clients in two processes, each asking again as soon as it is answered."""
    base_s, row_s = 0.05, 0.005  # about what a 3B policy takes on a GPU
    context = multiprocessing.get_context("spawn")
    with Served(base_s, row_s) as address:
        barrier = context.Barrier(CLIENTS + 1)
        processes = [context.Process(target=ask, args=(address, CLIENTS // 2, requests, barrier)) for _ in range(2)]
        for process in processes:
            process.start()
        barrier.wait()
        before, start = _batches(address), time.perf_counter()
        for process in processes:
            process.join()
        seconds = time.perf_counter() - start
        after = _batches(address)
    sizes = {size: after[size] - before.get(size, 0) for size in after if after[size] > before.get(size, 0)}
    policy, message = Asleep(base_s, row_s), Observation({}, np.zeros((1, 7)), "", ROBOT.name)
    start = time.perf_counter()
    for size, count in sizes.items():
        for _ in range(count):
            policy.act_batch([message] * size, range(size))
    direct_s = time.perf_counter() - start
    return {
        "batching_efficiency_32": direct_s / seconds,
        "answers_per_s_32": CLIENTS * requests / seconds,
        "batches_32": {str(size): count for size, count in sorted(sizes.items())},
    }


def _batches(address: str) -> dict[int, int]:
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/statistics")
    found = json.loads(connection.getresponse().read())
    connection.close()
    return {int(size): count for size, count in found["batches"].items()}


def main() -> None:
    """Prints one JSON object, and writes it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="round trips of the overhead (default: 300)")
    parser.add_argument("--rounds", type=int, default=20, help="requests of each of the 32 clients (default: 20)")
    parser.add_argument("--thinking", type=float, default=3.0, metavar="S", help="length of the long inference (default: 3)")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="also measure the overhead over this one's own time")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("-"), metavar="FILE", help="write the figures (default: print them)")
    args = parser.parse_args()
    found: dict[str, Any] = {**overhead(args.requests), **health(args.thinking), **batching(args.rounds)}
    if args.checkpoint:
        found["checkpoint"] = overhead(args.requests, args.checkpoint)
    found["machine"] = machine()
    text = json.dumps(found, indent=1)
    if args.json and args.json != Path("-"):
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
