"""Statistics kept beside a dataset: are they of these bytes, and are these their numbers?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.data.split import Split
from vla.data.statistics import target_rows
from vla.data.window import Targets
from vla.embodiment import Embodiment
from vla.errors import UserError
from vla.normalize import RobotStats, Stats, StatsKey, dimension_names

RANK = 0.25
"""So far from its rank may a stored quantile lie in a sample of whole episodes, whose rows are much alike."""
MAX_BYTES = 64 << 20


def check(sample: Sampled) -> Iterator[Finding]:
    """Statistics kept beside the data that are not of these data."""
    for path in sorted((sample.dataset.folder / "stats").glob("*.json")):
        where = f"{sample.name}: stats/{path.name}"
        record = _read(path)
        if record is None:
            yield Finding("damaged", where, "is no statistics file", "error", {}, "remove it and run `vla stats` again.")
            continue
        stats, digest, val_fraction = record
        if digest != sample.dataset.digest:
            text = f"are of another version of this dataset ({digest[:12]}, these bytes are {sample.dataset.digest[:12]})"
            yield _stale(where, text, {"of": digest, "dataset": sample.dataset.digest})
        elif wrong := next(_contradictions(sample, stats, val_fraction), None):
            yield _stale(where, *wrong)


def _read(path: Path) -> tuple[RobotStats, str, float] | None:
    if path.stat().st_size > MAX_BYTES:
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return RobotStats.from_json(data["stats"]), str(data["dataset"]), float(data["val_fraction"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _stale(where: str, text: str, evidence: dict[str, Any]) -> Finding:
    return Finding("stale_statistics", where, f"the statistics {text}", "error", evidence, "remove the file and run `vla stats` again.")


def _contradictions(sample: Sampled, stats: RobotStats, val_fraction: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the file says that the data do not."""
    dataset, robot = sample.dataset, sample.dataset.info.robot
    split = Split(dataset, "train", val_fraction)
    if stats.state.width and stats.state.count + stats.state.dropped != split.anchors:
        yield (
            f"are of {stats.state.count:,} rows; the dataset trains on {split.anchors:,}",
            {"rows": stats.state.count, "dataset": split.anchors},
        )
    train = set(split.episode_E.tolist())
    traces = [t for t in sample.traces if t.index in train]
    if not traces or sample.state_space is None:
        return
    if stats.state.width == sample.state_space.size:
        rows = np.concatenate([t.state[t.anchors] for t in traces if t.state is not None])
        yield from _off("state", dimension_names(sample.state_space), stats.state, rows)
    if robot is not None and stats.key == StatsKey.of(robot):
        yield from _off("action", dimension_names(robot.action), stats.action, _targets(sample, robot, traces))


def _targets(sample: Sampled, robot: Embodiment, traces: list) -> np.ndarray:
    assert sample.action_space is not None
    targets = Targets(robot, sample.action_space)
    parts = []
    for trace in traces[:16]:
        try:
            parts.append(target_rows(targets, trace))
        except UserError:
            continue  # what cannot be encoded has a finding of its own
    return np.concatenate(parts) if parts else np.zeros((0, robot.action.size))


def _off(kind: str, names: list[str], stats: Stats, rows: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = rows[np.isfinite(rows).all(1)]
    if not len(rows) or not stats.count:
        return
    slack = 1e-9 * np.maximum(np.abs(stats.max_A), np.abs(stats.min_A)) + 1e-12
    outside = ((rows < stats.min_A - slack) | (rows > stats.max_A + slack)).any(0)
    if outside.any():
        i = int(outside.argmax())
        yield (
            f"say that {kind} {names[i]} lies in {stats.min_A[i]:.4g}..{stats.max_A[i]:.4g}, but it reaches "
            f"{rows[:, i].min():.4g}..{rows[:, i].max():.4g}",
            {"dimension": names[i], "min": float(stats.min_A[i]), "max": float(stats.max_A[i])},
        )
        return
    middle = stats.quantile(0.5)
    below, upto = (rows < middle - slack).mean(0), (rows <= middle + slack).mean(0)
    far = np.maximum(below - 0.5, 0.5 - upto)
    if len(rows) >= 100 and far.max() > RANK:
        i = int(far.argmax())
        yield (
            f"give {middle[i]:.4g} as the median of {kind} {names[i]}, which is at rank {below[i]:.0%} of the rows looked at",
            {"dimension": names[i], "stored_median": float(middle[i]), "median": float(np.median(rows[:, i]))},
        )
