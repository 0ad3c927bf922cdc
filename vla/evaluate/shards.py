"""Parts of an evaluation that run on different machines, and the result they make together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vla.errors import UserError
from vla.evaluate.result import ACTS, EvalResult, Row, sampled

_SAME = ("suite", "embodiment", "seed", "execute", "ensemble", "image_size", "max_steps", "episodes", "termination", "probe")
_COUNTS = ("chunks", "repaired")


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count`."""

    number: int = 1
    count: int = 1

    @staticmethod
    def of(spec: str) -> Shard:
        """`1/4`. Raises UserError for what is none."""
        number, slash, count = spec.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"shard '{spec}' is not understood; give 1/4 to 4/4 for a quarter each")
        return Shard(int(number), int(count))

    @property
    def spec(self) -> str:
        """What `of` reads; "" for the whole."""
        return "" if self.count == 1 else f"{self.number}/{self.count}"

    def part(self, tasks: Sequence[str], episodes: int) -> list[tuple[str, int]]:
        """Its (task, episode)s: a contiguous stretch by task, since an environment costs as much as several episodes."""
        everything = [(task, episode) for task in tasks for episode in range(episodes)]
        first, last = ((len(everything) * number) // self.count for number in (self.number - 1, self.number))
        return everything[first:last]


def merge(parts: Mapping[str, EvalResult]) -> EvalResult:
    """One result out of shards (by name, for messages). Its rows, rates and intervals are those of the run in one piece.

    Raises UserError if the shards are of different evaluations, overlap, or leave episodes out.
    """
    (first_name, first), *others = parts.items()
    if not first.episodes:
        raise UserError(f"{first_name} does not say how many episodes the whole has; it was made by a version without shards")
    notes = [note for part in parts.values() for note in part.notes]
    for name, other in others:
        if other.versions != first.versions:
            notes.append(f"{first_name} and {name} were made with different versions of packages")
        differ = [key for key in _SAME if getattr(first, key) != getattr(other, key)]
        differ += [f"policy {key}" for key in ACTS if first.policy.get(key) != other.policy.get(key)]
        if other.policy.get("device") != first.policy.get("device"):
            notes.append(f"{first_name} and {name} acted on different devices")
        if differ:
            raise UserError(f"{first_name} and {name} are of different evaluations: they differ in {', '.join(differ)}")
    rows: dict[tuple[str, int], tuple[str, Row]] = {}
    for name, part in parts.items():
        for row in part.rows:
            if (row.task, row.episode) in rows:
                raise UserError(f"{rows[row.task, row.episode][0]} and {name} both hold {row.task} {row.episode}; give each shard once")
            rows[row.task, row.episode] = (name, row)
    wanted = [(task, episode) for task in first.max_steps for episode in range(first.episodes)]
    missing = [f"{task} {episode}" for task, episode in wanted if (task, episode) not in rows]
    if missing:
        have = ", ".join(part.shard or "the whole" for part in parts.values())
        raise UserError(f"{len(missing)} of {len(wanted)} episodes are missing, such as {missing[0]}; there are shards {have}")
    whole = list(parts.values())
    return replace(
        first,
        policy=_policy(whole),
        rows=tuple(rows[key][1] for key in wanted),
        seconds=max(part.seconds for part in whole),
        cpu_seconds=sum(part.cpu_seconds for part in whole),
        workers=sum(part.workers for part in whole),
        time={key: round(sum(part.time.get(key, 0.0) for part in whole), 3) for key in first.time},
        command="\n".join(part.command for part in whole),
        videos=tuple(video for part in whole for video in part.videos),
        notes=tuple(dict.fromkeys(notes)),
        shard="",
    )


def _policy(parts: Sequence[EvalResult]) -> dict[str, Any]:
    """What all parts say of it, and what its sampling met in all of them together."""
    told = {key: value for key, value in parts[0].policy.items() if all(part.policy.get(key) == value for part in parts)}
    counts = {key: sum(part.policy.get(key, 0) for part in parts) for key in _COUNTS}
    return {**{key: value for key, value in told.items() if key not in (*_COUNTS, "repair_rate")}, **sampled(counts)}
