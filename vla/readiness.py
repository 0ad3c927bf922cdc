"""Is a checkpoint ready for a robot's data? Which of the robots it knows has numbers nearest to these, and what it has never seen.

Distance of a field: 1 - (overlap / union) of the ranges q01..q99, a mean over the field's numbers: 0 the same range, 1 none in common.
Fields meet by name, unit and size; a `step` field is compared as motion per second, since its numbers depend on the rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vla.embodiment import Embodiment, Field, Space
from vla.normalize import Normalizer, RobotNormalizer


@dataclass(frozen=True)
class Match:
    """One field of the data. `known`: the robot's own field that it is compared with, or why there is none. `distance`: 0..1."""

    kind: str
    field: str
    distance: float
    known: str = ""


@dataclass(frozen=True)
class Nearness:
    """A robot that the checkpoint knows, beside the data. `distance`: mean over the data's fields; one that it lacks counts as 1.

    `fields_unknown`: of the data, not of the robot; `fields_unused`: the other way round. Cameras alike.
    """

    robot: str
    distance: float
    matches: tuple[Match, ...]
    fields_unknown: tuple[str, ...]
    fields_unused: tuple[str, ...]
    cameras_unknown: tuple[str, ...]
    cameras_unused: tuple[str, ...]
    same_statistics: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def nearest(
    robot: Embodiment,
    fitted: RobotNormalizer,
    cameras: Sequence[str],
    known: Sequence[Embodiment],
    normalizers: Mapping[str, RobotNormalizer],
) -> list[Nearness]:
    """Robots of a checkpoint, the nearest first. `fitted`: to the data of `robot`; `cameras`: roles that the data have pictures of."""
    rows = [_nearness(robot, fitted, cameras, other, normalizers[other.name]) for other in known]
    return sorted(rows, key=lambda row: row.distance)


DETAILED = 3
"""Robots whose fields are told one by one."""


def lines(rows: Sequence[Nearness], robot: Embodiment) -> list[str]:
    """The report, for people."""
    said = []
    for number, row in enumerate(rows):
        if number >= DETAILED:
            said.append(f"and {len(rows) - number} more, farther: {', '.join(other.robot for other in rows[number : number + 5])}")
            break
        own = " (the same robot, frames, horizon and rate: normalised as in the checkpoint)" if row.same_statistics else ""
        said.append(f"{'nearest' if number == 0 else 'then'}: {row.robot}, distance {row.distance:.2f}{own}")
        said += [f"  {match.kind} {match.field}: {match.distance:.2f}{f' ({match.known})' if match.known else ''}" for match in row.matches]
        for what, names in (
            ("fields it has never seen", row.fields_unknown),
            ("its fields that these data lack", row.fields_unused),
            ("cameras it has never seen", row.cameras_unknown),
            ("its cameras that these data lack", row.cameras_unused),
        ):
            said += [f"  {what}: {', '.join(names)}"] if names else []
    if rows and not rows[0].same_statistics:
        said.append(f"'{robot.name}' starts with fresh maps of its own in and out; the nearer a robot, the more of the rest fits")
    return said


def _nearness(robot: Embodiment, fitted: RobotNormalizer, cameras: Sequence[str], other: Embodiment, theirs: RobotNormalizer) -> Nearness:
    matches: list[Match] = []
    unknown: list[str] = []
    unused: list[str] = []
    pairs = (
        ("state", robot.state, other.state, fitted.state, theirs.state),
        ("action", robot.action, other.action, fitted.action, theirs.action),
    )
    for kind, mine, its, normalizer, other_normalizer in pairs:
        for field in mine.fields:
            twin = _twin(field, its)
            if isinstance(twin, str):
                matches.append(Match(kind, field.name, 1.0, twin))
                unknown.append(f"{kind} {field.name}")
                continue
            here = _range(mine, field, normalizer, robot)
            there = _range(its, twin, other_normalizer, other)
            matches.append(Match(kind, field.name, _apart(here, there)))
        unused += [f"{kind} {field.name}" for field in its.fields if isinstance(_twin(field, mine), str)]
    distance = float(np.mean([match.distance for match in matches])) if matches else 1.0
    return Nearness(
        other.name,
        distance,
        tuple(matches),
        tuple(unknown),
        tuple(unused),
        tuple(role for role in cameras if role not in other.cameras),
        tuple(role for role in other.cameras if role not in cameras),
        theirs.key == fitted.key,
    )


def _twin(field: Field, space: Space) -> Field | str:
    """The field of the same meaning, or what is different about the one of that name."""
    named = {each.name: each for each in space.fields}
    if field.name not in named:
        return f"it has {', '.join(named) or 'none'}"
    other = named[field.name]
    if (other.unit, other.size) != (field.unit, field.size):
        return f"there {other.size} {other.unit}, here {field.size} {field.unit}"
    return other if other.frame == field.frame else f"there {other.frame}, here {field.frame}"


def _range(space: Space, field: Field, normalizer: Normalizer, robot: Embodiment) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of a field's numbers, as the normaliser has them; of steps, a second's worth."""
    where = space.slices()[field.name]
    centre, half = np.array(normalizer.offset[where]), np.array(normalizer.scale[where])
    per_second = float(robot.rate_hz) if field.frame == "step" else 1.0
    return (centre - half) * per_second, (centre + half) * per_second


def _apart(here: tuple[np.ndarray, np.ndarray], there: tuple[np.ndarray, np.ndarray]) -> float:
    both = np.clip(np.minimum(here[1], there[1]) - np.maximum(here[0], there[0]), 0, None)
    either = np.maximum(here[1], there[1]) - np.minimum(here[0], there[0])
    return float(np.mean(1 - both / either))
