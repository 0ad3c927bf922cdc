"""The queue in front of a policy, and the one thread that runs it: whatever waits is one batch, and nobody is waited for.

A lone request runs at once. While a batch runs, the next one gathers by itself, so that batches are as large as the load makes them.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vla.errors import UserError
from vla.serve.wire import Refusal, log_mistake
from vla.types import Chunk, Observation


class Actor(Protocol):
    """What is asked of a policy: `vla.policy.Policy`, or a baseline."""

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        """One chunk per observation; a row depends on its own observation and key alone."""
        ...


@dataclass(eq=False)
class Item:
    """One request in the queue. The future belongs to the event loop; the thread reads `abandoned` alone."""

    observation: Observation
    key: int
    deadline_s: float
    future: asyncio.Future[tuple[Chunk, float]]
    abandoned: bool = False


@dataclass
class Load:
    """What the thread has done so far."""

    batches: Counter[int] = field(default_factory=Counter)
    """Size of a batch -> how many there were."""
    policy_s: float = 0.0


class Batcher:
    """`submit` from the event loop; the policy runs in a thread of its own, which never touches the loop but by its call queue.

    `example`: makes an observation that a policy whose code is right acts on.
    """

    def __init__(
        self,
        actor: Actor,
        max_batch: int,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
        example: Callable[[], Observation] | None = None,
    ) -> None:
        self.load = Load()
        self._actor, self._max_batch, self._max_waiting, self._clock, self._example = actor, max_batch, max_waiting, clock, example
        self._waiting: deque[Item] = deque()
        self._lock = threading.Lock()
        self._changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        # One for each that came to wait, and one for the end. A condition would do as well, and cost twice as much.
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken: Callable[[], None] = lambda: None

    def start(self, loop: asyncio.AbstractEventLoop, broken: Callable[[], None]) -> None:
        """`broken` is called in the loop if the policy fails in a way that is no answer to a request: by a mistake that all meet."""
        self._loop, self._broken = loop, broken
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the batch that it is in; what still waits is dropped by whoever submitted it."""
        self._stopping = True
        self._changes.put(None)

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended by then. A policy cannot be interrupted; the process can."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def submit(self, item: Item) -> None:
        """Refusal (busy) when the queue is full. The thread begins once this one waits: what else there is to do comes before."""
        with self._lock:
            if len(self._waiting) >= self._max_waiting:
                raise Refusal("busy", f"{self._max_waiting} requests wait already; ask again later")
            self._waiting.append(item)
        self._changes.put(None)

    def abandon(self, item: Item) -> None:
        """Its answer is no longer wanted: it is not begun, and leaves its place in the queue."""
        item.abandoned = True
        with self._lock:
            if item in self._waiting:
                self._waiting.remove(item)

    def _run(self) -> None:
        assert self._loop is not None
        while batch := self._take():
            start = self._clock()
            try:
                outcomes = outcomes_of(self._actor, [item.observation for item in batch], [item.key for item in batch], self._example)
            except BaseException:
                self._loop.call_soon_threadsafe(self._broken)
                raise
            seconds = self._clock() - start
            self.load.batches[len(batch)] += 1
            self.load.policy_s += seconds
            self._loop.call_soon_threadsafe(_deliver, batch, outcomes, seconds)

    def _take(self) -> list[Item]:
        """What waits, up to the largest batch, of one form; blocks while nothing does. Empty when it is time to end."""
        while True:
            self._changes.get()
            if self._stopping:
                return []
            with self._lock:
                batch = self._first()
            for _ in batch[1:]:
                self._changes.get()
            if batch:
                return batch

    def _first(self) -> list[Item]:
        """Out of what waits; drops what nobody wants any more."""
        now_s = self._clock()
        batch: list[Item] = []
        left: deque[Item] = deque()
        form = None
        for item in self._waiting:
            if item.abandoned or item.deadline_s <= now_s:
                continue  # refused by its timer
            this = form_of(item.observation)
            form = form or this
            (batch if len(batch) < self._max_batch and this == form else left).append(item)
        self._waiting = left
        return batch


def form_of(observation: Observation) -> tuple[tuple[int, ...], ...]:
    """Shapes of the pictures. Only equal ones share a batch: padded to the largest, one client's would cost the others memory and time."""
    return tuple(pixels.shape for _, pixels in sorted(observation.images.items()))


FAILURES = (ValueError, RuntimeError, ArithmeticError, LookupError)
"""What a policy may raise over an observation (ours are ValueErrors, torch's RuntimeErrors)."""
MISTAKES = (TypeError, AttributeError, NameError, AssertionError, StopIteration, BufferError, MemoryError)
"""What it raises by a mistake in its code, which may be met by everything or by one client's odd observation alone. What tells of the
installation or the interpreter (ImportError, OSError, SystemError) is no observation's fault, and always the end."""


def outcomes_of(
    actor: Actor, observations: Sequence[Observation], keys: Sequence[int], example: Callable[[], Observation] | None = None
) -> list[Chunk | Exception]:
    """A chunk or an error for each. An error that a batch raises is looked for row by row, so that it stays with its own row.

    One of `MISTAKES` is its row's too if the policy acts for another row, or at least for the `example`; else it is raised.
    """
    outcomes = _tried(actor, observations, keys)
    mistake = next((outcome for outcome in outcomes if isinstance(outcome, MISTAKES)), None)
    if mistake is not None and not _acts(outcomes) and (example is None or not _acts(_tried(actor, [example()], [0]))):
        raise mistake
    return outcomes


def _tried(actor: Actor, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk | Exception]:
    several = getattr(actor, "try_batch", None)
    try:
        return list((several or actor.act_batch)(observations, keys))
    except (*FAILURES, *MISTAKES) as error:
        if isinstance(error, MISTAKES):
            log_mistake(f"the policy failed over a batch of {len(observations)} by a mistake in its code", error)
        if len(observations) == 1:
            return [error]
    return [outcome for row in zip(observations, keys, strict=True) for outcome in _tried(actor, [row[0]], [row[1]])]


def _acts(outcomes: Sequence[Chunk | Exception]) -> bool:
    return any(isinstance(outcome, Chunk) for outcome in outcomes)


def _deliver(batch: Sequence[Item], outcomes: Sequence[Chunk | Exception], seconds: float) -> None:
    for item, outcome in zip(batch, outcomes, strict=True):
        if item.future.done():
            continue
        if isinstance(outcome, Chunk):
            item.future.set_result((outcome, seconds))
        else:
            # An error of ours says what is wrong with the numbers; others may name files.
            said = str(outcome) if isinstance(outcome, UserError) else type(outcome).__name__
            item.future.set_exception(Refusal("policy_failed", said))
