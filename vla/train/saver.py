"""Saves beside the training: the state is copied into the host's memory, and a thread writes and hashes it while steps go on.

Never two at once: a save waits for the one before. One that fails ends the run at its next step. Whatever ends a run waits for the save
in progress, but for a second interrupt; then it is lost, and nothing of it is visible.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from vla.checkpoint import MODEL
from vla.errors import UserError
from vla.train import checkpoint
from vla.train.checkpoint import Progress
from vla.train.engine import Engine
from vla.train.job import Job
from vla.train.log import Log
from vla.train.run import Run

Item = TypeVar("Item")


class Saver:
    """The saves of one run. `saved`: the step that is already there, sound, and need not be written again (-1: none)."""

    def __init__(self, run: Run, job: Job, engine: Engine, out: Path, log: Log, saved: int = -1) -> None:
        self.run, self.job, self.engine, self.out, self.log, self.saved = run, job, engine, out, log, saved
        self._held: dict[str, Tensor] = {}
        """Host memory of a state, used again for each save."""
        self._writing: _Writing | None = None

    def save(self, progress: Progress, last: bool = False) -> Path:
        """Collective: the ranks put the state together, the first writes it. `last`: returns only once it is on the disk."""
        began = time.perf_counter()
        with self.engine.phases("save"):
            state = {} if progress.step == self.saved else self.engine.state()
            folder = self.engine.ranks.first_does(lambda: self._begin(progress, state, last, began))
        self.saved = progress.step
        return Path(folder)

    def _begin(self, progress: Progress, state: Mapping[str, Tensor], last: bool, began: float) -> str:
        self._finish()
        folder = self.out / "checkpoints" / f"{progress.step:06d}"
        if state:
            beside = self.run.async_save and not last
            state = self._copied(state) if beside else state
            weights, contents = self.engine.acting(state), self.job.checkpoint(progress.step)
            keep = (self.run.keep_last, self.run.keep_best)
            self._writing = _Writing(progress.step, lambda: checkpoint.save(self.out, contents, weights, state, progress, *keep))
            self._writing.held_up_s = time.perf_counter() - began
            self._writing.start() if beside else self._writing.run()
        if last or not self.run.async_save:
            self._finish()
        return str(folder / MODEL)

    def checked(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items; between them a save that has ended is written down, or its failure raised."""
        for item in items:
            if self._writing is not None and not self._writing.is_alive():
                self._finish()
            yield item

    def _finish(self) -> None:
        """Waits for the save in progress, if any. Raises what it failed with."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        if writing.ident is not None:
            writing.join()
        if writing.failure is not None:
            raise writing.failure
        assert writing.seconds is not None, "the thread that saves has died; its error is above"
        self.log.write("save", writing.step, folder=f"{writing.step:06d}", seconds=writing.seconds, held_up_s=writing.held_up_s)

    def _copied(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in state.items():
            held = self._held.get(name)
            if held is None or held.shape != tensor.shape:
                held = self._held[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            held.copy_(tensor, non_blocking=True)
        if self.engine.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return {name: self._held[name] for name in state}

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writing is None or not (error is None or isinstance(error, Exception)):
            return
        try:
            self._finish()
        except UserError as failure:
            if error is None:
                raise
            self.log.watch.say(f"the save in progress failed as well: {failure}")


class _Writing(threading.Thread):
    """One save. A daemon: a process that is told to leave at once does not wait for it."""

    def __init__(self, step: int, work: Callable[[], object]) -> None:
        super().__init__(name="vla-saver", daemon=True)
        self.step, self._work = step, work
        self.held_up_s = 0.0
        """Of the training."""
        self.seconds: float | None = None
        self.failure: UserError | None = None

    def run(self) -> None:
        began = time.perf_counter()
        try:
            self._work()
        except UserError as error:
            self.failure = error
        self.seconds = time.perf_counter() - began
