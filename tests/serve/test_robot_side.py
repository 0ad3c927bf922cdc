"""A robot whose server is killed, cut off or slow: it holds within two control periods, comes back, and never plays an old chunk again."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
import time

import numpy as np
import pytest

from tests.serve.parts import LONG_S, ROBOT, Echo, Gated, eventually, said, service
from tests.serve.test_command import ROBOT_FILE, served
from vla.serve.background import serving
from vla_client import Guard, Limits, Mismatch, Pilot, PolicyClient

PERIOD_S = 0.5
"""Long, so that a busy machine does not count as a slow robot."""


class Robot:
    """A robot by its control loop: what it was told, period by period; its observations are numbered."""

    def __init__(self, url: str, timeout_s: float = PERIOD_S, max_age_s: float = 60.0) -> None:
        low, high = (list(bound) for bound in ROBOT.bounds())
        guard = Guard(Limits(tuple(low), tuple(high), (1e6, 1e6)), rate_hz=1 / PERIOD_S, max_age_s=max_age_s, max_chunk=ROBOT.horizon)
        self.seen = 0
        self.pilot = Pilot(PolicyClient(url, timeout_s), guard, self.observe, lambda: np.zeros(2), pause_s=0.02)

    def observe(self) -> tuple[dict, float]:
        time.sleep(PERIOD_S / 10)  # the next picture
        self.seen += 1
        return said(self.seen * 1e-4), time.monotonic()

    def periods(self, count: int) -> list[float | None]:
        """Runs the control loop; the first number of each command, None for hold."""
        told = []
        for _ in range(count):
            time.sleep(PERIOD_S)
            command = self.pilot.command()
            told.append(None if command is None else float(command[0]))
        return told

    def until_it_moves(self) -> float:
        for _ in range(200):
            (told,) = self.periods(1)
            if told is not None:
                return told
        raise AssertionError(self.pilot.reason)


ECHO_FILE = (
    ROBOT_FILE
    + """
import numpy as np
from vla.evaluate.baselines import Hold
from vla.types import Chunk

def echo(self, observations, keys):
    return [Chunk(np.full((4, 2), seen.state[-1, 0]), "narrow", EMBODIMENT.rate_hz) for seen in observations]

