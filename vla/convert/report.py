"""What became of every episode of a source, counted; and the journal from which a killed conversion goes on."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vla.data.quarantine import GRACE, TooManyBad
from vla.errors import Damaged, SchemaError, UnsafeChange

LISTED = 100
"""Bad episodes kept by name; beyond that they are only counted."""
JOURNAL = "conversion.jsonl"
OF_THE_CARD = {"language", "range", "rotation", "schema", "time"}
"""Causes that a wrong card gives to every episode; the others are of the files."""
MAX_BAD = 0.01
"""Share of the episodes tried that may be bad, where nobody says another."""


@dataclass(frozen=True)
class Bad:
    """An episode that was not stored: where it lay, and why not. `id`: empty where a whole part is lost from some point on."""

    part: str
    id: str
    cause: str
    detail: str

    def __str__(self) -> str:
        return f"{self.part}: episode '{self.id}': {self.cause}: {self.detail}" if self.id else f"{self.part}: {self.cause}: {self.detail}"


@dataclass
class Report:
    """`episodes`: in the dataset now; `resumed` of them were there before. `steps`, `hours`, `seconds`: of this run. `dropped`: what the
    card left out. `bad`: by cause. `card`: its name."""

    card: str = ""
    tried: int = 0
    episodes: int = 0
    resumed: int = 0
    steps: int = 0
    hours: float = 0.0
    seconds: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    listed: list[Bad] = field(default_factory=list)

    def add_bad(self, bad: Bad) -> None:
        self.bad[bad.cause] += 1
        if len(self.listed) < LISTED:
            self.listed.append(bad)

    def check_rate(self, max_bad: float) -> None:
        """TooManyBad, with the first of them, when more than this share of the episodes tried were bad; SchemaError where all of them
        were, for what the card says of them."""
        if self.bad.total() > max(GRACE, max_bad * self.tried):
            self._check_card()
            raise TooManyBad(f"{self._bad()}, more than the allowed {max_bad:.1%}: {self._first()}")

    def check_any(self) -> None:
        """TooManyBad, with the reasons, when not one episode was stored; SchemaError where the card is the reason."""
        if not self.episodes:
            self._check_card()
            dropped = ", ".join(f"{count} {what}" for what, count in self.dropped.items()) or "none"
            raise TooManyBad(f"no episode was stored: {self._bad()}; left out by the card: {dropped}. {self._first()}".rstrip())

    def _check_card(self) -> None:
        causes = sorted(self.bad)
        if self.bad.total() == self.tried > 0 and not self.episodes and set(causes) <= OF_THE_CARD:
            raise SchemaError(
                f"the card '{self.card}' does not fit the source: not one of {self.tried} episodes is what it says ({', '.join(causes)}): "
                f"{self._first()}. Correct the card; `--dry-run` shows what the source holds."
            )

    def _bad(self) -> str:
        causes = ", ".join(f"{number} {cause}" for cause, number in self.bad.most_common())
        return f"{self.bad.total()} of {self.tried} episodes are bad ({causes or 'no cause'})"

    def _first(self) -> str:
        return "; ".join(map(str, self.listed[:3]))

    def to_json(self) -> dict[str, Any]:
        return {
            "episodes": self.episodes,
            "resumed": self.resumed,
            "tried": self.tried,
            "steps": self.steps,
            "hours": round(self.hours, 4),
            "seconds": round(self.seconds, 3),
            "dropped": dict(self.dropped),
            "bad": dict(self.bad),
            "listed": [str(bad) for bad in self.listed],
        }


@dataclass
class PartRecord:
    """What a finished part gave, slot for slot in order."""

    slots: int = 0
    stored: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


class Journal:
    """One line per finished part, flushed to disk before the next begins; a torn last line is as if it were not there.

    A part that stands here and whose episodes are all in the dataset need not be read again. The first line says what is being
    converted and how: resuming something else is refused.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], resume: bool) -> None:
        self.path = folder / JOURNAL
        self.parts: dict[str, PartRecord] = {}
        head = json.dumps(fingerprint, sort_keys=True)
        if resume and self.path.is_file():
            lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was torn
            self._check_head(lines[0] if lines else b"", head)
            for number, line in enumerate(lines[1:], 2):
                self._take(line, number)
            kept = b"".join(line + b"\n" for line in lines)
            self._file: IO[bytes] = self.path.open("r+b")
            self._file.truncate(len(kept))
            self._file.seek(len(kept))
            if lines:
                return
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
        self._write(head)

    def finish(self, part: str, record: PartRecord) -> None:
        self.parts[part] = record
        bad = [[row.id, row.cause, row.detail] for row in record.bad]
        row = {"part": part, "slots": record.slots, "stored": record.stored, "bad": bad, "dropped": dict(record.dropped)}
        self._write(json.dumps(row))

    def close(self) -> None:
        self._file.close()

    def _check_head(self, found: bytes, head: str) -> None:
        if found and found.decode("utf-8", "replace") != head:
            try:
                old, new = json.loads(found), json.loads(head)
                changed: Iterable[str] = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            except (ValueError, AttributeError) as error:
                raise Damaged(f"{self.path} is damaged; remove the folder and begin anew") from error
            raise UnsafeChange(f"{self.path.parent} was begun with another {', '.join(changed)}; use the same, or another folder")

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            part = str(row["part"])
            bad = [Bad(part, *map(str, triple)) for triple in row["bad"]]
            stored, dropped = list(map(str, row["stored"])), Counter({str(key): int(count) for key, count in row["dropped"].items()})
            self.parts[part] = PartRecord(int(row["slots"]), stored, bad, dropped)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{self.path}: line {number} is damaged ({error}); remove the folder and begin anew") from error

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
