"""Episodes in several simulator processes at once, one policy in this one.

A process holds a few slots and runs their episodes in turn; each slot keeps to one task as long as it can, since building an
environment costs as much as several episodes. Images are rendered only where the policy looks. What an episode's outcome depends on
is its task, its seed and the policy: not the number of processes, nor which episodes ran beside it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla.errors import UserError
from vla.evaluate.baselines import Expert
from vla.evaluate.batching import MAX_BATCH, Batcher
from vla.evaluate.pool import Process, ready
from vla.evaluate.probes import Disguise
from vla.evaluate.result import Row, call_key
from vla.types import Continuation, Observation

EPISODES_WORTH_AN_ENVIRONMENT = 10
"""A task gets one more environment only while this many of its episodes wait per environment it has: building one (0.4 s of CPU, and
in a new process 1.8 more) costs one or two, and gains a few milliseconds of each."""
BUSY_SLOTS = 3
"""Episodes that keep a process busy: one or two go on while another waits for the policy. More make batches larger, which pays where the
policy is what all wait for."""
LOSSES_BEFORE_STOPPING = 3
_LOOK_AGAIN_S = 0.5


class SimulatorFailed(UserError):
    """The simulator cannot run here at all; no statement about the policy."""

    exit_code = 1


@dataclass
class Job:
    """One episode to run; `commands` and `calls` of its current attempt."""

    task: str
    episode: int
    seed: int
    calls: int = 0
    commands: list[np.ndarray] = field(default_factory=list)


@dataclass
class Slot:
    """One environment and the episode that it is in."""

    worker: int
    index: int
    task: str | None = None
    job: Job | None = None
    observation: Observation | None = None
    rest: Continuation | None = None
    before: Observation | None = None
    """What the policy saw at the episode's last decision."""


@dataclass(frozen=True)
class Watch:
    """What an evaluation wants to hear and do on the way. `on_row`: each row as its episode ends, with its commands (steps, A).
    `timeout_s`: a simulator silent for longer is killed. `python`: the interpreter that simulators run in (default: this one)."""

    on_row: Callable[[Row, np.ndarray], None]
    timeout_s: float
    python: str | None = None
    disguise: Disguise = Disguise({})  # noqa: RUF009 - frozen, and empty