Hold.act_batch = echo
"""
)
"""The robot's file is code: here it makes `--policy hold` answer the observation's own number."""


@pytest.mark.thorough
def test_a_killed_server_means_hold_within_two_periods_and_a_new_one_means_new_chunks_alone(tmp_path):
    robot_file = tmp_path / "echo.py"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    robot_file.write_text(ECHO_FILE)
    words = ("--policy", "hold", "--embodiment", str(robot_file), "--deadline", "60", "--port", str(port))
    robot = Robot(f"ws://127.0.0.1:{port}", timeout_s=20.0)  # it is the cut that tells, not the clock
    with robot.pilot:
        with served(*words) as (process, _):
            robot.until_it_moves()
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_after = robot.seen
            assert robot.periods(2)[1] is None, "a command came in the second period after the kill"
            assert robot.periods(3) == [None] * 3
        with served(*words):
            first = robot.until_it_moves()
            told = [first, *robot.periods(4)]
    # Echo answers with the observation's own number: whatever is played was seen after the first server's end.
    assert all(number > killed_after * 1e-4 for number in told if number is not None)


@contextlib.contextmanager
def cable(address: str):
    """A wire to the server that can be cut, so that nothing comes any more and no end is seen: (address, cut)."""
    cut, ending, sockets = threading.Event(), threading.Event(), []

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if cut.is_set():
                    ending.wait()
                    return
                sink.sendall(data)

    def accept(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                host, port = address.rsplit(":", 1)
                far = socket.create_connection((host, int(port)))
                sockets.extend([near, far])
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=[listening], daemon=True).start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}", cut
        finally:
            ending.set()
            for each in sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()


@pytest.mark.faults
def test_a_cut_network_means_hold_once_the_deadline_of_a_request_has_passed():
    with serving(service(Echo())) as server, cable(server.address) as (address, cut):
        robot = Robot(f"ws://{address}", timeout_s=PERIOD_S)
        with robot.pilot:
            robot.until_it_moves()
            cut.set()
            told = robot.periods(8)
            assert None in told and told[told.index(None) :] == [None] * (8 - told.index(None))
            assert "nothing within" in robot.pilot.reason


@pytest.mark.faults
def test_a_slow_server_refuses_in_time_and_the_robot_holds():
    gated = Gated()
    with serving(service(gated)) as server:
        robot = Robot(f"ws://{server.address}", timeout_s=PERIOD_S)
        with robot.pilot:
            gated.go.release()
            robot.until_it_moves()
            told = robot.periods(6)  # the policy does not answer any more
            assert told[-1] is None
            late = robot.seen
            gated.go.release(10_000)
            assert robot.until_it_moves() * 1e4 > late - 1


def test_a_pilot_tells_what_was_carried_out_up_to_each_observation():
    now_s, made_s, told = [0.0], queue.Queue(), queue.Queue()

    class Told:
        def infer(self, observation, age_s, executed):
            told.put(executed)
            return {"actions": np.linspace([0.0, 0.0], [0.3, 0.3], 4)}

        def close(self) -> None:
            pass

    guard = Guard(Limits((-1.0,) * 2, (1.0,) * 2, (1e6,) * 2), rate_hz=10, max_age_s=60, max_chunk=4)
    pilot = Pilot(Told(), guard, lambda: ({}, made_s.get()), lambda: np.zeros(2), clock=lambda: now_s[0])
    with pilot:
        made_s.put(0.0)
        assert told.get(timeout=LONG_S).shape == (0, 2)
        commands = []
        for at_s in (0.05, 0.15, 0.25):
            now_s[0] = at_s
            eventually(lambda: commands.append(pilot.command()) or commands[-1] is not None)
        made_s.put(0.2)  # seen before the third was sent
        assert np.allclose(told.get(timeout=LONG_S), [[0.0, 0.0], [0.1, 0.1]])
        made_s.put(0.25)
        assert told.get(timeout=LONG_S).shape == (0, 2)
        made_s.put(0.26)
        assert np.allclose(told.get(timeout=LONG_S), [[0.2, 0.2]])
        pilot._ending.set()
        made_s.put(0.27)


def test_a_pilot_never_moves_for_another_robots_server():
    with serving(service(Echo())) as server:
        guard = Guard(Limits((-1.0,) * 2, (1.0,) * 2, (1.0,) * 2), rate_hz=10, max_age_s=1, max_chunk=4)
        client = PolicyClient(f"ws://{server.address}", LONG_S, expect={"embodiment": "another", "cameras": ["wrist"], "action_width": 7})
        with Pilot(client, guard, lambda: (said(0.1), time.monotonic()), lambda: np.zeros(2)) as pilot:
            eventually(lambda: "something else" in pilot.reason)
            assert pilot.command() is None


@pytest.mark.parametrize(
    ("expected", "difference"),
    [
        ({"embodiment": "wide"}, 'embodiment is "narrow" here, and "wide" was expected'),
        ({"statistics": "f" * 64}, "statistics is null here"),
        ({"cameras": ["third_person"]}, 'cameras is ["third_person", "wrist"] here, and ["third_person"] was expected'),
        ({"action_width": 7, "state_width": 3}, "action_width is 2 here, and 7 was expected"),
        ({"protocol_version": 2}, "protocol_version is 1 here, and 2 was expected"),
        ({"rate_hz": 30.0}, "rate_hz is 10.0 here"),
        ({"limits": [[-2, 2], [-1, 1]]}, "limits is [[-1.0, 1.0], [-1.0, 1.0]] here"),
        ({"gripper": "open01"}, "gripper is not among what is said here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_a_robot_expects_and_does_not_find_is_refused_at_the_handshake_and_listed(expected, difference):
    with serving(service(Echo())) as server, PolicyClient(f"ws://{server.address}", LONG_S, expect=expected) as client:
        with pytest.raises(Mismatch) as caught:
            client.infer(said(0.1))
        assert difference in str(caught.value) and server.service.answered == 0
        with PolicyClient(f"ws://{server.address}", LONG_S, expect={"embodiment": "narrow", "action_width": 2}) as lawful:
            assert lawful.infer(said(0.1))["actions"].shape == (4, 2)
