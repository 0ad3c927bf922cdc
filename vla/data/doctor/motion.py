"""Frames, scales, signs and arms: where actions and states of one unit disagree about the motion.

An absolute action is close to the next state; a step is close to the way there. Which of the two it is, in which unit and of which
arm shows in the error of the state that it predicts: every alternative is tried, and an alarm needs one that is far better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled, named_alike
from vla.data.doctor.verdict import Verdict, weigh
from vla.embodiment import Field

FRAME_RATIO = 3.0
ARM_RATIO = 1.5
SCALES = {"rad": ((180 / math.pi, "degrees"),), "m": ((1000.0, "millimetres"), (100.0, "centimetres"))}
"""Unit -> (factor, what the numbers then are)."""
NEAR = 2.5
"""A controller that goes only a part of each step, or further, changes a unit's factor by as much."""
SPEED_LIMITS = {"rad": 15.0, "m": 6.0}
"""No arm is faster (per second): the quickest industrial wrists turn at about 10 rad/s."""
MAX_ANGLE = 4 * math.pi
"""Joints that turn twice around are rare; a joint in degrees passes this at 13 degrees."""


def check(sample: Sampled) -> Iterator[Finding]:
    """Frames, units and arms: what the state does against what is commanded."""
    for action, state in named_alike(sample):
        if action.unit == state.unit and action.unit in SCALES and action.size == state.size:
            found = list(_frame(sample, action)) or list(_scale(sample, action))
            yield from found
    yield from _arms(sample)
    yield from _plain_angles(sample)
    yield from _speeds(sample)


def _frame(sample: Sampled, action: Field) -> Iterator[Finding]:
    rows = [_errors(u, x) for u, x in zip(sample.action(action.name), sample.state(action.name), strict=True) if len(x) > 4]
    if not rows:
        return
    square_EH, rows_E = np.array([r[:2] for r in rows]), np.array([r[2] for r in rows])
    absolute = action.frame == "absolute"
    verdict = weigh(square_EH if absolute else square_EH[:, ::-1], rows_E, FRAME_RATIO)
    spread = _spread(sample.state(action.name))
    if verdict is None or verdict.found > 0.5 * spread:
        return
    really = "steps (differences)" if absolute else "absolute values"
    where = verdict.where([t.id for t in sample.traces])
    yield Finding(
        "wrong_frame",
        f"{sample.name}: action.{action.name}",
        f"declared {action.frame}, but the values are {really} {where}: as declared they miss the next state by {verdict.declared:.3g} "
        f"{action.unit}, as {really} by {verdict.found:.3g}",
        "error",
        _numbers(verdict),
        f"declare the frame of '{action.name}' as '{'step' if absolute else 'absolute'}', or convert the values.",
        {"action": _series(sample.action(action.name)), "state": _series(sample.state(action.name))},
    )


def _errors(u: np.ndarray, x: np.ndarray) -> tuple[float, float, int]:
    """(square error as absolute values, as steps, rows)."""
    n = min(len(u), len(x)) - 1
    absolute, step = u[:n] - x[1 : n + 1], x[:n] + u[:n] - x[1 : n + 1]
    return float((absolute**2).sum()), float((step**2).sum()), n


def _scale(sample: Sampled, action: Field) -> Iterator[Finding]:
    """The ratio of what the action says and what the state does; and its sign."""
    u, x = sample.action(action.name), sample.state(action.name)
    if action.frame != "absolute":
        u, x = _windows(sample, u, x)
    left, right = ([e - e.mean(0) for e in parts if len(e)] for parts in (u, x))
    if not left:
        return
    a, b = np.concatenate(left), np.concatenate(right)
    if len(a) < 20 or min(np.abs(a).max(), np.abs(b).max()) < 1e-9:
        return
    ratio = float(np.sqrt((a**2).sum() / (b**2).sum()))
    alike = float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    where = f"{sample.name}: action.{action.name}"
    evidence = {"ratio": ratio, "correlation": alike}
    if abs(alike) < 0.5:
        return
    for factor, name in SCALES[action.unit]:
        for sign in (1, -1):
            if abs(math.log(ratio) - sign * math.log(factor)) < math.log(NEAR):
                which = ("the action is", "action") if sign > 0 else ("the state is", "state")
                yield Finding(
                    "wrong_unit" if name != "degrees" else "degrees_for_radians",
                    where,
                    f"declared {action.unit}, but the action is {ratio:.3g} times the state's motion (correlation {alike:.2f}): "
                    f"{which[0]} in {name}",
                    "error",
                    evidence,
                    f"multiply the {which[1]} by {1 / factor:.6g} when converting.",
                )
                return
    if alike < -0.5:
        yield Finding(
            "wrong_sign",
            where,
            f"the state moves against its command (correlation {alike:.2f})",
            "error",
            evidence,
            "turn the sign of one of them, or mend the order or frame of the axes.",
        )


