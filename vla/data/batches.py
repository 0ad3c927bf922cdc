"""Batches of a pipeline over ranks and workers: which of them makes a batch changes nothing in it.

Global batch g holds positions [start + g * batch * world, ...); rank r takes the r-th run of `batch` of them. So a change of world
size at the same global batch neither loses nor repeats a position, and resuming is `start_position`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla.data.pipeline import Pipeline
from vla.data.quarantine import BadRecord
from vla.errors import Damaged, UserError
from vla.types import Sample

Collate = Callable[[list[Sample]], Any]
LOOK_AHEAD = 1024
"""Positions that are looked up in the order at once; a look-up of one costs nearly as much as of a hundred."""


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

    `batch_size` is per rank. `workers`: loader processes (torch DataLoader), which share the pipeline's cache budget; with 0 the
    work is done here, by one thread that stays `prefetch` batches ahead (`prefetch=0`: no thread). Bad samples are counted in
    `pipeline.quarantine`, and the ledger is called, when a batch is handed out: what was only prepared leaves no trace.
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
        made = _from_workers(job, count, workers, prefetch, timeout_s)
    elif prefetch:
        made = _from_thread(_here(job, count), prefetch)
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

    def make(self, numbers: list[int]) -> Iterator[_Made]:
        """The batches of these numbers; their positions are looked up together."""
        positions = [self.plan.positions(number) for number in numbers]
        places = self.pipeline.look_up(np.concatenate(positions))
        for number, position_N in enumerate(positions):
            low = number * self.plan.batch_size
            samples, bad = self.pipeline.collect(places[low : low + self.plan.batch_size])
            wanted = self.pipeline.ledger is not None
            ledger = [(s.position, s.source, s.episode, s.step) for s in samples] if wanted else []
            yield _Made(position_N, self.collate(samples), bad, ledger)


def _here(job: _Job, count: int | None) -> Generator[_Made, None, None]:
    group, number = max(LOOK_AHEAD // job.plan.batch_size, 1), 0
    while count is None or number < count:
        size = group if count is None else min(group, count - number)
        yield from job.make(list(range(number, number + size)))
        number += size


def _from_thread(made: Iterator[_Made], ahead: int) -> Generator[_Made, None, None]:
    """The same batches, made by a thread that stays `ahead` in front; its errors are raised here."""
    with ThreadPoolExecutor(1, thread_name_prefix="vla-loader") as pool:
        pending = deque(pool.submit(next, made, None) for _ in range(ahead))
        try:
            while (batch := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, made, None))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def _from_workers(job: _Job, count: int | None, workers: int, prefetch: int, timeout_s: float) -> Generator[_Made, None, None]:
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _Numbered(job),
        batch_size=None,
        sampler=_Numbers(count),
        num_workers=workers,
        prefetch_factor=max(prefetch, 1),
        worker_init_fn=_begin_worker,
        timeout=timeout_s,
    )
    for item in loader:
        if isinstance(item, _Failure):
            raise Damaged(item.message) if item.exit_code == Damaged.exit_code else UserError(item.message)
        yield item


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way home: the loader would wrap it in a worker's traceback."""

    message: str
    exit_code: int


class _Numbered:
    """A map-style dataset of batches, by number."""

    def __init__(self, job: _Job) -> None:
        self.job = job

    def __getitem__(self, number: int) -> _Made | _Failure:
        try:
            return next(self.job.make([number]))
        except UserError as error:
            return _Failure(str(error), error.exit_code)


class _Numbers:
    def __init__(self, count: int | None) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        number = 0
        while self.count is None or number < self.count:
            yield number
            number += 1


def _begin_worker(worker: int) -> None:
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    info.dataset.job.pipeline.begin_worker(info.num_workers)
