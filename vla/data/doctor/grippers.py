"""Which way a gripper goes. `open01` says 0 closed and 1 open; a `command` says nothing, so its direction is only reported."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.data.doctor.verdict import weigh
from vla.embodiment import Field

WITHIN_S = 0.5
"""A gripper answers its command within this time; at longer lags a grasp's own rhythm looks like an answer."""
SIGN_RATIO = 1.7
"""As a ratio of errors sqrt((1 + r) / (1 - r)): a correlation beyond 0.49."""


def check(sample: Sampled) -> Iterator[Finding]:
    """Whether openings go the way of their commands, and whether grasps look like grasps."""
    for action, state in pairs(sample):
        yield from _direction(sample, action, state)
    for field in sample.state_space.fields if sample.state_space else ():
        if field.unit == "open01":
            yield from _grasps(sample, field)


def pairs(sample: Sampled) -> Iterator[tuple[Field, Field]]:
    """(action field, state field) of each gripper: what is measured as an opening, or is called a gripper."""
    if not sample.moves:
        return
    assert sample.state_space is not None and sample.action_space is not None
    states = {f.name: f for f in sample.state_space.fields if _is_gripper(f)}
    for action in sample.action_space.fields:
        if _is_gripper(action) and action.size == 1 and action.name in states:
            yield action, states[action.name]


def polarity(sample: Sampled, action: Field, state: Field) -> tuple[float, np.ndarray, np.ndarray]:
    """(correlation of command and opening at the best lag, per episode (E,), rows (E,)); 0 where a gripper does not move."""
    u = [e.mean(1) for e in sample.action(action.name)]
    x = [e.mean(1) for e in sample.state(state.name)]
    # A step may be the way to go, or a drive that presses against a stop: the opening's change or the opening answers it.
    answers = [x] if action.frame == "absolute" else [x, [np.diff(e, append=e[-1:]) for e in x]]
    wide = max(1, round(WITHIN_S * float(sample.traces[0].rate_hz)))
    found = []
    for answer in answers:
        for lag in sorted({round(f * wide) for f in (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)} | {1}):
            r_E, n_E = np.array([_correlation(a, b, lag) for a, b in zip(u, answer, strict=True)]).T
            found.append((float((r_E * n_E).sum() / max(n_E.sum(), 1)), np.clip(r_E, -1, 1), n_E))
    most = max(abs(pooled) for pooled, _, _ in found)
    return next(row for row in found if abs(row[0]) >= 0.8 * most - 1e-12)  # the shortest lag that says as much


def _direction(sample: Sampled, action: Field, state: Field) -> Iterator[Finding]:
    pooled, r_E, n_E = polarity(sample, action, state)
    if n_E.sum() < 30:
        return
    where = f"{sample.name}: action.{action.name}"
    evidence = {"correlation": pooled, "episodes": int((n_E > 0).sum())}
    declared = action.unit == "open01" and state.unit in ("open01", "m")
    if not declared:
        majority = math.copysign(1.0, pooled)
        yield Finding(
            "gripper_direction",
            where,
            f"a larger command {'opens' if pooled > 0 else 'closes'} the gripper (correlation {pooled:.2f}); its unit does not say so",
            "note",
            evidence,
        )
    else:
        majority = 1.0
    verdict = weigh(np.stack([n_E * (1 - majority * r_E), n_E * (1 + majority * r_E)], -1), n_E, SIGN_RATIO)
    if verdict is None:
        return
    place = verdict.where([t.id for t in sample.traces])
    yield Finding(
        "inverted_gripper",
        where,
        f"the gripper {'opens as its command says close' if declared else 'goes the other way than elsewhere'} {place} "
        f"(correlation {pooled:.2f} with state.{state.name})",
        "error",
        evidence,
        "store 1 minus the value: open01 is 0 closed, 1 open." if declared else "turn the sign in these episodes.",
        {"action": sample.action(action.name)[0][:300, 0].tolist(), "state": sample.state(state.name)[0][:300].mean(1).tolist()},
    )


def _grasps(sample: Sampled, field: Field) -> Iterator[Finding]:
    """Objects stop a gripper as it closes, each at its own width; an open one always ends at its stop. Inverted, it is the other
    way round: 'closed' always at the stop, 'open' never twice at the same place."""
    closed, opened = [], []
    for x in (e[:, 0] for e in sample.state(field.name)):
        still = np.concatenate([[False], np.abs(np.diff(x)) < 0.004])
        if x.max() - x.min() > 0.3:
            low, high = x[still & (x < 0.5)], x[still & (x >= 0.5)]
            if len(low) > 3 and len(high) > 3:
                closed.append(float(np.median(low)))
                opened.append(float(np.median(high)))
    if len(closed) < 5:
        return
    spread = [float(np.subtract(*np.quantile(v, (0.9, 0.1)))) for v in (closed, opened)]
    if spread[1] > 0.05 and spread[1] > 4 * spread[0] and abs(float(np.median(closed))) < 0.05:
        yield Finding(
            "inverted_gripper",
            f"{sample.name}: state.{field.name}",
            f"'closed' always ends at the same place (within {spread[0]:.3f}), 'open' at many (within {spread[1]:.3f}), "
            "as if 1 were closed on objects of different widths",
            "warning",
            {"spread_closed": spread[0], "spread_open": spread[1], "episodes": len(closed)},
            "look at frames with the gripper at 1; if it is closed there, store 1 minus the value in state and action.",
        )


def _correlation(u: np.ndarray, x: np.ndarray, lag: int) -> tuple[float, int]:
    n = min(len(u), len(x) - lag)
    if n < 6:
        return 0.0, 0
    a, b = u[:n] - u[:n].mean(), x[lag : lag + n] - x[lag : lag + n].mean()
    size = math.sqrt(float((a @ a) * (b @ b)))
    moved = np.ptp(x) > 0.02 * max(float(np.abs(x).max()), 1e-6) and np.ptp(u) > 0
    return (float(a @ b) / size, n) if moved and size > 1e-12 else (0.0, 0)


def _is_gripper(field: Field) -> bool:
    return field.unit == "open01" or "grip" in field.name
