"""One simulator process: `python -m vla.evaluate.worker FD` obeys messages that come over the socket FD, one at a time.

It holds a few slots, each an environment with an episode in it. Answers come in the order of the messages, so whoever waits knows
which episode is to blame when none comes. It imports no torch.

    {"op": "start", slot, task, seed, expert}     -> an observation
    {"op": "act", slot} + chunk (T, A)            -> an observation, or the end of the episode, + the commands that were sent
    {"op": "replay", slot, task, seed, size, stride, frame_s} + commands -> an animation
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vla.errors import UserError
from vla.evaluate.baselines import Hold
from vla.evaluate.history import History
from vla.evaluate.wire import receive, send
from vla.execute.ensemble import Overlapping, ensemble_of
from vla.execute.queue import ChunkQueue, NoCommand
from vla.execute.realtime import Pacer
from vla.sim.disturb import Disturbance
from vla.sim.env import SimEnv, Suite
from vla.sim.suites import load_suite
from vla.types import Chunk, Observation


def main(argv: list[str]) -> int:
    """Serves one simulator over its pipe until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair; its end closes the socket
    connection = Connection(int(argv[0]))
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
        setup, _ = receive(connection)
        worker = Worker(load_suite(setup["suite"]), setup)
        send(connection, {"op": "ready"})
        while True:
            message, arrays = receive(connection)
            answer, arrays = worker.obey(message, arrays)
            answer["clock"] = {**worker.clock, "cpu": time.process_time()}
            send(connection, answer, arrays)
    return 0


class Slot:
    """An environment, and the episode in it."""

    def __init__(self, env: SimEnv, task: str) -> None:
        self.env, self.task = env, task
        self.pacer: Pacer | None = None
        self.history: History | None = None
        self.late: Chunk | None = None
        """A chunk on its way."""
        self.expert: Callable[[], np.ndarray] | None = None
        self.steps, self.reward, self.state_P = 0, 0.0, np.zeros(0)


