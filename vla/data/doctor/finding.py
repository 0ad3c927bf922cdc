"""One thing that is wrong, or worth a look, with the numbers that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """`kind` is what the count is by; `where` a file, member, source, field or camera; `evidence` the numbers (JSON-able).

    error: the data are not what they are declared to be. warning: training on them will probably disappoint. note: a fact.
    `plot`: series to draw as evidence, name -> numbers of one length.
    """

    kind: str
    where: str
    detail: str
    severity: Severity = "error"
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: str = ""
    plot: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        level = "" if self.severity == "error" else f" ({self.severity})"
        return f"{self.where}: {self.kind}{level}: {self.detail}{f'. Fix: {self.fix}' if self.fix else ''}"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "where": self.where,
            "severity": self.severity,
            "detail": self.detail,
            "evidence": dict(self.evidence),
            "fix": self.fix,
        }
