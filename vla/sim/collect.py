"""Demonstrations from several processes at once, in an order and with bytes that do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vla.data.format import DatasetInfo
from vla.data.writer import ShardWriter
from vla.errors import UserError
from vla.sim.demonstrate import Attempt, Recorder, episode_id
from vla.sim.env import EVALUATION_SEEDS, IMAGE_SIZE, Suite
from vla.sim.suites import load_suite

FIRST_SEED = 100_000
"""Demonstrations use seeds from here on by default, evaluations from 2**30 on: evaluated seeds are unseen."""
JOBS_AHEAD = 2
"""Jobs that a worker holds, so that it never waits for its next one."""


@dataclass(frozen=True)
class Plan:
    """What to collect: `episodes` successful demonstrations of each task (all of the suite's when none is named).

    Attempt i of a task runs on seed `seed + i`; `noise_share` of the attempts are noisy, spread evenly. At most
    `attempts_per_episode * episodes` attempts are made per task.
    """

    suite: str
    episodes: int
    tasks: tuple[str, ...] = ()
    seed: int = FIRST_SEED
    noise_share: float = 0.0
    image_size: int = IMAGE_SIZE
    image_every: int = 2
    jpeg_quality: int = 95
    attempts_per_episode: int = 3

    def __post_init__(self) -> None:
        whole = {"episodes": self.episodes, "image_every": self.image_every, "attempts_per_episode": self.attempts_per_episode}
        for name, value in whole.items():
            if value < 1:
                raise UserError(f"{name} is {value}; give at least 1")
        if not 0 <= self.noise_share <= 1:
            raise UserError(f"noise share {self.noise_share} must be between 0 and 1")
        if not 8 <= self.image_size <= 1024:
            raise UserError(f"image size {self.image_size} must be between 8 and 1024 pixels")
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"JPEG quality {self.jpeg_quality} must be between 1 and 100")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} must not be negative")
        if self.seed + self.episodes * self.attempts_per_episode > EVALUATION_SEEDS:
            raise UserError(f"seed {self.seed} reaches those of evaluations, from {EVALUATION_SEEDS} on; give a smaller one")
        suite = load_suite(self.suite)
        if len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"a task is named twice: {', '.join(self.tasks)}")
        names = self.tasks or [task.name for task in suite.tasks]
        object.__setattr__(self, "tasks", tuple(suite.task(name).name for name in names))

    def noisy(self, attempt: int) -> bool:
        return int((attempt + 1) * self.noise_share) > int(attempt * self.noise_share)


@dataclass
class TaskYield:
    """How one task went: `steps` over its successful attempts, without tails; `cpu_s` of the workers."""

    task: str
    attempts: int = 0
    successes: int = 0
    steps: int = 0
    cpu_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What goes into the dataset: nothing that another run, or a resumed one, would find otherwise."""
        return {"task": self.task, "attempts": self.attempts, "successes": self.successes}


@dataclass(frozen=True)
class CollectReport:
    """What was collected, where, and what it cost. `missing`: tasks that ran out of attempts -> episodes they lack."""

    folder: Path
    suite: str
    yields: tuple[TaskYield, ...]
    wanted: int
    seconds: float
    cpu_s: float

    @property
    def episodes(self) -> int:
        return sum(row.successes for row in self.yields)

    @property
    def missing(self) -> dict[str, int]:
        return {row.task: self.wanted - row.successes for row in self.yields if row.successes < self.wanted}


Progress = Callable[[int, int, str], None]
"""Called after each attempt with (episodes done, episodes wanted, task of that attempt)."""


def collect(
    plan: Plan,
    out: str | Path,
    workers: int = 2,
    progress: Progress | None = None,
    resume: bool = False,
    max_shard_bytes: int = 64 << 20,
) -> CollectReport:
    """Runs a plan and writes its episodes as a dataset folder: by task, then by seed, whatever finished first.

    The same plan gives the same bytes. `resume` keeps the complete shards of an interrupted run. A task that runs out of
    attempts is in the report's `missing`; nothing is raised.
    """
    start, suite = time.monotonic(), load_suite(plan.suite)
    yields = {name: TaskYield(name) for name in plan.tasks}
    info = DatasetInfo(
        name=suite.name,
        embodiment=suite.embodiment.to_json(),
        licence=suite.licence,
        supervision=suite.supervision,
        notes=f"{suite.summary}. Scripted experts in simulation.",
    )
    with ShardWriter(out, info, max_shard_bytes, resume) as writer:
        for attempt in attempts(plan, workers, stored=writer.has, progress=progress):
            row = yields[attempt.task]
            row.attempts += 1
            row.cpu_s += attempt.cpu_s
            if attempt.success:
                row.successes += 1
                row.steps += attempt.steps
            if attempt.episode is not None:
                writer.add(attempt.episode)
        if not writer.episodes:
            tried = ", ".join(f"{row.task} {row.attempts}" for row in yields.values())
            raise UserError(f"the experts of {suite.name} succeeded in no attempt ({tried}); nothing was written")
        writer.info_update(
            plan={name: getattr(plan, name) for name in ("seed", "noise_share", "image_size", "image_every", "jpeg_quality")},
            yields=[row.to_json() for row in yields.values()],
        )
    seconds, cpu_s = time.monotonic() - start, sum(row.cpu_s for row in yields.values())
    return CollectReport(Path(out), suite.name, tuple(yields.values()), plan.episodes, seconds, cpu_s)


def attempts(
    plan: Plan, workers: int = 2, stored: Callable[[str], bool] | None = None, progress: Progress | None = None
) -> Iterator[Attempt]:
    """All attempts of a plan, failed ones included, ordered by task and seed, while worker processes run ahead.

    An attempt whose episode is `stored` already is not run again: it comes back as a success without an episode.
    """
    if workers < 1:
        raise UserError(f"{workers} workers; give at least 1")
    suite, queues = load_suite(plan.suite), [_Queue(name, plan) for name in plan.tasks]
    waiting, wanted = deque(queues), plan.episodes * len(queues)
    crew = [_Worker(plan, suite) for _ in range(min(workers, wanted))]
    try:
        while waiting:
            for worker in crew:
                worker.fill(queues, stored or (lambda episode: False))
            while waiting:
                yield from waiting[0].drain()
                if not waiting[0].finished:
                    break
                waiting.popleft()
            busy = {worker.connection: worker for worker in crew if worker.jobs}
            for connection in wait(list(busy)) if waiting else ():
                queue = busy[connection].receive()
                if progress is not None:
                    progress(sum(queue.successes for queue in queues), wanted, queue.task)
    finally:
        for worker in crew:
            worker.stop()


class _Queue:
    """The attempts of one task. One more is made for each that failed, so exactly the wanted successes come out."""

    def __init__(self, task: str, plan: Plan) -> None:
        self.task, self._plan = task, plan
        self._limit = plan.episodes * plan.attempts_per_episode
        self.begun = self._drained = self.successes = self._failures = 0
        self._done: dict[int, Attempt] = {}

    @property
    def wants(self) -> bool:
        return self.begun < min(self._limit, self._plan.episodes + self._failures)

    @property
    def finished(self) -> bool:
        return not self.wants and self._drained == self.begun

    def begin(self) -> int:
        self.begun += 1
        return self.begun - 1

    def put(self, number: int, attempt: Attempt) -> None:
        self._done[number] = attempt
        self.successes += attempt.success
        self._failures += not attempt.success

    def drain(self) -> Iterator[Attempt]:
        """What is complete, in order, as far as it has no gap."""
        while self._drained in self._done:
            self._drained += 1
            yield self._done.pop(self._drained - 1)


class _Worker:
    """A process that makes attempts, one environment at a time, and the jobs it holds."""

    def __init__(self, plan: Plan, suite: Suite) -> None:
        context = multiprocessing.get_context("spawn")  # forked processes would share GL and thread state
        self.connection, theirs = context.Pipe()
        self.jobs: deque[tuple[_Queue, int]] = deque()
        self._plan, self._suite = plan, suite
        self._queue: _Queue | None = None
        self._process = context.Process(target=_work, args=(theirs, plan), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the worker would never be seen

    def fill(self, queues: Sequence[_Queue], stored: Callable[[str], bool]) -> None:
        """Hands out jobs, of the task it has open before others: opening one takes longer than an attempt."""
        while len(self.jobs) < JOBS_AHEAD:
            open_first = [self._queue] if self._queue else []
            fresh = [queue for queue in queues if not queue.begun]
            queue = next((queue for queue in (*open_first, *fresh, *queues) if queue.wants), None)
            if queue is None:
                return
            self._queue = queue
            number = queue.begin()
            seed = self._plan.seed + number
            if stored(episode_id(queue.task, seed)):
                queue.put(number, Attempt(queue.task, seed, True, 0))
                continue
            noise_sd = self._suite.task(queue.task).noise_sd if self._plan.noisy(number) else 0.0
            self.connection.send((queue.task, seed, noise_sd))
            self.jobs.append((queue, number))

    def receive(self) -> _Queue:
        """Waits for the worker's next attempt, books it, and returns the queue it belongs to. RuntimeError if the worker has died."""
        queue, number = self.jobs.popleft()
        try:
            reply = self.connection.recv()
        except EOFError:
            self._process.join()
            where = f"task {queue.task}, seed {self._plan.seed + number}"
            raise RuntimeError(f"a simulator process died at {where} (exit code {self._process.exitcode}); see above") from None
        if isinstance(reply, str):
            raise UserError(reply)
        queue.put(number, reply)
        return queue

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()
        self.connection.close()


def _work(connection: Connection, plan: Plan) -> None:
    """A worker's life: (task, seed, noise_sd) in, Attempt out (or a user's mistake in words), until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    try:
        _serve_attempts(connection, plan)
    except UserError as error:  # such as an optional simulator that is not installed
        connection.send(str(error))
    except EOFError:
        return


def _serve_attempts(connection: Connection, plan: Plan) -> None:
    suite, env, cpu_s = load_suite(plan.suite), None, 0.0
    recorder = Recorder(suite, plan.image_every, plan.jpeg_quality)
    while True:
        task, seed, noise_sd = connection.recv()
        if env is None or env.task != task:
            if env is not None:
                env.close()
            env = suite.make(task, plan.image_size)
        attempt = recorder.attempt(env, seed, noise_sd)
        connection.send(replace(attempt, cpu_s=time.process_time() - cpu_s))
        cpu_s = time.process_time()
