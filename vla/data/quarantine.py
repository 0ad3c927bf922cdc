"""Bad samples: counted by cause, named, replaced, and a reason to stop once there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from vla.errors import Damaged, UserError

LISTED = 100
"""Bad samples kept by name; beyond that they are only counted."""
GRACE = 10
"""So many may be bad before the rate counts: one bad sample among the first five is no rate."""


class BadSample(UserError):
    """A sample that cannot be used. `cause`: decode, oversize, altered, nonfinite, schema, short or time."""

    exit_code = 1

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class TooManyBad(Damaged):
    """More bad samples than the run allows."""


@dataclass(frozen=True)
class BadRecord:
    cause: str
    source: str
    episode: str
    step: int
    position: int
    detail: str

    def to_json(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.source}: episode '{self.episode}' step {self.step} (position {self.position}): {self.cause}: {self.detail}"


class Quarantine:
    """`max_rate`: share of the samples tried that may be bad before the run stops."""

    def __init__(self, max_rate: float) -> None:
        self.max_rate = max_rate
        self.tried = 0
        self.causes: Counter[str] = Counter()
        self.records: list[BadRecord] = []

    @property
    def bad(self) -> int:
        return sum(self.causes.values())

    def add(self, tried: int, records: Iterable[BadRecord]) -> None:
        """Counts samples tried, substitutes included, and those found bad among them. TooManyBad, with the list, past the rate."""
        self.tried += tried
        for record in records:
            self.causes[record.cause] += 1
            if len(self.records) < LISTED:
                self.records.append(record)
        if self.bad > max(GRACE, self.max_rate * self.tried):
            listed = "; ".join(map(str, self.records[:5]))
            causes = ", ".join(f"{count} {cause}" for cause, count in self.causes.most_common())
            raise TooManyBad(
                f"{self.bad} of {self.tried} samples are bad ({causes}), more than the allowed {self.max_rate:.2%}: {listed}. "
                "Run `vla check` on the sources named."
            )
