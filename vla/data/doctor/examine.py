"""All that the doctor looks for, in one dataset and in several together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vla.data.doctor import cameras, clock, episodes, grippers, lag, limits, motion, rotations, siblings, stored, values
from vla.data.doctor.finding import SEVERITIES, Finding
from vla.data.doctor.sample import Budget, Progress, Sampled
from vla.data.reader import Dataset
from vla.errors import UserError

FAMILIES: tuple[tuple[str, Callable[[Sampled], Iterator[Finding]]], ...] = (
    ("time", clock.check),
    ("values", values.check),
    ("limits", limits.check),
    ("frames and units", motion.check),
    ("rotations", rotations.check),
    ("grippers", grippers.check),
    ("command and motion", lag.check),
    ("episodes", episodes.check),
    ("cameras", cameras.check),
    ("statistics", stored.check),
)
"""What is looked at -> who looks. A new family is a file with a `check(sample)` and a row here."""


def sample_of(dataset: Dataset, budget: Budget, val_fraction: float, name: str = "", progress: Progress | None = None) -> Sampled:
    """What is looked at of a dataset; `name`: of the source, where that is not the dataset's."""
    return Sampled(dataset, budget, val_fraction, name or dataset.info.name, progress or (lambda line: None))


def examine(sample: Sampled) -> list[Finding]:
    """The findings of all families about one dataset, errors first."""
    found = []
    for what, check in FAMILIES:
        sample.progress(f"{sample.name}: {what}")
        try:
            found += list(check(sample))
        except UserError as error:  # a frame or a shard that cannot be read is itself a finding, and the others still look
            found.append(Finding("unreadable", f"{sample.name}: {what}", str(error), "error"))
    return ordered(_causes(_once(found)))


def examine_together(samples: Sequence[Sampled]) -> list[Finding]:
    """What only shows between datasets: contradictions among those of one robot, and content that two share."""
    crossing = [finding for finding in episodes.repeats([episodes.prints(sample) for sample in samples]) if _crosses(finding)]
    return ordered([*siblings.compare(samples), *crossing])


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


FOLLOW = {
    "swapped_arms": ("inverted_gripper", "wrong_sign"),
    "degrees_for_radians": ("implausible_speed", "wrong_frame", "outside_limits"),
    "wrong_frame": ("wrong_sign", "actions_shifted", "outside_limits"),
    "wrong_unit": ("outside_limits",),
    "wrong_rate": ("rate_differs",),
}
"""Mistake -> findings that it brings about by itself."""


def _causes(findings: Sequence[Finding]) -> list[Finding]:
    """Without what another finding explains."""
    explained = {follower for finding in findings for follower in FOLLOW.get(finding.kind, ())}
    return [finding for finding in findings if finding.kind not in explained]


def _once(findings: Sequence[Finding]) -> list[Finding]:
    """Each kind once per place."""
    seen: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        seen.setdefault((finding.kind, finding.where), finding)
    return list(seen.values())


def _crosses(finding: Finding) -> bool:
    """Whether a pair is of two datasets: those within one were found there."""
    return any(a.split("/")[0] != b.split("/")[0] for a, b in finding.evidence["pairs"])