def _windows(sample: Sampled, u: Sequence[np.ndarray], x: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sums of steps and of the state's motion over half a second, so that a controller's lag plays no part."""
    wide = max(4, round(float(sample.traces[0].rate_hz) / 2))
    out_u, out_x = [], []
    for a, b in zip(u, x, strict=True):
        if len(b) <= wide + 1:
            continue
        total = np.concatenate([np.zeros((1, a.shape[1])), np.cumsum(a, axis=0)])[: len(b)]
        at = np.arange(0, len(b) - wide, max(wide // 2, 1))
        out_u.append(total[at + wide] - total[at])
        out_x.append(b[at + wide] - b[at])
    return out_u or [np.zeros((0, u[0].shape[1]))], out_x or [np.zeros((0, u[0].shape[1]))]


def _arms(sample: Sampled) -> Iterator[Finding]:
    """Two fields of one kind (the arms of a robot with two) whose actions fit each other's states."""
    pairs = [(a, s) for a, s in named_alike(sample) if a.unit == s.unit and a.size == s.size and a.unit not in ("command", "open01")]
    for (one, _), (two, _) in itertools.combinations(pairs, 2):
        if (one.size, one.unit, one.frame) != (two.size, two.unit, two.frame):
            continue
        verdict = weigh(*_exchange(sample, one, two), ratio=ARM_RATIO)
        if verdict is None:
            continue
        where = verdict.where([t.id for t in sample.traces])
        yield Finding(
            "swapped_arms",
            f"{sample.name}: action.{one.name}, action.{two.name}",
            f"the actions of each fit the other's states {where}: error {verdict.declared:.3g} as declared, {verdict.found:.3g} exchanged",
            "error",
            _numbers(verdict),
            f"exchange '{one.name}' and '{two.name}' in the action (or in the state) when converting.",
        )


def _exchange(sample: Sampled, one: Field, two: Field) -> tuple[np.ndarray, np.ndarray]:
    square, rows = [], []
    absolute = one.frame == "absolute"
    parts = [sample.action(one.name), sample.action(two.name), sample.state(one.name), sample.state(two.name)]
    for a, b, x, y in zip(*parts, strict=True):
        if absolute:
            n = len(x) - 1
            if n < 4:
                continue
            a, b, x, y = a[:n], b[:n], x[1:], y[1:]
        else:
            (a, b), (x, y) = _windows(sample, [a, b], [x, y])[0], _windows(sample, [a, b], [x, y])[1]
            a, b, x, y = (e / max(float(np.sqrt((e**2).mean())), 1e-9) for e in (a, b, x, y))  # a step's gain is the controller's
        square.append((((a - x) ** 2).sum() + ((b - y) ** 2).sum(), ((a - y) ** 2).sum() + ((b - x) ** 2).sum()))
        rows.append(2 * len(a))
    return np.array(square).reshape(-1, 2), np.array(rows)


def _plain_angles(sample: Sampled) -> Iterator[Finding]:
    """Angles too large to be radians, whatever they mean."""
    for kind, space in (("state", sample.state_space), ("action", sample.action_space)):
        for field in space.fields if space else ():
            if field.unit not in ("rad", "axis_angle"):
                continue
            rows = np.concatenate(sample.state(field.name) if kind == "state" else sample.action(field.name))
            size = np.linalg.norm(rows, axis=-1, keepdims=True) if field.unit == "axis_angle" else np.abs(rows)
            high = float(np.nanquantile(size.max(1), 0.95)) if len(rows) else 0.0
            limit = MAX_ANGLE if field.unit == "rad" else 2 * math.pi * 1.05
            if high > limit:
                yield Finding(
                    "degrees_for_radians",
                    f"{sample.name}: {kind}.{field.name}",
                    f"declared {field.unit}, but in 5% of the rows a value is beyond {high:.1f} rad ({high / 2 / math.pi:.1f} turns)",
                    "error",
                    {"q95_of_largest": high},
                    "multiply by pi / 180 when converting.",
                )


def _speeds(sample: Sampled) -> Iterator[Finding]:
    """States that move faster than any arm: a unit or the rate is wrong."""
    for field in sample.state_space.fields if sample.state_space else ():
        if field.unit not in SPEED_LIMITS or field.frame != "absolute":
            continue
        parts = []
        for trace, x in zip(sample.traces, sample.state(field.name), strict=True):
            dt = np.diff(trace.time_s[: len(x)])
            if len(x) > 2:
                parts.append(np.abs(np.diff(x, axis=0)).max(1) / np.where(dt > 0, dt, np.nan))
        speed = np.concatenate(parts) if parts else np.zeros(1)
        high = float(np.nanquantile(speed, 0.9)) if np.isfinite(speed).any() else 0.0
        if high > SPEED_LIMITS[field.unit]:
            yield Finding(
                "implausible_speed",
                f"{sample.name}: state.{field.name}",
                f"in a tenth of the steps it moves at more than {high:.1f} {field.unit}/s: the unit or the rate is wrong",
                "warning",
                {"q90_speed": high},
                "compare the unit and the rate with the dataset's definition.",
            )


def _spread(parts: Sequence[np.ndarray]) -> float:
    rows = np.concatenate(parts)
    return float(np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean()))


def _numbers(verdict: Verdict) -> dict[str, float | int]:
    return {"error_as_declared": verdict.declared, "error_as_found": verdict.found, "episodes": len(verdict.episodes)}


def _series(parts: Sequence[np.ndarray]) -> list[float]:
    """The first number of the first episode, for a picture."""
    return [float(v) for v in parts[0][:300, 0]]