class Worker:
    """`clock`: CPU seconds spent building environments, resetting, stepping and rendering, so far."""

    def __init__(self, suite: Suite, setup: Mapping[str, Any]) -> None:
        self.suite, self.image_size, self.execute, self.delay = suite, setup["image_size"], setup["execute"], setup.get("delay", 0)
        self.offsets_s, self.varies = setup.get("offsets_s", [0.0]), setup.get("varies", False)
        self.ensemble: Overlapping | None = None if setup["ensemble"] is None else ensemble_of(setup["ensemble"])
        self.cameras = setup.get("cameras")
        self.disturbance = Disturbance(*setup["disturbance"]) if setup.get("disturbance") else None
        self.slots: dict[int, Slot] = {}
        self.clock = {"build": 0.0, "reset": 0.0, "step": 0.0, "render": 0.0, "replay": 0.0}

    def obey(self, message: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The answer to one message."""
        if message["op"] == "start":
            return self._start(message["slot"], message["task"], message["seed"], message["expert"])
        if message["op"] == "act":
            try:
                return self._act(message["slot"], arrays.get("chunk"))
            except UserError as error:  # such as chunks that are over before they come: another episode would end no better
                return {"slot": message["slot"], "ended": False, "refused": str(error)}, {}
        assert message["op"] == "replay", message
        with self._timed("replay"):
            return self._replay(message, arrays["commands"])

    def _start(self, index: int, task: str, seed: int, expert: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        slot = self.slots.get(index)
        try:
            if slot is None or slot.task != task:
                if slot is not None:
                    slot.env.close()
                with self._timed("build"):
                    slot = self.slots[index] = Slot(self._made(task, self.image_size), task)
            with self._timed("reset"):
                slot.env.reset(seed=seed)
            slot.expert = slot.env.expert() if expert else None
        except UserError as error:  # such as a simulator that is not installed, or has no expert: it would fail every episode alike
            return {"slot": index, "ended": False, "refused": str(error)}, {}
        self._plan_afresh(slot)
        slot.steps, slot.reward = 0, 0.0
        return self._seen(index, slot)

    def _plan_afresh(self, slot: Slot) -> None:
        """Nothing is queued, and nothing was seen before."""
        warm = self.ensemble.warm if self.ensemble is not None else 0.0
        slot.pacer = Pacer(ChunkQueue(slot.env.embodiment, self.execute, self.ensemble), self.delay, warm)
        slot.late = slot.history = None

    def _made(self, task: str, image_size: int) -> SimEnv:
        env = self.suite.make(task, image_size)
        if self.disturbance is not None:
            env.disturb(self.disturbance)
        env.roles = tuple(self.cameras or env.roles)
        return env

    def _act(self, index: int, chunk_TA: np.ndarray | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Executes until the queue wants another chunk or the episode ends. Without a chunk the expert acts, to the end."""
        slot = self.slots[index]
        robot, pacer = slot.env.embodiment, slot.pacer
        assert pacer is not None
        if chunk_TA is not None:
            if len(chunk_TA) < self.execute and not self.varies and min(self.offsets_s) < 0:
                raise UserError(
                    f"a policy that sees earlier frames gave a chunk of {len(chunk_TA)} commands, of which {self.execute} are executed; "
                    f"give --execute {len(chunk_TA)}"
                )
            slot.late = Chunk(chunk_TA, robot.name, robot.rate_hz)
        commands, success, ended, orders = [], False, False, slot.env.orders
        while not ended and (slot.expert is not None or slot.late is not None or not pacer.queue.wants_chunk):
            with self._timed("step"):
                command_A = self._next_command(slot, pacer) if slot.expert is None else slot.expert()
                _, reward, terminated, truncated, info = slot.env.step(command_A)
            commands.append(command_A)
            slot.steps += 1
            slot.reward += float(reward)
            success = bool(info["success"])
            ended = success or terminated or truncated or slot.steps >= slot.env.max_steps
            if slot.env.orders != orders:
                self._plan_afresh(slot)
                break
            if not ended and slot.history is not None and slot.history.wants(slot.steps):
                with self._timed("render"):
                    slot.history.keep(slot.steps, slot.env.observation())
        sent = {"commands": np.array(commands, dtype=np.float64)}
        if ended:
            return {"slot": index, "ended": True, "success": success, "steps": slot.steps, "reward": slot.reward}, sent
        answer, arrays = self._seen(index, slot)
        return answer, {**arrays, **sent}

    def _next_command(self, slot: Slot, pacer: Pacer) -> np.ndarray:
        """The command for this step. While a chunk is on its way the old one goes on, and where it has run out the robot holds."""
        if slot.late is not None and pacer.waited >= self.delay:
            pacer.finish(slot.late)
            slot.late = None
        try:
            return pacer.queue.pop()
        except NoCommand:
            if slot.late is None:
                raise UserError(
                    f"a chunk arrives {self.delay} steps after its observation, when every command of it is over: longer chunks or a "
                    "shorter latency, please"
                ) from None
            (held,) = Hold(slot.env.embodiment).act_batch([slot.env.watched()], [0])
            pacer.queue.put(replace(held, action_TA=held.action_TA[:1]))
            return pacer.queue.pop()

    def _seen(self, index: int, slot: Slot) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if slot.expert is not None:
            return {"slot": index, "ended": False}, {}
        with self._timed("render"):
            observation = self._observed(slot)
        images = {f"image:{role}": image for role, image in observation.images.items()}
        answer = {"slot": index, "ended": False, "instruction": observation.instruction, "offsets_s": observation.offsets_s}
        arrays = {**images, "state": observation.state}
        assert slot.pacer is not None
        rest = slot.pacer.begin()
        if self.ensemble is not None and self.ensemble.continues and rest is not None:
            answer |= {"frozen": rest.frozen, "warm": rest.warm}
            arrays["rest"] = rest.command_RA
        return answer, arrays

    def _observed(self, slot: Slot) -> Observation:
        """What a policy sees now, with the frames before that it was trained on."""
        now = slot.env.observation()
        if slot.history is None:
            slot.history = History(self.offsets_s, slot.env.embodiment.rate_hz, None if self.varies else self.execute)
            slot.history.start(slot.steps, now)
        return slot.history.at(slot.steps, now)

    def _replay(self, message: dict[str, Any], commands: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Runs recorded commands again in a new environment with larger images: every `stride` steps a frame of all cameras."""
        env = self._made(message["task"], message["size"])
        env.reset(seed=message["seed"])
        frames, success = [_side_by_side(env)], False
        for step, command_A in enumerate(commands, start=1):
            success = bool(env.step(command_A)[4]["success"])
            if step % message["stride"] == 0 or step == len(commands):
                frames.append(_side_by_side(env))
        env.close()
        movie = animate(frames, message["frame_s"])
        return {"slot": message["slot"], "success": success}, {"movie": np.frombuffer(movie, dtype=np.uint8)}

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.clock[what] += time.process_time() - start


def animate(frames: list[np.ndarray], frame_s: float) -> bytes:
    """Frames uint8 (H, W, 3) -> an animated WebP that loops, and rests on its last frame for a second."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    durations_ms = [round(frame_s * 1000)] * (len(images) - 1) + [1000]
    out = io.BytesIO()
    images[0].save(
        out, "WEBP", save_all=True, append_images=images[1:], duration=durations_ms, loop=0, quality=60, method=2, minimize_size=False
    )
    return out.getvalue()


def _side_by_side(env: SimEnv) -> np.ndarray:
    return np.concatenate(list(env.cameras().values()), axis=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
