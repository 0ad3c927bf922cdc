"""What `vla check` says about data: every problem listed, each with its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla.data.mixture import Mixture, source_folders
from vla.data.reader import Dataset
from vla.data.verify import verify


@dataclass(frozen=True)
class Finding:
    """One thing wrong. `kind` is what the count is by; `where` a file, member or source."""

    kind: str
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """The outcome for one path: sound if `findings` is empty. `facts`: what was looked at, for people and for `--json`."""

    kind: str
    path: Path
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        return not self.findings

    def counts(self) -> dict[str, int]:
        return dict(Counter(finding.kind for finding in self.findings).most_common())

    def to_json(self) -> dict[str, Any]:
        findings = [{"kind": f.kind, "where": f.where, "detail": f.detail} for f in self.findings]
        return {
            "path": str(self.path),
            "kind": self.kind,
            "sound": self.sound,
            "counts": self.counts(),
            "findings": findings,
            "facts": dict(self.facts),
        }


def check_dataset(folder: Path, full: bool = True) -> Report:
    """Every file against the manifest: sizes, and with `full` every byte. UserError where there is no dataset."""
    findings = _damage(folder, full, "")
    return Report("dataset", folder, findings, {} if findings else dataset_facts(Dataset.open(folder), full))


def check_mixture(path: Path, root: Path | None = None, full: bool = True) -> Report:
    """The file, and every dataset it names. UserError for mistakes in the file, which stop before the data is read."""
    findings: list[Finding] = []
    for name, folder in source_folders(path, root):
        findings += _damage(folder, full, f"{name}: ")
    if findings:
        return Report("mixture", path, tuple(findings))
    mixture = Mixture.load(path, root, verify="size")
    sources = {s.name: {"share": s.share, **dataset_facts(s.dataset, full)} for s in mixture.sources}
    return Report("mixture", path, (), {"name": mixture.name, "val_fraction": mixture.val_fraction, "sources": sources})


def dataset_facts(dataset: Dataset, full: bool) -> dict[str, Any]:
    """Size and meaning of a dataset in a few numbers."""
    info, manifest = dataset.info, dataset.manifest
    return {
        "name": info.name,
        "embodiment": info.embodiment["name"] if info.embodiment else None,
        "supervision": info.supervision,
        "licence": info.licence,
        "cameras": list(dataset.cameras),
        "episodes": len(dataset),
        "steps": dataset.steps,
        "anchors": dataset.anchors,
        "hours": round(dataset.hours, 6),
        "shards": len(manifest["shards"]),
        "bytes": sum(file["bytes"] for shard in manifest["shards"] for file in shard["files"].values()),
        "digest": dataset.digest,
        "checked": "every byte" if full else "sizes",
    }


def _damage(folder: Path, full: bool, prefix: str) -> tuple[Finding, ...]:
    return tuple(
        Finding(problem.kind, f"{prefix}{problem.file}{f' [{problem.member}]' if problem.member else ''}", problem.detail)
        for problem in verify(folder, full)
    )
