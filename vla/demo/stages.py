"""Stages of a job as commands of ours, run side by side where cores allow, each in its own process and with its own log."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vla.child import command, environment
from vla.errors import UserError

POLL_S = 0.25
PATIENCE_S = 5.0
"""For all stages together to end when they are told to; then they are killed."""


@dataclass(frozen=True)
class Stage:
    """`command`: arguments of `vla`. `needs`: stages that must be done before. `cores`: how many it keeps busy. `typical_s`: on the
    two-core machine it was measured on, for the estimate alone. `makes`: what it writes, removed before it starts anew."""

    name: str
    phase: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    cores: int = 1
    typical_s: float = 10.0
    makes: Path | None = None

    @property
    def line(self) -> str:
        return shlex.join(("vla", *self.command))


@dataclass(frozen=True)
class Done:
    """How a stage went: wall seconds, CPU seconds of it and all its children, and when it started relative to the job."""

    name: str
    phase: str
    command: str
    seconds: float
    cpu_seconds: float
    started_s: float
    digest: str


@dataclass
class State:
    """What a display may look at. `running`: name -> (seconds so far, last line of its log). `remaining_s`: estimate.

    `reused`: stages of an earlier run that were not run again, so that `elapsed_s` does not hold them.
    """

    waiting: list[str] = field(default_factory=list)
    running: dict[str, tuple[float, str]] = field(default_factory=dict)
    done: dict[str, Done] = field(default_factory=dict)
    elapsed_s: float = 0.0
    remaining_s: float = 0.0
    peak_rss_mb: float = 0.0
    reused: tuple[str, ...] = ()


class StageFailed(UserError):
    """A stage that exited with an error; the message holds its command and the end of its log."""

    exit_code = 1


def run_stages(stages: Sequence[Stage], out: Path, cores: int, resume: bool, show: Callable[[State], None]) -> State:
    """Runs all stages in `out` (logs under `out`/logs, a record per finished stage under `out`/done); returns when all are done.

    A stage starts when what it needs is done and its cores are free; earlier ones in the list come first. With `resume`, stages
    whose command and needs are those of a finished record are not run again. On failure or interruption (SIGTERM too) nothing is left
    running.
    """
    _check(stages)
    for folder in ("logs", "done"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    state, began = State(), time.monotonic()
    digests = _digests(stages)
    if resume:
        state.done = {s.name: found for s in stages if (found := _record(out, s.name)) and found.digest == digests[s.name]}
        state.reused = tuple(state.done)
    running: dict[str, _Running] = {}
    told: list[int] = []
    before = _told_by_signals(told)
    try:
        while len(state.done) < len(stages):
            if told:
                raise KeyboardInterrupt if told[0] == signal.SIGINT else SystemExit(128 + told[0])
            for stage in _startable(stages, state.done, running, cores):
                if stage.makes is not None and stage.makes.is_dir():
                    shutil.rmtree(stage.makes, ignore_errors=True)
                elif stage.makes is not None:
                    stage.makes.unlink(missing_ok=True)
                running[stage.name] = _Running(stage, out, time.monotonic() - began)
            for name, process in list(running.items()):
                if process.finished():
                    del running[name]
                    state.done[name] = process.close(digests[name])
                    (out / "done" / f"{name}.json").write_text(json.dumps(asdict(state.done[name]), indent=1))
            state.peak_rss_mb = max(state.peak_rss_mb, _rss_mb([process.child.pid for process in running.values()]))
            state.elapsed_s = time.monotonic() - began
            state.waiting = [s.name for s in stages if s.name not in state.done and s.name not in running]
            state.running = {name: (p.seconds(), p.last_line()) for name, p in running.items()}
            state.remaining_s = estimate(stages, state.done, {name: p.seconds() for name, p in running.items()}, cores)
            show(state)
            if running:
                time.sleep(POLL_S)
    finally:
        for process in running.values():
            process.tell_to_end()
        deadline = time.monotonic() + PATIENCE_S
        for process in running.values():
            process.end(deadline)
        for number, handler in before.items():
            signal.signal(number, handler)
    return state


def estimate(stages: Sequence[Stage], done: Mapping[str, object], running_s: Mapping[str, float], cores: int) -> float:
    """Seconds left, by playing the same schedule with typical times."""
    left = {s.name: max(s.typical_s - running_s.get(s.name, 0.0), 1.0) for s in stages if s.name not in done}
    finished, active, total = set(done), set(running_s), 0.0
    by_name = {s.name: s for s in stages}
    while left:
        for stage in _startable(stages, dict.fromkeys(finished), dict.fromkeys(active), cores):
            active.add(stage.name)
        step = min(left[name] for name in active)
        total += step
        for name in list(active):
            left[name] -= step
            if left[name] <= 1e-9:
                active.remove(name), finished.add(by_name[name].name), left.pop(name)
    return total


def _startable(stages: Sequence[Stage], done: Mapping, running: Mapping, cores: int) -> list[Stage]:
    by_name = {stage.name: stage for stage in stages}
    free = cores - sum(min(by_name[name].cores, cores) for name in running)
    found = []
    for stage in stages:
        ready = stage.name not in done and stage.name not in running and all(need in done for need in stage.needs)
        if ready and min(stage.cores, cores) <= free:
            found.append(stage)
            free -= min(stage.cores, cores)
    return found


def _told_by_signals(told: list[int]) -> dict[int, Any]:
    """Signals that end a job are written down, and looked at where every stage that runs is known; what answered them before. Those of
    another thread than the main one reach nobody here."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, lambda number, frame: told.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}


