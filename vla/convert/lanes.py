"""Reading in several processes, in an order that does not depend on how many there are.

The parts of a source are dealt to LANES lanes, and the lanes give an episode each in turn. That order is fixed by the source alone;
a worker runs some of the lanes, in the same turns. So all workers are busy, nothing is held but an episode or two of each, and a
resumed run plays the same turns again, with empty slots for what is stored already.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vla.convert import pipe
from vla.convert.fields import BadEpisode
from vla.convert.mapping import Mapper
from vla.convert.raw import RawEpisode, Reader, Unreadable
from vla.convert.report import Bad
from vla.data.format import episode_key
from vla.errors import Damaged, UserError
from vla.types import Episode

LANES = 16
"""More would let more workers help, and hold more episodes (and fetched files) at once. Part of the order: changing it changes datasets."""
AHEAD = 2
"""Slots that a worker prepares before the first of them is taken."""


@dataclass(frozen=True)
class Job:
    """What a worker needs. `done`: part -> its slots, where all of it is stored; `stored`: uint64 keys, sorted, of stored episodes."""

    open: Callable[[], Reader]
    mapper: Mapper
    parts: tuple[str, ...]
    done: Mapping[str, int] = field(default_factory=dict)
    stored: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def lane(self, number: int) -> tuple[str, ...]:
        return self.parts[number::LANES]


@dataclass(frozen=True)
class Slot:
    """One turn of one lane: an episode, or why there is none, or (`end`) that the part is over. `skipped`: the part was not read."""

    part: str
    id: str = ""
    episode: Episode | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    bad: Bad | None = None
    stored: bool = False
    skipped: bool = False
    end: bool = False


@dataclass(frozen=True)
class _Failure:
    text: str
    exit_code: int
    episode: None = None


def slots(job: Job, workers: int) -> Iterator[Slot]:
    """All slots in their order. `workers` 0 reads in this process. Close it to end the workers; UserError where one fails or dies."""
    if workers < 0:
        raise UserError(f"{workers} workers; give 0 (this process) or more")
    if workers == 0:
        yield from _turns(job, range(LANES))
        return
    crew = [_Worker(job, range(first, LANES, min(workers, LANES))) for first in range(min(workers, LANES))]
    try:
        left = {number: len(job.lane(number)) for number in range(LANES) if job.lane(number)}
        while left:
            for number in list(left):
                slot = crew[number % len(crew)].take()
                yield slot
                left[number] -= slot.end
                if not left[number]:
                    del left[number]
    finally:
        for worker in crew:
            worker.stop()


def _turns(job: Job, lanes: Sequence[int], note: Callable[[int], None] = lambda part: None) -> Iterator[Slot]:
    """`note` is told the number of the part that is read next."""
    reader = job.open()
    reader.wanted = job.mapper.card.wanted
    running = {number: _lane(job, reader, number, note) for number in lanes if job.lane(number)}
    while running:
        for number in list(running):
            slot = next(running[number], None)
            if slot is None:
                del running[number]
            else:
                yield slot


def _lane(job: Job, reader: Reader, number: int, note: Callable[[int], None]) -> Iterator[Slot]:
    """The slots of a lane's parts one after the other; the end of a part is a turn of its own."""
    for place, part in enumerate(job.lane(number)):
        if part in job.done:
            for _ in range(job.done[part]):
                yield Slot(part, stored=True, skipped=True)
            yield Slot(part, end=True, skipped=True)
        else:
            yield from _part(job, reader, part, partial(note, number + LANES * place))
            yield Slot(part, end=True)


def _part(job: Job, reader: Reader, part: str, note: Callable[[], None]) -> Iterator[Slot]:
    episodes = reader.episodes(part)
    while True:
        note()
        try:
            raw = next(episodes, None)
        except Damaged as error:
            yield Slot(part, bad=Bad(part, "", "damaged", f"{error}; what follows it in this part is not read"))
            return
        if raw is None:
            return
        slot, raw = _slot(job, part, raw), None  # all lanes wait at the next line, and none needs its raw episode any more
        yield slot


def _slot(job: Job, part: str, raw: RawEpisode | Unreadable) -> Slot:
    if isinstance(raw, Unreadable):
        return Slot(part, raw.id, bad=Bad(part, raw.id, "damaged", raw.detail))
    if _is_stored(job, raw.id):
        return Slot(part, raw.id, stored=True)
    try:
        mapped = job.mapper.episode(raw)
    except (BadEpisode, Damaged) as error:  # Damaged: columns and pictures that a reader reads when they are asked for
        return Slot(part, raw.id, bad=Bad(part, raw.id, getattr(error, "cause", "damaged"), str(error)))
    return Slot(part, raw.id, mapped.episode, mapped.dropped)


def _is_stored(job: Job, episode_id: str) -> bool:
    key = np.uint64(episode_key(job.mapper.card.name, episode_id))
    place = int(np.searchsorted(job.stored, key))
    return place < len(job.stored) and job.stored[place] == key


class _Worker:
    """A process that runs some lanes and sends their slots. It ends when its pipe is closed, also by the death of this process."""

    def __init__(self, job: Job, lanes: Sequence[int]) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would take over threads and locks of whatever runs here
        self._slots, sender = spawn.Pipe(duplex=False)
        self._reading, self._parts = spawn.RawValue("q", -1), job.parts
        self._process = spawn.Process(target=_work, args=(job, list(lanes), sender, self._reading), daemon=True)
        self._process.start()
        sender.close()

    def take(self) -> Slot:
        """The next slot; Damaged, with the part that it was reading, where the process is dead."""
        try:
            slot, episode = pipe.receive(self._slots)
        except pipe.CUT as error:
            self._process.join(timeout=5)
            self._process.terminate()
            self._process.join()
            code, number = self._process.exitcode, self._reading.value
            part = self._parts[number] if number >= 0 else "before the first part"
            raise Damaged(f"{part}: the process that reads it ended with code {code} (-9: killed, mostly for want of memory)") from error
        if isinstance(slot, _Failure):
            failed = UserError(slot.text)
            failed.exit_code = slot.exit_code
            raise failed
        return replace(slot, episode=episode)

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()
        self._slots.close()


def _work(job: Job, lanes: Sequence[int], sender: Connection, reading: Any) -> None:
    def note(part: int) -> None:
        reading.value = part

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process gets it too, says so, and ends this one
    ahead: queue.Queue[Any] = queue.Queue(maxsize=AHEAD)
    sending = threading.Thread(target=_send, args=(ahead, sender), daemon=True)
    sending.start()
    try:
        for slot in _turns(job, lanes, note):
            ahead.put(slot)
    except UserError as error:
        ahead.put(_Failure(str(error), error.exit_code))
    ahead.put(None)
    sending.join()


def _send(ahead: queue.Queue[Any], sender: Connection) -> None:
    sent = False
    try:
        while (slot := ahead.get()) is not None:
            pipe.send(sender, replace(slot, episode=None), slot.episode)
        sender.close()
        sent = True
    except ConnectionError:
        os._exit(1)  # nobody takes slots any more; the thread that makes them may be anywhere, and holds nothing worth closing
    finally:
        if not sent:
            traceback.print_exc()
            os._exit(1)