class Rollouts:
    """Runs each job that it is given once. `rows` by (task, episode); `commands` by (task, episode), float64 (steps, A)."""

    def __init__(self, policy: Batcher | Expert, setup: Mapping[str, Any], seed: int, workers: int, slots: int, watch: Watch) -> None:
        self.policy, self.setup, self.seed, self.watch = policy, setup, seed, watch
        self.waiting: dict[str, deque[Job]] = {}
        self.slots = [Slot(worker, index) for index in range(slots) for worker in range(workers)]
        self.processes: dict[int, Process] = {}
        self.commands: dict[tuple[str, int], np.ndarray] = {}
        self.clock = {"policy": 0.0}
        self.rows: dict[tuple[str, int], Row] = {}
        self._wanted = 0
        self._begun: set[str] = set()  # tasks whose environment was built at least once
        self._losses: dict[str | None, int] = {}
        self._acting_s, self._since = 0.0, time.monotonic()

    @property
    def timeout_s(self) -> float:
        """As `Watch` has it."""
        return self.watch.timeout_s

    def run(self, jobs: Iterable[Job]) -> None:
        """Raises SimulatorFailed if a task's environment cannot be built, UserError with what a simulator lacks. The caller closes."""
        for job in jobs:
            self.waiting.setdefault(job.task, deque()).append(job)
            self._wanted += 1
        while len(self.rows) < self._wanted:
            self._assign()
            for process in ready(self.processes.values(), _LOOK_AGAIN_S):
                self._hear(process)
            for process in list(self.processes.values()):
                if process.overdue(self.timeout_s):
                    process.kill()
                    self._lose(process, f"timed out: no answer in {self.timeout_s:g} s")
            if self._somebody_waits_for_the_policy():
                self._act()

    def process(self, worker: int) -> Process:
        """That worker's process, started if need be."""
        if worker not in self.processes:
            self.processes[worker] = Process(self.setup, self.watch.python)
        return self.processes[worker]

    def close(self) -> None:
        """Ends every simulator, whatever it is doing."""
        for process in list(self.processes.values()):
            process.kill()
            self.forget(process)

    def forget(self, process: Process) -> int:
        """Drops an ended process, keeping its clock. Returns its worker, which starts another one when it is needed."""
        worker = next(index for index, known in self.processes.items() if known is process)
        del self.processes[worker]
        for what, seconds in process.clock.items():
            self.clock[what] = self.clock.get(what, 0.0) + seconds
        return worker

    def _assign(self) -> None:
        """Gives every free slot its next episode, of its own task if any is left."""
        for slot in self.slots:
            if slot.job is not None:
                continue
            if slot.task is None or not self.waiting[slot.task]:
                task = self._worth_an_environment() if self._worth_an_episode(slot.worker) else None
                if task is None:
                    continue
                slot.task = task
            job = slot.job = self.waiting[slot.task].popleft()
            slot.before = None
            start = {"op": "start", "slot": slot.index, "task": job.task, "seed": job.seed, "expert": isinstance(self.policy, Expert)}
            self.process(slot.worker).send(start)

    def _worth_an_episode(self, worker: int) -> bool:
        """Whether one more beside those of this process would make anything faster."""
        busy = sum(slot.worker == worker and slot.job is not None for slot in self.slots)
        return busy < BUSY_SLOTS or self._acting_s > (time.monotonic() - self._since) / 2

    def _worth_an_environment(self) -> str | None:
        def environments(task: str) -> int:
            return sum(slot.task == task and slot.job is not None for slot in self.slots)

        open_tasks = [
            task for task, jobs in self.waiting.items() if jobs and len(jobs) >= EPISODES_WORTH_AN_ENVIRONMENT * environments(task)
        ]
        return max(open_tasks, key=lambda task: len(self.waiting[task]) / (environments(task) + 1), default=None)

    def _hear(self, process: Process) -> None:
        answer = process.receive()
        if answer is None:
            self._lose(process, f"crashed: {process.close()}")
            return
        message, arrays = answer
        slot = self._slot(process, message["slot"])
        job = slot.job
        assert job is not None
        if "refused" in message:
            raise UserError(message["refused"])
        self._begun.add(job.task)
        if "commands" in arrays:
            job.commands.append(arrays["commands"])
        if message["ended"]:
            reason = "success" if message["success"] else "max_steps"
            ended = (message["success"], message["steps"], reason, message["reward"])
            self._finish(slot, Row(job.task, job.episode, job.seed, *ended, job.calls))
        elif isinstance(self.policy, Expert):
            process.send({"op": "act", "slot": slot.index})
        else:
            images = {name.removeprefix("image:"): array for name, array in arrays.items() if name.startswith("image:")}
            robot = self.policy.robot.name
            seen = Observation(images, arrays["state"], message["instruction"], robot, tuple(message["offsets_s"]))
            slot.observation = self.watch.disguise(job.task, seen)
            slot.rest = Continuation(arrays["rest"], message["frozen"], message["warm"]) if "rest" in arrays else None

    def _finish(self, slot: Slot, row: Row) -> None:
        assert slot.job is not None
        commands = slot.job.commands
        sent = self.commands[row.task, row.episode] = np.concatenate(commands) if commands else np.zeros((0, 0))
        slot.job = slot.observation = None
        self.rows[row.task, row.episode] = row
        self.watch.on_row(row, sent)

    def _somebody_waits_for_the_policy(self) -> bool:
        """A process with nothing to do but to wait for the policy. Otherwise waiting makes the next batch larger, and calls fewer."""
        ready_slots = [slot for slot in self.slots if slot.observation is not None]
        idle = any(not self.processes[slot.worker].pending for slot in ready_slots)
        return idle or len(ready_slots) >= MAX_BATCH

    def _act(self) -> None:
        assert isinstance(self.policy, Batcher)
        slots = [(slot, slot.job, slot.observation) for slot in self.slots if slot.observation is not None and slot.job is not None]
        keys = [call_key(self.seed, job.task, job.episode, job.calls) for _, job, _ in slots]
        start, begun = time.process_time(), time.monotonic()
        seen, rests = [observation for _, _, observation in slots], [slot.rest for slot, _, _ in slots]
        chunks = self.policy.act(seen, keys, rests, [slot.before for slot, _, _ in slots])
        self.clock["policy"] += time.process_time() - start
        self._acting_s += time.monotonic() - begun
        for (slot, job, _), chunk in zip(slots, chunks, strict=True):
            slot.before, slot.observation, job.calls = slot.observation, None, job.calls + 1
            self.processes[slot.worker].send({"op": "act", "slot": slot.index}, {"chunk": chunk.action_TA})

    def _lose(self, process: Process, reason: str) -> None:
        """The episode whose answer was due has failed; the others of that process start again from their seeds."""
        blamed = self._slot(process, process.pending[0]) if process.pending else None
        worker = self.forget(process)
        culprit = blamed.job.task if blamed is not None and blamed.job is not None else None
        if culprit not in self._begun:
            self._losses[culprit] = self._losses.get(culprit, 0) + 1
            if self._losses[culprit] >= LOSSES_BEFORE_STOPPING:
                what = f"the environment of task '{culprit}'" if culprit else "a simulator process"
                raise SimulatorFailed(f"{what} failed {LOSSES_BEFORE_STOPPING} times; the last {reason}. `vla doctor` checks rendering.")
        for slot in self.slots:
            if slot.worker != worker:
                continue
            job = slot.job
            if slot is blamed and job is not None:
                self._finish(slot, Row(job.task, job.episode, job.seed, False, sum(map(len, job.commands)), reason, 0.0, job.calls))
            elif job is not None:
                self.waiting[job.task].appendleft(Job(job.task, job.episode, job.seed))
            slot.task = slot.job = slot.observation = None

    def _slot(self, process: Process, index: int) -> Slot:
        return next(slot for slot in self.slots if slot.index == index and self.processes.get(slot.worker) is process)
