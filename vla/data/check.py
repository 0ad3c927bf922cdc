"""What `vla check` says about data: every problem listed, each with its place. First the bytes, then what the numbers mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.data.doctor.finding import Finding
from vla.data.mixture import VAL_FRACTION, Mixture, source_folders
from vla.data.reader import Dataset
from vla.data.verify import verify

if TYPE_CHECKING:
    from vla.data.doctor.sample import Budget, Progress, Sampled

__all__ = ["Finding", "Report", "check_dataset", "check_mixture", "dataset_facts"]


@dataclass(frozen=True)
class Report:
    """The outcome for one path: sound if no finding is an error. `facts`: what was looked at, for people and for `--json`.

    `samples`: what the doctor looked at, for the page of evidence.
    """

    kind: str
    path: Path
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Sampled, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.of("error")

    def of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def counts(self) -> dict[str, int]:
        return dict(Counter(finding.kind for finding in self.findings).most_common())

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "kind": self.kind,
            "sound": self.sound,
            "counts": self.counts(),
            "severities": dict(Counter(finding.severity for finding in self.findings)),
            "findings": [finding.to_json() for finding in self.findings],
            "facts": dict(self.facts),
        }


def check_dataset(
    folder: Path, full: bool = True, budget: Budget | None = None, like: Path | None = None, progress: Progress | None = None
) -> Report:
    """Every file against the manifest (sizes, and with `full` every byte); where that holds, what the data doctor sees in a sample.

    `budget`: how much it looks at (0 episodes: nothing). `like`: a dataset of the same robot that is known to be good.
    UserError where there is no dataset.
    """
    from vla.data.doctor.examine import examine, ordered, sample_of
    from vla.data.doctor.sample import Budget
    from vla.data.doctor.siblings import compare_with

    budget = budget or Budget()
    damage = _damage(folder, full, "")
    if damage:
        return Report("dataset", folder, damage)
    dataset = Dataset.open(folder)
    findings: list[Finding] = []
    samples: list[Sampled] = []
    if budget.episodes:
        samples = [sample_of(dataset, budget, VAL_FRACTION, progress=progress)]
        findings = examine(samples[0])
        if like is not None:
            trusted = sample_of(Dataset.open(like), budget, VAL_FRACTION, str(like), progress)
            findings = ordered([*findings, *compare_with(trusted, samples[0])])
    return Report("dataset", folder, tuple(findings), dataset_facts(dataset, full), tuple(samples))


def check_mixture(
    path: Path, root: Path | None = None, full: bool = True, budget: Budget | None = None, progress: Progress | None = None
) -> Report:
    """The file, every dataset it names, and what these say about each other. What could not be looked at is a finding of its own: an
    error where a source does not open, a note where only a part of it was read.

    UserError for mistakes in the file, which stop before the data is read.
    """
    from vla.data.doctor.elsewhere import bytes_of
    from vla.data.doctor.examine import examine, examine_together, ordered, sample_of
    from vla.data.doctor.sample import Budget

    budget = budget or Budget()
    damage: list[Finding] = []
    for name, folder in source_folders(path, root):
        damage += _damage(folder, full, f"{name}: ")
    if damage:
        return Report("mixture", path, tuple(damage))
    mixture, left_out = Mixture.load_what_opens(path, root)
    findings = [Finding("unreadable", where, str(error)) for where, error in left_out]
    if mixture is None:
        return Report("mixture", path, tuple(findings))
    samples = [sample_of(s.dataset, budget, mixture.val_fraction, s.name, progress) for s in mixture.sources]
    sources = {}
    for source, sample in zip(mixture.sources, samples, strict=True):
        found, checked = bytes_of(sample, full)
        findings += found
        sources[source.name] = {"share": source.share, **dataset_facts(source.dataset, full), "checked": checked}
    if budget.episodes:
        findings = ordered([*findings, *(finding for sample in samples for finding in examine(sample)), *examine_together(samples)])
    facts = {"name": mixture.name, "val_fraction": mixture.val_fraction, "sources": sources}
    return Report("mixture", path, tuple(ordered(findings)), facts, tuple(samples if budget.episodes else ()))


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
