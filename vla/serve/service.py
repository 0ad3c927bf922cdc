"""From what a client said to a chunk that may be sent, or to a refusal with a reason; in time, either way."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import UserError
from vla.serve.batcher import Actor, Batcher, Item, outcomes_of
from vla.serve.facts import facts
from vla.serve.gate import Gate
from vla.serve.observe import Names, observe
from vla.serve.record import Entry, Recorder
from vla.serve.wire import Compressed, Heard, Limits, Refusal, Session, log_warning
from vla.types import Chunk, Observation
from vla.unfamiliar import Unfamiliar

MARGIN_S = 0.01
"""A refusal leaves so much before the deadline (at most a tenth of the time), since it has a way to go too."""
SIDE = 224
"""Pixels of the pictures that a policy without a checkpoint is warmed up with."""
SAME_TIME_S = 1e-6
"""Two times of a frame that are one: a client may say them in 32 bits."""


@dataclass(frozen=True)
class Settings:
    """`deadline_s`: longest that a request may take, whatever the client would wait; by default the time that a chunk covers, since an
    answer that is later has no action left to execute. `max_age_s`: oldest observation to act on; by default the same. `execute`: commands
    of a chunk that are carried out before the next one, where neither client nor protocol says it; by default all."""

    deadline_s: float | None = None
    max_age_s: float | None = None
    max_batch: int = 32
    max_waiting: int = 256
    execute: int | None = None
    max_change_per_s: tuple[float, ...] | None = None
    max_jerk_per_s2: tuple[float, ...] | None = None
    state_optional: bool = False
    names: Names = field(default_factory=Names)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("deadline_s", "max_age_s", "max_batch", "max_waiting", "execute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, not {value}")


@dataclass(frozen=True)
class Answer:
    """`action_TA`: float64, checked. `policy_s`: time of the batch that it was in; `total_s`: since the request had come whole."""

    action_TA: np.ndarray
    policy_s: float
    total_s: float


class Service:
    """One policy for one robot. `act` belongs to the event loop that `start` was called with."""

    def __init__(
        self,
        actor: Actor,
        robot: Embodiment,
        settings: Settings | None = None,
        *,
        policy: str = "policy",
        statistics: str | None = None,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or Settings()
        self.robot, self.actor, self.clock, self.recorder = robot, actor, clock, recorder
        covers_s = float(robot.horizon / robot.rate_hz)
        self.deadline_s = self.settings.deadline_s or covers_s
        self.max_age_s = self.settings.max_age_s or max(covers_s, self.deadline_s)
        self.execute = self.settings.execute or robot.horizon
        if self.execute > robot.horizon:
            raise UserError(f"cannot execute {self.execute} commands of chunks of {robot.horizon}")
        self.gate = Gate(robot, self.settings.max_change_per_s, self.settings.max_jerk_per_s2)
        self.batcher = Batcher(actor, self.settings.max_batch, self.settings.max_waiting, clock, self._example)
        self.unfamiliar = Unfamiliar.of(actor, robot)
        contents = getattr(actor, "contents", None)
        self.offsets_s: tuple[float, ...] | None = None if contents is None else contents.offsets_s
        """Times of the frames that the policy sees, relative to now; None for one that takes any."""
        self.facts = facts(
            robot,
            policy,
            statistics=statistics,
            offsets_s=self.offsets_s,
            deadline_s=self.deadline_s,
            max_age_s=self.max_age_s,
            max_bytes=self.settings.limits.message_bytes,
        )
        self.draining = False
        self.in_flight = 0
        self.answered = 0
        self.refused: Counter[str] = Counter()
        self._total_s: deque[float] = deque(maxlen=1024)
        self._sessions = 0
        self._warned = 0

    def session(self) -> Session:
        """Of a client that has just come in, or begins an episode."""
        self._sessions += 1
        return Session(self._sessions)

    def warm_up(self) -> float:
        """Runs the policy once as a single request and twice in the largest batch; seconds of a single one, warm.

        UserError if the policy cannot act at all, or never in time.
        """
        observation = self._example()
        seconds = 0.0
        for count in (1, self.settings.max_batch, self.settings.max_batch, 1):
            start = time.perf_counter()
            for outcome in outcomes_of(self.actor, [observation] * count, list(range(count))):
                if isinstance(outcome, Exception):
                    raise outcome
            seconds = time.perf_counter() - start
        if seconds > self.deadline_s:
            raise UserError(
                f"the policy takes {seconds:.2f} s for one observation and would miss every deadline of {self.deadline_s:.2f} s. "
                "Give a longer --deadline, or a faster device."
            )
        return seconds

    async def act(self, heard: Heard, session: Session) -> Answer:
        """Raises Refusal; within the deadline in any case."""
        began_s = self.clock()
        if self.draining:
            raise Refusal("draining", "the server is stopping; connect again later")
        self._check_order(heard, session)
        executed = self._executed(heard)
        session.step, session.given = session.step + (session.given if executed is None else len(executed)), 0
        if executed is not None:
            session.unrecorded.append(executed)
        timeout_s = self._timeout(heard)
        deadline_s = began_s + timeout_s - min(MARGIN_S, timeout_s / 10)
        self._check_age(heard, 0.0)
        self._check_times(heard)
        self.in_flight += 1
        try:
            observation = await self._observe(heard, deadline_s)
            self._compare(observation)
            chunk, policy_s = await self._run(observation, session, deadline_s)
            action_TA = self.gate.check(chunk)
        finally:
            self.in_flight -= 1
        now_s = self.clock()
        if now_s >= deadline_s:
            raise Refusal("deadline", "the policy was not done in time")
        self._check_age(heard, now_s - began_s)
        session.given = min(heard.execute or self.execute, len(action_TA))
        self.answered += 1
        self._total_s.append(now_s - began_s)
        answer = Answer(action_TA, policy_s, now_s - began_s)
        if self.recorder is not None:
            made_s = began_s - heard.age_s
            said = np.concatenate(session.unrecorded) if session.unrecorded else None
            self.recorder.add(Entry(session.id, made_s, observation, action_TA, policy_s, answer.total_s, said))
        session.unrecorded.clear()
        return answer

    def statistics(self) -> dict[str, Any]:
        """Counts since the start; times of the last 1,024 answers."""
        times = sorted(self._total_s)
        quantile = {f"total_ms_p{q}": round(times[min(len(times) - 1, len(times) * q // 100)] * 1e3, 3) for q in (50, 99)} if times else {}
        return {
            "answered": self.answered,
            "refused": dict(self.refused),
            "in_flight": self.in_flight,
            "sessions": self._sessions,
            "batches": {str(size): count for size, count in sorted(self.batcher.load.batches.items())},
            "policy_s": round(self.batcher.load.policy_s, 6),
            "unfamiliar": self.unfamiliar.lines() if self.unfamiliar is not None else [],
            "record_dropped": self.recorder.dropped if self.recorder else 0,
            **quantile,
        }

    async def _run(self, observation: Observation, session: Session, deadline_s: float) -> tuple[Chunk, float]:
        session.calls += 1
        loop = asyncio.get_running_loop()
        item = Item(observation, session.key(), deadline_s, loop.create_future())
        timer = loop.call_later(max(0.0, deadline_s - self.clock()), self._expire, item)
        try:
            self.batcher.submit(item)
            return await item.future
        finally:
            timer.cancel()
            self.batcher.abandon(item)

    def _expire(self, item: Item) -> None:
        if not item.future.done():
            item.future.set_exception(Refusal("deadline", "the policy was not done in time"))

    async def _observe(self, heard: Heard, deadline_s: float) -> Observation:
        settings = self.settings
        if not any(isinstance(value, Compressed) for value in heard.values.values()):
            return observe(heard, self.robot, settings.names, settings.state_optional)
        # Decoding takes milliseconds, which the loop has not; and longer where the threads are all at it.
        decoding = asyncio.to_thread(observe, heard, self.robot, settings.names, settings.state_optional)
        try:
            return await asyncio.wait_for(decoding, max(0.0, deadline_s - self.clock()))
        except asyncio.TimeoutError as error:
            raise Refusal("deadline", "the pictures were not decoded in time") from error

    def _compare(self, observation: Observation) -> None:
        """With what training knew; a warning the first time that a number of the state is nothing like it."""
        if self.unfamiliar is None:
            return
        self.unfamiliar.look(observation)
        lines = self.unfamiliar.lines()
        if len(lines) > self._warned:
            self._warned = len(lines)
            log_warning("; ".join(lines))

    def _timeout(self, heard: Heard) -> float:
        if heard.timeout_s is None:
            return self.deadline_s
        if not heard.timeout_s > 0:
            raise Refusal("deadline", "the request had no time left when it was sent")
        return min(heard.timeout_s, self.deadline_s)

    def _executed(self, heard: Heard) -> np.ndarray | None:
        """float64 (n, A), or None."""
        rows, width = heard.executed, self.robot.command.size
        if rows is None:
            return None
        if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iuf" or rows.ndim != 2 or rows.shape[1] != width:
            raise Refusal("malformed", f"executed must be an array of (n, {width}) numbers")
        if not np.isfinite(rows).all():
            raise Refusal("malformed", "executed holds NaN or infinity")
        return rows.astype(np.float64)

    def _check_order(self, heard: Heard, session: Session) -> None:
        if heard.seq is None:
            return
        if session.newest_seq is not None and heard.seq <= session.newest_seq:
            raise Refusal("reordered", f"observation {heard.seq} came after {session.newest_seq}")
        session.newest_seq = heard.seq

    def _check_age(self, heard: Heard, since_s: float) -> None:
        if not 0 <= heard.age_s + since_s <= self.max_age_s:
            raise Refusal("stale", f"the observation is {heard.age_s + since_s:.3f} s old; at most {self.max_age_s:.3f} s are acted on")

    def _check_times(self, heard: Heard) -> None:
        """A frame of another time than in training would be believed all the same."""
        given, wanted = heard.offsets_s, self.offsets_s
        if wanted is None or (len(given) == len(wanted) and all(abs(a - b) <= SAME_TIME_S for a, b in zip(given, wanted, strict=True))):
            return
        raise Refusal("bad_observation", f"frames at {list(wanted)} s are seen here (request.offsets_s); came {str(list(given))[:200]}")

    def _example(self) -> Observation:
        """What the policy is warmed up with: frames of a checkpoint's own number and size, or one grey picture of each camera."""
        contents = getattr(self.actor, "contents", None)
        if contents is not None:
            from vla.golden import image_side, observation

            return observation(contents, self.robot, 0, image_side(contents))
        images = {role: np.full((1, SIDE, SIDE, 3), 128, np.uint8) for role in self.robot.cameras}
        return Observation(images, neutral_state(self.robot)[None], "warm up", self.robot.name)


def neutral_state(robot: Embodiment) -> np.ndarray:
    """Zeros, and no rotation: float64 (P,)."""
    state_P = np.zeros(robot.state.size)
    for name, where in robot.state.slices().items():
        if (unit := robot.state.field(name).unit) in ("quat_xyzw", "rot6d"):
            state_P[where] = [0, 0, 0, 1] if unit == "quat_xyzw" else [1, 0, 0, 0, 1, 0]
    return state_P


def expectation(expected: Mapping[str, Any], service: Service) -> None:
    """Raises Refusal (mismatch) with every difference, if what a robot expects is not what is served."""
    from vla.serve.facts import differences

    found = differences(service.facts, expected)
    if found:
        raise Refusal("mismatch", "this server serves something else: " + "; ".join(found), found)
