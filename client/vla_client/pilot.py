"""The loop around client and guard: one thread asks, the control loop takes a command per period, and silence means hold."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Mapping

import numpy as np

from vla_client.client import PolicyClient, Unavailable
from vla_client.codec import ProtocolError
from vla_client.guard import Guard, Stale, Unsafe


class Pilot:
    """Asks for a chunk after the other and plays them through the guard.

        with Pilot(client, guard, observe, where) as pilot:
            while working:
                command = pilot.command()  # once per control period
                robot.hold() if command is None else robot.move(command)

    `observe()` -> (observation as the server wants it, the time it was made, of time.monotonic), called in the asking thread. `where()` ->
    the command (A,) that describes where the robot is now: every motion after a pause starts there. `pause_s`: between two tries to reach
    a server. What went wrong last stands in `reason`.

    When the server is lost, refuses or is late, the chunk in hand is dropped at once: the next `command` is None, and stays so until a
    chunk for a newer observation has been admitted.
    """

    def __init__(
        self,
        client: PolicyClient,
        guard: Guard,
        observe: Callable[[], tuple[Mapping[str, Any], float]],
        where: Callable[[], Any],
        pause_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason = "no chunk yet"
        self._client, self._guard, self._observe, self._where = client, guard, observe, where
        self._pause_s, self._clock = pause_s, clock
        self._lock = threading.Lock()  # of the guard and all below
        self._moving = False
        self._done: list[tuple[float, np.ndarray]] = []  # when and what, not told to the server yet
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="pilot", daemon=True)

    def __enter__(self) -> Pilot:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    def command(self) -> np.ndarray | None:
        """The command (A,) of this period; None: hold. Call once per period."""
        with self._lock:
            if not self._moving:
                return None
            now_s = self._clock()
            try:
                command_A = self._guard.command(now_s)
            except (Stale, Unsafe) as error:
                self._hold(str(error))
                return None
            self._done.append((now_s, command_A))
            return command_A

    def _ask(self) -> None:
        while not self._ending.is_set():
            observation, made_s = self._observe()
            with self._lock:
                # Up to the observation: the chunk's first row is for the moment at which it was made.
                done = [command_A for at_s, command_A in self._done if at_s < made_s]
                self._done = self._done[len(done) :]
            executed = np.array(done).reshape(-1, self._guard.width)
            try:
                actions = self._client.infer(observation, age_s=self._clock() - made_s, executed=executed).get("actions")
            except (Unavailable, ProtocolError) as error:
                with self._lock:
                    self._hold(str(error))
                self._ending.wait(self._pause_s)
                continue
            with self._lock:
                self._admit(actions, made_s)

    def _admit(self, actions: Any, made_s: float) -> None:
        try:
            if not self._moving:
                self._guard.start(self._where())
            self._guard.admit(actions, made_s, self._clock())
        except Unsafe as error:
            self.reason = str(error)  # a chunk in hand, if there is one, goes on to its end
            return
        self._moving = True

    def _hold(self, reason: str) -> None:
        self.reason, self._moving = reason, False
        self._guard.stop()
