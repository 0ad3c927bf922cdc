"""Datasets of one robot against each other: what a dataset says alone may contradict what the others say.

A mistake made in a whole dataset, in state and action alike, is consistent with itself; another dataset of the robot betrays it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vla.data.doctor import grippers, lag
from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.errors import UserError
from vla.normalize import dimension_names

APART = 3.0
"""Ranges (q01..q99) whose centres are so many half-ranges apart, or whose widths differ by RATIO, contradict each other."""
RATIO = 20.0
VIEWS = 0.6
"""Exchanged cameras must differ from the other dataset's by at most this share of what the declared ones do."""
SWAP = 0.35
"""Exchanged fields must fit the other dataset with at most this share of the distance that the declared ones have."""


@dataclass(frozen=True)
class Signature:
    """What should be alike in all datasets of a robot. `gripper`: action field -> correlation with the opening; `lags`: channel ->
    (rows, unexplained share); `state`, `action`: rows of all sampled episodes; `views`: role -> what it shows on average."""

    name: str
    sample: Sampled
    gripper: dict[str, float]
    lags: dict[str, tuple[int, float]]
    state: np.ndarray
    action: np.ndarray
    views: dict[str, np.ndarray]


def signature(sample: Sampled) -> Signature:
    """What datasets of one robot should agree in."""
    direction = {a.name: grippers.polarity(sample, a, s)[0] for a, s in grippers.pairs(sample)}
    lags = {}
    for action, state in lag.channels(sample):
        found = lag.respond(sample.action(action.name), sample.state(state.name), action.name, state.name)
        if found is not None:
            lags[action.name] = (found.lag, min(found.single.values()))
    state, action = (np.concatenate([getattr(t, kind) for t in sample.traces]) for kind in ("state", "action"))
    views = {
        camera: np.mean([films[camera].colour for _, films in sample.films], axis=0) for camera in sample.dataset.cameras if sample.films
    }
    return Signature(sample.name, sample, direction, lags, state, action, views)


def compare_with(trusted: Sampled, sample: Sampled) -> list[Finding]:
    """What `sample` contradicts in a dataset known to be good. UserError where the two cannot be compared."""
    names = [s.dataset.info.robot.name if s.moves and s.dataset.info.robot else "" for s in (trusted, sample)]
    if not all(names) or names[0] != names[1]:
        shown = " and ".join(f"'{name}'" if name else "video" for name in names)
        raise UserError(f"{trusted.dataset.folder} and {sample.dataset.folder} are of {shown}; give a dataset of the same robot")
    one, other = signature(sample), signature(trusted)
    if not _same_spaces(one, other):
        raise UserError(f"{trusted.dataset.folder} records other fields, units or frames of '{names[0]}' than {sample.dataset.folder}")
    return list(against(one, [other], names[0]))


def compare(samples: Sequence[Sampled]) -> Iterator[Finding]:
    """Each against all others of its robot; the finding stands where fewer agree (with two, at the second)."""
    groups: dict[str, list[Sampled]] = {}
    for sample in samples:
        if sample.moves and sample.dataset.info.robot is not None:
            groups.setdefault(sample.dataset.info.robot.name, []).append(sample)
    for robot, members in groups.items():
        if len(members) > 1:
            signatures = [signature(member) for member in members]
            for place, one in enumerate(signatures):
                others = [s for i, s in enumerate(signatures) if i != place and _same_spaces(s, one)]
                if others and (len(signatures) > 2 or place == 1):
                    yield from against(one, others, robot)


def against(one: Signature, others: Sequence[Signature], robot: str) -> Iterator[Finding]:
    """What `one` contradicts in most of the others."""
    for field, value in one.gripper.items():
        votes = [other.gripper.get(field, 0.0) for other in others]
        if abs(value) > 0.4 and all(v * value < 0 and abs(v) > 0.4 for v in votes):
            yield Finding(
                "inverted_gripper",
                f"{one.name}: action.{field}",
                f"goes the other way than in {_names(others)} (correlation with the opening {value:.2f}, there {np.mean(votes):.2f})",
                "error",
                {"here": value, "there": votes},
                "one of the two is inverted: look at frames, and convert it again.",
            )
    for field, (rows, unexplained) in one.lags.items():
        votes = [other.lags[field] for other in others if field in other.lags]
        if unexplained < 0.5 and votes and all(v[1] < 0.5 and v[0] != rows for v in votes):
            yield Finding(
                "actions_shifted",
                f"{one.name}: action.{field}",
                f"the robot answers {rows} rows after a command, in {_names(others)} {votes[0][0]}",
                "warning",
                {"rows": rows, "elsewhere": [v[0] for v in votes]},
                "right if controllers differ; else rows of one dataset are shifted.",
            )
    for kind in ("state", "action"):
        yield from _ranges(one, others, kind, robot)
    yield from _views(one, others)