def _check(stages: Sequence[Stage]) -> None:
    names: set[str] = set()
    for stage in stages:
        assert stage.name not in names, f"stage {stage.name} twice"
        assert set(stage.needs) <= names, f"stage {stage.name} needs {set(stage.needs) - names}, which do not stand before it"
        names.add(stage.name)


def _digests(stages: Sequence[Stage]) -> dict[str, str]:
    """A stage's command and, through them, those of all it needs."""
    found: dict[str, str] = {}
    for stage in stages:
        parts = [stage.command, [found[need] for need in stage.needs]]
        found[stage.name] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return found


def _record(out: Path, name: str) -> Done | None:
    path = out / "done" / f"{name}.json"
    return Done(**json.loads(path.read_text())) if path.is_file() else None


class _Running:
    """A stage's process group, its log, and what the system says it used."""

    def __init__(self, stage: Stage, out: Path, started_s: float) -> None:
        self.stage, self.started_s, self.log = stage, started_s, out / "logs" / f"{stage.name}.log"
        self._began = time.monotonic()
        with open(self.log, "wb") as log:
            log.write(f"$ {stage.line}\n".encode())
            log.flush()
            # Its own session, so that the whole group can be ended; unbuffered, so that the log can be followed.
            self.child = subprocess.Popen(
                command("vla", *stage.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(PYTHONUNBUFFERED="1", COLUMNS="140"),
            )
        self._status: int | None = None
        self._cpu_s = 0.0

    def finished(self) -> bool:
        pid, status, usage = os.wait4(self.child.pid, os.WNOHANG)
        if pid:
            self._status = self.child.returncode = os.waitstatus_to_exitcode(status)
            self._cpu_s = usage.ru_utime + usage.ru_stime  # of the process and the children it waited for
        return bool(pid)

    def close(self, digest: str) -> Done:
        if self._status:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise StageFailed(
                f"stage '{self.stage.name}' failed with exit code {self._status}: {self.stage.line}\n{tail}\nAll of it: {self.log}"
            )
        return Done(self.stage.name, self.stage.phase, self.stage.line, self.seconds(), self._cpu_s, self.started_s, digest)

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def last_line(self) -> str:
        with open(self.log, "rb") as log:
            log.seek(max(0, self.log.stat().st_size - 2000))
            lines = [line.strip() for line in log.read().decode(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def tell_to_end(self) -> None:
        """Asks the stage, and what it has started, to end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGTERM)

    def end(self, deadline: float) -> None:
        """Waits for it until then, and kills what is left."""
        try:
            self.child.wait(timeout=max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()


def _rss_mb(roots: Sequence[int]) -> float:
    """Resident memory of this process, the given ones and all their descendants; shared pages count in each."""
    import psutil

    total = psutil.Process().memory_info().rss
    for root in roots:
        try:
            family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    return total / 1e6
