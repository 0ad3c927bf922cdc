"""The conversion: slots in, shards out, resumable after any kill.

Memory does not depend on the length of the source: a worker holds an episode per lane, the writer one shard's index. The same
source, card and settings give the same bytes, for any number of workers and whether or not it was interrupted.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla.convert.card import Card
from vla.convert.lanes import LANES, Job, Slot, slots
from vla.convert.mapping import Mapper, check_against
from vla.convert.pictures import Encoding
from vla.convert.raw import Reader
from vla.convert.report import JOURNAL, LISTED, MAX_BAD, Bad, Journal, PartRecord, Report
from vla.data.format import MANIFEST
from vla.data.writer import ShardWriter
from vla.errors import SchemaError, UserError


@dataclass(frozen=True)
class Settings:
    """`workers`: reading processes, 0 for none but this one. `limit_episodes`: stop after so many. `max_bad`: share of the episodes
    tried that may be bad. `max_shard_bytes`: of one shard."""

    encoding: Encoding = field(default_factory=Encoding)
    workers: int = 2
    resume: bool = False
    limit_episodes: int | None = None
    max_bad: float = MAX_BAD
    max_shard_bytes: int = 64 << 20


@dataclass(frozen=True)
class Progress:
    """How far it is; `episodes_expected` where the format says. Stored ones count from the start of a resumed run too."""

    report: Report
    parts_done: int
    parts: int
    episodes_expected: int | None


def convert(
    open_reader: Callable[[], Reader],
    card: Card,
    out: Path,
    settings: Settings | None = None,
    show: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """A source -> a dataset folder. `open_reader` must survive pickling, for the workers.

    UserError for a card that does not fit the source, UnsafeChange for resuming something else, TooManyBad past `max_bad`; a full
    disk and an interruption leave what `resume` goes on from.
    """
    how, start_s = settings or Settings(), time.monotonic()
    reader = open_reader()
    check_against(card, reader.features())
    parts = tuple(reader.parts())
    if not parts:
        raise UserError("the source has no parts: nothing to convert")
    mapper = Mapper(card, how.encoding, reader.rate_hz)
    expected = reader.size().episodes
    robot = card.robot.to_json() if card.robot else None
    names = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    fingerprint = {"card": card.data, "robot": robot, "encoding": asdict(how.encoding), "lanes": LANES, "list of files": names}
    if how.resume and any(out.glob("shard-*")) and not (out / JOURNAL).is_file():
        finished = (out / MANIFEST).is_file()
        what = "a finished dataset; nothing is left to resume" if finished else "shards that no unfinished conversion wrote"
        raise UserError(f"{out} holds {what}; choose another folder")
    try:
        with ShardWriter(out, card.dataset_info(), how.max_shard_bytes, how.resume) as writer:
            journal = Journal(out, fingerprint, how.resume)
            with closing(journal):
                state = _State(writer, journal, how, parts, card.name)
                job = Job(open_reader, mapper, parts, state.done, np.sort(np.fromiter(writer.keys(), np.uint64)))
                state.report.resumed = writer.episodes
                state.take(slots(job, how.workers), lambda: show(Progress(state.report, state.parts_done, len(parts), expected)))
            writer.info_update(conversion=_facts(state.report, how.encoding))
        journal.path.unlink()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(out).free
        raise UserError(f"{out}: no space left ({free:,} bytes free); make room and go on with --resume") from error
    state.report.seconds = time.monotonic() - start_s
    return state.report


class _State:
    """Slots -> writer, journal and report."""

    def __init__(self, writer: ShardWriter, journal: Journal, how: Settings, parts: tuple[str, ...], card: str) -> None:
        self.writer, self.journal, self.how, self.report = writer, journal, how, Report(card)
        self.parts_done = 0
        known = ((part, journal.parts[part]) for part in parts if part in journal.parts)
        self.done: dict[str, int] = {part: record.slots for part, record in known if all(map(writer.has, record.stored))}
        self._open: dict[str, PartRecord] = defaultdict(PartRecord)

    def take(self, every: Iterator[Slot], show: Callable[[], None]) -> None:
        with closing(every):  # type: ignore[type-var]  # a generator
            for slot in every:
                if slot.end:
                    self._end(slot)
                else:
                    self._slot(slot)
                self.report.check_rate(self.how.max_bad)
                show()
                if self.how.limit_episodes is not None and self.writer.episodes >= self.how.limit_episodes:
                    break
        self.report.episodes = self.writer.episodes
        self.report.check_any()

    def _slot(self, slot: Slot) -> None:
        record, report = self._open[slot.part], self.report
        record.slots += 1
        report.tried += 1
        bad = slot.bad
        if slot.episode is not None:
            try:
                self.writer.add(slot.episode)
                report.steps += slot.episode.steps
                report.hours += float(slot.episode.steps / slot.episode.rate_hz) / 3600
            except SchemaError as error:
                bad = Bad(slot.part, slot.id, "refused", str(error))
        if bad is not None:
            record.bad.append(bad)
            report.add_bad(bad)
        elif (slot.episode is not None or slot.stored) and not slot.skipped:
            record.stored.append(slot.id)
        record.dropped.update(slot.dropped)
        report.dropped.update(slot.dropped)
        report.episodes = self.writer.episodes

    def _end(self, slot: Slot) -> None:
        self.parts_done += 1
        record = self._open.pop(slot.part, PartRecord())
        if not slot.skipped:
            self.journal.finish(slot.part, record)
            return
        remembered = self.journal.parts[slot.part]
        self.report.dropped.update(remembered.dropped)
        for bad in remembered.bad:
            self.report.add_bad(bad)


def _facts(report: Report, encoding: Encoding) -> Mapping[str, Any]:
    """What the manifest keeps of a conversion: nothing that depends on the machine or on interruptions."""
    listed = sorted(str(bad) for bad in report.listed) if report.bad.total() <= LISTED else []
    return {"encoding": asdict(encoding), "tried": report.tried, "dropped": dict(report.dropped), "bad": dict(report.bad), "listed": listed}