def _views(one: Signature, others: Sequence[Signature]) -> Iterator[Finding]:
    """Two roles that show here what each other shows elsewhere."""
    for a, b in itertools.combinations(one.views, 2):
        votes = []
        for other in others:
            if a in other.views and b in other.views:
                own, crossed = (
                    float(np.abs(one.views[a] - other.views[x]).mean() + np.abs(one.views[b] - other.views[y]).mean())
                    for x, y in ((a, b), (b, a))
                )
                votes.append((own, crossed))
        if votes and all(crossed < VIEWS * own for own, crossed in votes):
            yield Finding(
                "swapped_cameras",
                f"{one.name}: {a}, {b}",
                f"each shows what the other does in {_names(others)} ({votes[0][0]:.3f} apart as declared, {votes[0][1]:.3f} exchanged)",
                "error",
                {"as_declared": votes[0][0], "exchanged": votes[0][1]},
                "exchange the two roles when converting.",
            )


def _ranges(one: Signature, others: Sequence[Signature], kind: str, robot: str) -> Iterator[Finding]:
    space = one.sample.state_space if kind == "state" else one.sample.action_space
    assert space is not None
    mine = _quantiles(getattr(one, kind))
    theirs = _quantiles(np.concatenate([getattr(other, kind) for other in others]))
    distance = _distance(mine, theirs)
    swapped = _swapped(one, kind, mine, theirs)
    if swapped is not None:
        yield swapped
        return
    names = dimension_names(space)
    width = [np.maximum(q[2] - q[0], 1e-9) for q in (mine, theirs)]
    ratio = width[0] / width[1]
    live = (mine[2] - mine[0] > 1e-6) & (theirs[2] - theirs[0] > 1e-6)
    far = live & ((distance > APART) | (ratio > RATIO) | (ratio < 1 / RATIO))
    if far.any():
        i = int(np.where(far, distance, -1).argmax())
        yield Finding(
            "ranges_differ",
            f"{one.name}: {kind}",
            f"{far.sum()} of {len(names)} dimensions lie elsewhere than in {_names(others)}: {names[i]} in "
            f"{mine[0][i]:.3g}..{mine[2][i]:.3g}, there {theirs[0][i]:.3g}..{theirs[2][i]:.3g}",
            "warning",
            {"dimensions": [names[j] for j in np.flatnonzero(far)]},
            f"another place or task of '{robot}', or another unit, frame or origin: see which.",
        )


def _swapped(one: Signature, kind: str, mine: np.ndarray, theirs: np.ndarray) -> Finding | None:
    """Whether exchanging two fields, or the order of a quaternion, makes this dataset look like the others."""
    space = one.sample.state_space if kind == "state" else one.sample.action_space
    assert space is not None
    where = space.slices()
    as_is = _distance(mine, theirs)
    rivals = []
    for i, a in enumerate(space.fields):
        for b in space.fields[i + 1 :]:
            if (a.size, a.unit) == (b.size, b.unit) and a.size > 1:
                order = np.arange(space.size)
                order[where[a.name]], order[where[b.name]] = np.arange(space.size)[where[b.name]], np.arange(space.size)[where[a.name]]
                rivals.append(("swapped_arms", order, [where[a.name], where[b.name]], f"'{a.name}' and '{b.name}' exchanged"))
        if a.unit == "quat_xyzw":
            order = np.arange(space.size)
            order[where[a.name]] = np.roll(order[where[a.name]], -1)
            rivals.append(("quaternion_order", order, [where[a.name]], f"'{a.name}' read as wxyz"))
    for fault, order, parts, text in rivals:
        chosen = np.concatenate([np.arange(p.start, p.stop) for p in parts])
        before, after = float(as_is[chosen].mean()), float(_distance(mine[:, order], theirs)[chosen].mean())
        if before > 1.0 and after < SWAP * before:
            return Finding(
                fault,
                f"{one.name}: {kind}",
                f"the ranges fit the other datasets of this robot with {text} ({after:.2f} half-ranges off, {before:.2f} as declared)",
                "error",
                {"as_declared": before, "exchanged": after},
                "one of the two is mistaken: compare with the robot's definition, and convert it again.",
            )
    return None


def _quantiles(rows: np.ndarray) -> np.ndarray:
    return np.quantile(rows[np.isfinite(rows).all(1)], (0.01, 0.5, 0.99), axis=0)


def _distance(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Distance of the medians in half-ranges of the wider of the two, per dimension."""
    half = np.maximum(np.maximum(mine[2] - mine[0], theirs[2] - theirs[0]) / 2, 1e-6)
    return np.abs(mine[1] - theirs[1]) / half


def _same_spaces(a: Signature, b: Signature) -> bool:
    return a.sample.state_space == b.sample.state_space and a.sample.action_space == b.sample.action_space


def _names(others: Sequence[Signature]) -> str:
    return ", ".join(other.name for other in others[:3])
