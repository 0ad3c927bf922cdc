"""Batches of a pipeline over ranks and workers: which of them makes a batch changes nothing in it.

Global batch g holds positions [start + g * batch * world, ...); rank r takes the r-th run of `batch` of them. So a change of world
size at the same global batch neither loses nor repeats a position, and resuming is `start_position`.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from vla.data.memory import Canvas, Ring
from vla.data.pipeline import Pipeline, Place
from vla.data.quarantine import BadRecord
from vla.data.workers import from_workers
from vla.errors import UserError
from vla.types import Sample

Collate = Callable[[list[Sample]], Any]
Made = TypeVar("Made")
LOOK_AHEAD = 4096
"""Positions that are looked up in the order at once; a look-up of one costs nearly as much as of a thousand."""


def batches(
    pipeline: Pipeline,
    start_position: int = 0,
    *,
    batch_size: int,
    collate: Collate,
    count: int | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    timeout_s: float = 300.0,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields (positions int64 (batch_size,), collate(samples)) for `rank`, `count` times or until the order ends.

    `batch_size` is per rank. `workers`: loader processes, which share the pipeline's cache budget and stay `prefetch` batches ahead
    each; with 0 the work is done here, by one thread (`prefetch=0`: no thread). Bad samples are counted in `pipeline.quarantine`,
    and the ledger is called, when a batch is handed out: what was only prepared leaves no trace. A worker that gives nothing for
    `timeout_s`, or dies, ends in LoaderFailed with the sample it was at.

    Images lie in memory that is used again once nothing refers to it: keep a batch as long as you like. A collate that joins them
    with `vla.data.memory.stacked` copies none.
    """
    if batch_size < 1 or not 0 <= rank < world or start_position < 0 or workers < 0 or prefetch < 0:
        asked = f"batch_size {batch_size}, rank {rank} of {world}, start_position {start_position}, workers {workers}"
        raise UserError(f"no batches for {asked}, prefetch {prefetch}; sizes are at least 1, counts at least 0, rank < world")
    plan = _Plan(start_position, batch_size, rank, world)
    length = pipeline.order.length
    if length is not None:
        whole = max(length - start_position, 0) // (batch_size * world)
        count = whole if count is None else min(count, whole)
    job = _Job(pipeline, plan, collate)
    if workers:
        made = from_workers(job.make, partial(pipeline.begin_worker, workers), pipeline.where, count, workers, prefetch, timeout_s)
    elif prefetch:
        made = from_thread(_here(job, count), prefetch)
    else:
        made = _here(job, count)
    try:
        for batch in made:
            pipeline.quarantine.add(batch_size + len(batch.bad), batch.bad)
            if pipeline.ledger is not None:
                for row in batch.ledger:
                    pipeline.ledger(*row)
            yield batch.positions, batch.value
    finally:
        made.close()


@dataclass(frozen=True)
class _Plan:
    start: int
    batch_size: int
    rank: int
    world: int

    def positions(self, number: int) -> np.ndarray:
        first = self.start + (number * self.world + self.rank) * self.batch_size
        return np.arange(first, first + self.batch_size)


@dataclass(frozen=True)
class _Made:
    positions: np.ndarray
    value: Any
    bad: list[BadRecord]
    ledger: list[tuple[int, str, str, int]]


@dataclass(frozen=True)
class _Job:
    pipeline: Pipeline
    plan: _Plan
    collate: Collate

    def make(self, numbers: Iterator[int], next_canvas: Callable[[], Canvas]) -> Iterator[_Made]:
        """The batches of these numbers, each built in a canvas of its own; positions of many are looked up together."""
        size = self.plan.batch_size
        while some := list(itertools.islice(numbers, max(LOOK_AHEAD // size, 1))):
            positions = [self.plan.positions(number) for number in some]
            places = self.pipeline.look_up(np.concatenate(positions))
            for number, position_N in enumerate(positions):
                yield self._one(position_N, places[number * size : (number + 1) * size], next_canvas())

    def _one(self, position_N: np.ndarray, places: list[Place], canvas: Canvas) -> _Made:
        samples, bad = self.pipeline.collect(places, canvas)
        wanted = self.pipeline.ledger is not None
        ledger = [(s.position, s.source, s.episode, s.step) for s in samples] if wanted else []
        return _Made(position_N, self.collate(samples), bad, ledger)


def _here(job: _Job, count: int | None) -> Generator[_Made, None, None]:
    yield from job.make(iter(range(sys.maxsize if count is None else count)), Ring().canvas)


def from_thread(made: Iterator[Made], ahead: int) -> Generator[Made, None, None]:
    """The same batches, made by a thread that stays `ahead` in front; its errors are raised here."""
    with ThreadPoolExecutor(1, thread_name_prefix="vla-loader") as pool:
        pending = deque(pool.submit(next, made, None) for _ in range(ahead))
        try:
            while (batch := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, made, None))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
