"""Two evaluations side by side: paired where they ran the same episodes, which needs far fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla.errors import UserError
from vla.evaluate.result import EvalResult, Row
from vla.evaluate.statistics import Comparison, compare_paired, compare_unpaired


@dataclass(frozen=True)
class TaskComparison:
    """`task`: its name, or "all" for the episodes of every shared task together. `episodes_*` count what was compared."""

    task: str
    successes_a: int
    episodes_a: int
    successes_b: int
    episodes_b: int
    only_a: int | None
    only_b: int | None
    comparison: Comparison


@dataclass(frozen=True)
class Compared:
    """`paired`: every shared task has the same seeds on both sides. `notes`: what was left out, and how the runs differ."""

    paired: bool
    tasks: tuple[TaskComparison, ...]
    pooled: TaskComparison
    notes: tuple[str, ...]


def compare(a: EvalResult, b: EvalResult) -> Compared:
    """Raises UserError if the two share no task of one suite."""
    if a.suite != b.suite:
        raise UserError(f"the evaluations are of different suites: {a.suite} and {b.suite}")
    ran_by_both = {row.task for row in a.rows} & {row.task for row in b.rows}  # a shard may hold no episode of a task
    shared = [task for task in a.max_steps if task in ran_by_both]
    if not shared:
        raise UserError(f"no task in common: {', '.join(a.max_steps)} against {', '.join(b.max_steps)}")
    notes = [f"{key}: {ours} against {theirs}" for key, ours, theirs in _differences(a, b, shared)]
    for name, one in (("A", a), ("B", b)):
        if one.shard:
            notes.append(f"{name} is shard {one.shard}; put the shards together with `vla merge`")
        if one.stopping:
            notes.append(f"{name} was ended by a rule that saw outcomes ({one.stopping['verdict']}): p and interval ignore that")
        if unmeasured := sum(row.task in shared and not row.measured for row in one.rows):
            notes.append(f"{name}: the simulator failed in {unmeasured} of its episodes, which count as failures of the policy")
    for name, own in (("A", set(a.max_steps) - set(shared)), ("B", set(b.max_steps) - set(shared))):
        if own:
            notes.append(f"only in {name}, left out: {', '.join(sorted(own))}")
    both = [([row for row in a.rows if row.task == task], [row for row in b.rows if row.task == task]) for task in shared]
    paired = all(_seeds(rows_a) & _seeds(rows_b) for rows_a, rows_b in both)
    if paired:
        cut = [(_with_seeds(rows_a, _seeds(rows_b)), _with_seeds(rows_b, _seeds(rows_a))) for rows_a, rows_b in both]
        lost = sum(len(rows_a) + len(rows_b) for rows_a, rows_b in both) - sum(len(x) + len(y) for x, y in cut)
        if lost:
            notes.append(f"{lost} episodes without a partner of the same seed left out")
        both = cut
    else:
        notes.append("the seeds differ, so episodes are not paired; run both with the same --seed for a sharper answer")
    tasks = tuple(_compare(task, rows_a, rows_b, paired) for task, (rows_a, rows_b) in zip(shared, both, strict=True))
    everything = [row for rows_a, _ in both for row in rows_a], [row for _, rows_b in both for row in rows_b]
    return Compared(paired, tasks, _compare("all", *everything, paired), tuple(notes))


def _compare(task: str, rows_a: Sequence[Row], rows_b: Sequence[Row], paired: bool) -> TaskComparison:
    a, b = sum(row.success for row in rows_a), sum(row.success for row in rows_b)
    if not paired:
        return TaskComparison(task, a, len(rows_a), b, len(rows_b), None, None, compare_unpaired(a, len(rows_a), b, len(rows_b)))
    of_b = {(row.task, row.seed): row.success for row in rows_b}
    pairs = [(row.success, of_b[row.task, row.seed]) for row in rows_a]
    both, only_a, only_b, neither = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    return TaskComparison(task, a, len(pairs), b, len(pairs), only_a, only_b, compare_paired(both, only_a, only_b, neither))


def _seeds(rows: Sequence[Row]) -> set[int]:
    return {row.seed for row in rows}


def _with_seeds(rows: Sequence[Row], seeds: set[int]) -> list[Row]:
    return [row for row in rows if row.seed in seeds]


def _differences(a: EvalResult, b: EvalResult, shared: Sequence[str]) -> list[tuple[str, object, object]]:
    """Settings other than the policy that could explain a difference."""
    rows: list[tuple[str, object, object]] = [
        (key, getattr(a, key), getattr(b, key)) for key in ("embodiment", "execute", "ensemble", "image_size")
    ]
    rows += [("probe", *((one.probe or {}).get("spec", "none") for one in (a, b)))]
    rows += [(f"max_steps of {task}", a.max_steps[task], b.max_steps[task]) for task in shared]
    names = sorted({*a.versions, *b.versions})
    rows += [(f"version of {name}", a.versions.get(name), b.versions.get(name)) for name in names]
    return [row for row in rows if row[1] != row[2]]
