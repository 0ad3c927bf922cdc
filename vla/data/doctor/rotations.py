"""Rotations stored in another convention than declared: quaternions as wxyz, rot6d by rows, axis-angle in degrees.

Every such mistake still gives rotations. What it breaks is how they compose: an absolute target no longer lies near the next
state, and a commanded turn no longer turns the hand about its axis. Each convention is tried on the state and on the action.

Where a state and its absolute action share the same mistake, the two agree again: a transposed rot6d, and wxyz for xyzw, are
isometries (R to A R^T B), so nothing inside the pair tells. Then only sign flips of quaternions, other datasets of the robot and
commands about axes do; steps tell, since transposed they compose from the other side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.data.doctor.verdict import Verdict, weigh
from vla.embodiment import ROTATION_UNITS, Field

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

ANGLE_RATIO = 2.5
MIN_ANGLE = 0.15
"""Radians: a smaller disagreement is a controller's lag, not a convention."""
TURN_MARGIN = 0.35
"""By so much must a command agree better with the turns under another convention (correlation)."""
KINDS = {"wxyz": "quaternion_order", "rows": "rotation_layout", "interleaved": "rotation_layout", "degrees": "degrees_for_radians"}
TELL = {
    "wxyz": "stored as wxyz",
    "rows": "the first two rows of the matrix, not its columns",
    "interleaved": "the two columns interleaved, not stacked",
    "degrees": "in degrees",
}
FIX = {
    "wxyz": "move the first number to the end when converting.",
    "rows": "store R[:, 0] and R[:, 1] (transpose the matrix first) when converting.",
    "interleaved": "stack the columns: R[:, 0], then R[:, 1].",
    "degrees": "multiply by pi / 180 when converting.",
}


def check(sample: Sampled) -> Iterator[Finding]:
    """Rotations that are none, or fit far better when read in another layout or order."""
    states = [f for f in (sample.state_space.fields if sample.state_space else ()) if f.unit in ROTATION_UNITS]
    actions = [f for f in (sample.action_space.fields if sample.action_space else ()) if f.unit in ROTATION_UNITS]
    blamed = set()
    for kind, fields in (("state", states), ("action", actions)):
        for field in fields:
            for finding in _validity(sample, kind, field):
                blamed.add((kind, field.name))
                yield finding
    if not sample.moves or blamed:
        return  # conventions are compared only between numbers that are rotations at all
    for state in states:
        if action := next((a for a in actions if a.name == state.name), None):
            yield from _against_action(sample, state, action)
        else:
            yield from _against_commands(sample, state)


def conventions(unit: str) -> tuple[str, ...]:
    """How numbers of a rotation unit may have been stored; as declared first."""
    return {"quat_xyzw": ("declared", "wxyz"), "rot6d": ("declared", "rows"), "axis_angle": ("declared", "degrees")}[unit]


def rotations(rows: np.ndarray, unit: str, convention: str) -> Rotation:
    """(n, width) -> n rotations, read by a convention; what is not quite a rotation is made one."""
    from scipy.spatial.transform import Rotation

    if unit == "axis_angle":
        return Rotation.from_rotvec(rows * (math.pi / 180 if convention == "degrees" else 1.0))
    if unit == "quat_xyzw":
        rows = np.where(np.linalg.norm(rows, axis=1, keepdims=True) > 1e-6, rows, np.array([0.0, 0.0, 0.0, 1.0]))
        return Rotation.from_quat(np.roll(rows, -1, axis=1) if convention == "wxyz" else rows)
    if convention == "interleaved":
        rows = rows[:, [0, 2, 4, 1, 3, 5]]
    spans = np.linalg.norm(np.cross(rows[:, :3], rows[:, 3:]), axis=1, keepdims=True) > 1e-6
    rows = np.where(spans, rows, np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
    first = rows[:, :3] / np.linalg.norm(rows[:, :3], axis=1, keepdims=True)
    second = rows[:, 3:] - (rows[:, 3:] * first).sum(1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    turn = Rotation.from_matrix(np.stack([first, second, np.cross(first, second)], axis=-1))
    return turn.inv() if convention == "rows" else turn


def _validity(sample: Sampled, kind: str, field: Field) -> Iterator[Finding]:
    parts = sample.state(field.name) if kind == "state" else sample.action(field.name)
    rows, where = np.concatenate(parts), f"{sample.name}: {kind}.{field.name}"
    if field.unit == "quat_xyzw":
        off = float(np.quantile(np.abs(np.linalg.norm(rows, axis=1) - 1), 0.5))
        if off > 1e-2:
            yield Finding("not_a_rotation", where, f"half of the quaternions have a norm off 1 by {off:.2g}", "error", {"off": off})
        else:
            yield from _flips(sample, where, parts)
    elif field.unit == "rot6d":
        off, other = _crooked(rows), _crooked(rows[:, [0, 2, 4, 1, 3, 5]])
        if off > 1e-2:
            as_rows = other < off / 10
            yield Finding(
                "rotation_layout" if as_rows else "not_a_rotation",
                where,
                f"the two halves are no orthonormal columns (off by {off:.2g} in the median)"
                + (f"; read as {TELL['interleaved']}, they are ({other:.2g})" if as_rows else ""),
                "error",
                {"off": off, "interleaved": other},
                FIX["interleaved"] if as_rows else "convert the rotation again.",
            )


def _crooked(rows: np.ndarray) -> float:
    """The median distance of two stacked columns from orthonormal ones."""
    a, b = rows[:, :3], rows[:, 3:]
    off = [np.abs(np.linalg.norm(a, axis=1) - 1), np.abs(np.linalg.norm(b, axis=1) - 1), np.abs((a * b).sum(1))]
    return float(np.median(np.max(off, axis=0)))


def _flips(sample: Sampled, where: str, parts: Sequence[np.ndarray]) -> Iterator[Finding]:
    """Where quaternions are kept on one half of the sphere they jump as the real part passes 0: the jumps tell which part that is."""
    from_rows = [q[:-1][((q[:-1] * q[1:]).sum(1) < -0.9)] for q in parts if len(q) > 1]
    jumps = np.concatenate(from_rows) if from_rows else np.zeros((0, 4))
    if len(jumps) < 3:
        return
    rows = np.concatenate(parts)
    signed = [bool((rows[:, i] >= -1e-6).all() and rows[:, i].max() > 0.05) for i in range(4)]
    near = np.median(np.abs(jumps), axis=0)
    if signed[0] and not signed[3] and near[0] < 0.1:
        yield Finding(
            "quaternion_order",
            where,
            f"the first number is never negative and near 0 ({near[0]:.2g}) at each of {len(jumps)} sign flips: it is the real part",
            "error",
            {"flips": len(jumps), "first_at_flips": float(near[0]), "last_at_flips": float(near[3])},
            FIX["wxyz"],
        )


def _against_action(sample: Sampled, state: Field, action: Field) -> Iterator[Finding]:
    """All conventions of both, and for what is declared relative the composition: which brings the action to the next state?"""
    names = [(i, j) for i in conventions(state.unit) for j in conventions(action.unit)]
    frames = ("absolute", "step") if action.frame == "absolute" else ("step", "absolute")
    hypotheses = [(frame, i, j) for frame in frames for i, j in names]
    square, rows = [], []
    for x, u in zip(sample.state(state.name), sample.action(action.name), strict=True):
        n = len(x) - 1
        if n < 4:
            continue
        errors = []
        for frame, i, j in hypotheses:
            turns, target = rotations(x, state.unit, i), rotations(u[:n], action.unit, j)
            reached = target if frame == "absolute" else turns[:n] * target
            errors.append(float((((reached.inv() * turns[1:]).magnitude()) ** 2).sum()))
        square.append(errors)
        rows.append(n)
    if not rows:
        return
    verdict = weigh(np.array(square), np.array(rows), ANGLE_RATIO)
    # A small step read in degrees is no step: where the hand lags behind, that fits well and says nothing.
    small = verdict is not None and (action.frame == "absolute" or "degrees" in hypotheses[verdict.winner])
    if verdict is not None and (verdict.declared > MIN_ANGLE or not small):
        yield _mismatch(sample, state, action, hypotheses, verdict)
        return
    if action.frame != "absolute":
        pairs = _both(sample, state, action)
        command = [
            u[: len(x) - 1] if action.unit == "axis_angle" else rotations(u[: len(x) - 1], action.unit, "declared").as_rotvec()
            for x, u in pairs
        ]
        scaled = list(_scale(sample, state, action, command, [x for x, _ in pairs])) if action.unit == "axis_angle" else []
        turned = scaled or list(_axes(sample, state, action.name, command, [x for x, _ in pairs]))
        yield from turned or _others_axes(sample, state, action, command, [x for x, _ in pairs])


def _mismatch(sample: Sampled, state: Field, action: Field, hypotheses: list[tuple[str, str, str]], verdict: Verdict) -> Finding:
    frame, i, j = hypotheses[verdict.winner]
    where = verdict.where([t.id for t in sample.traces])
    numbers = {"angle_as_declared_rad": verdict.declared, "angle_as_found_rad": verdict.found, "episodes": len(verdict.episodes)}
    better = f"({verdict.declared:.2f} rad apart as declared, {verdict.found:.2f} so)"
    names = f"{sample.name}: action.{action.name}, state.{state.name}"
    if (i, j) == ("declared", "declared"):
        really = "absolute" if frame == "absolute" else "steps from the state"
        text = f"declared {action.frame}, but the rotations are {really} {where} {better}"
        return Finding("wrong_frame", names, text, "error", numbers, f"declare '{action.name}' as '{frame}', or convert the values.")
    odd = j if j != "declared" else i
    if state.unit == action.unit and (i == "declared") != (j == "declared"):
        who = "one of the two is"  # which one, the pair cannot say
    else:
        who = "the action is" if j != "declared" else "the state is"
    return Finding(
        KINDS[odd], names, f"action and state disagree {where}; they fit if {who} {TELL[odd]} {better}", "error", numbers, FIX[odd]
    )


def _scale(sample: Sampled, state: Field, action: Field, command: list[np.ndarray], x: list[np.ndarray]) -> Iterator[Finding]:
    """Steps of rotation whose size is 57.3 times (or a 57.3th of) what the hand turns by."""
    asked, done = [], []
    for w, rows in zip(command, x, strict=True):
        turns = rotations(rows, state.unit, "declared")
        asked.append(np.linalg.norm(w, axis=1))
        done.append((turns[1:] * turns[:-1].inv()).magnitude())
    ratio = float(np.sqrt((np.concatenate(asked) ** 2).mean() / max(float((np.concatenate(done) ** 2).mean()), 1e-30)))
    if abs(math.log(max(ratio, 1e-30)) - math.log(180 / math.pi)) < math.log(2.5):
        yield Finding(
            "degrees_for_radians",
            f"{sample.name}: action.{action.name}",
            f"declared axis_angle in radians, but the steps are {ratio:.3g} times what the hand turns by: they are in degrees",
            "error",
            {"ratio": ratio},
            FIX["degrees"],
        )


def _both(sample: Sampled, state: Field, action: Field) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x, u) for x, u in zip(sample.state(state.name), sample.action(action.name), strict=True) if len(x) > 4]


def _against_commands(sample: Sampled, state: Field) -> Iterator[Finding]:
    """Dimensionless turns about three axes: the field of three that the hand's turns answer best."""
    assert sample.action_space is not None
    side = state.name.removesuffix("rotation")
    rivals = [f for f in sample.action_space.fields if f.size == 3 and f.unit in ("command", "rad", "rad/s") and f.frame == "step"]
    rivals = [f for f in rivals if side and f.name.startswith(side)] or rivals
    x = [x for x in sample.state(state.name) if len(x) > 4]
    best: tuple[float, Field, list[np.ndarray]] | None = None
    for field in rivals:
        command = [u[: len(u) - 1] for u in sample.action(field.name) if len(u) > 4]
        top = max((abs(r) for r in _agreement(sample, command, x, state.unit).values()), default=0.0)
        if best is None or top > best[0]:
            best = (top, field, command)
    if best is not None:
        yield from _axes(sample, state, best[1].name, best[2], x)


def _axes(sample: Sampled, state: Field, name: str, command: list[np.ndarray], x: list[np.ndarray]) -> Iterator[Finding]:
    agree = _agreement(sample, command, x, state.unit)
    if not agree:
        return
    declared = max(r for (convention, _), r in agree.items() if convention == "declared")
    others = {key: r for key, r in agree.items() if key[0] not in ("declared", "degrees")}
    if not others:
        return
    (convention, axes), r = max(others.items(), key=lambda row: row[1])
    if r > 0.5 and r > declared + TURN_MARGIN:
        yield Finding(
            KINDS[convention],
            f"{sample.name}: state.{state.name}",
            f"the hand does not turn as 'action.{name}' commands (correlation {declared:.2f}); read as {TELL[convention]}, it does "
            f"({r:.2f}, about the {axes}'s axes)",
            "error",
            {f"{c}_{a}": float(v) for (c, a), v in agree.items()},
            FIX[convention],
        )


def _others_axes(sample: Sampled, state: Field, action: Field, command: list[np.ndarray], x: list[np.ndarray]) -> Iterator[Finding]:
    """Steps of rotation are about the hand's own axes. Matrices transposed in state and action alike read as steps about the base's: which
    of the two it is, the numbers cannot say, and neither is what is declared."""
    agree = _agreement(sample, command, x, state.unit)
    hand, base = agree.get(("declared", "hand"), 0.0), agree.get(("declared", "world"), 0.0)
    if base > 0.5 and base > hand + TURN_MARGIN:
        layout = state.unit == action.unit == "rot6d"
        either = f", or state and action both are {TELL['rows']}" if layout else ""
        yield Finding(
            "rotation_layout" if layout else "wrong_frame",
            f"{sample.name}: action.{action.name}, state.{state.name}",
            f"the steps turn the hand about the base's axes (correlation {base:.2f}), not about its own ({hand:.2f}){either}",
            "error",
            {"about_the_base": base, "about_the_hand": hand},
            "say `delta: {axes: base, by: ...}` in the card" + (f", or {FIX['rows']}" if layout else "."),
        )


def _agreement(sample: Sampled, command: list[np.ndarray], x: list[np.ndarray], unit: str) -> dict[tuple[str, str], float]:
    """{(convention, whose axes): correlation of commanded and done turns}, summed over half a second."""
    wide = max(4, round(float(sample.traces[0].rate_hz) / 2))
    found = {}
    for convention in conventions(unit):
        for axes in ("world", "hand"):
            done, asked = [], []
            for w, rows in zip(command, x, strict=True):
                turns = rotations(rows, unit, convention)
                step = turns[1:] * turns[:-1].inv() if axes == "world" else turns[:-1].inv() * turns[1:]
                if len(w) <= wide:
                    continue
                for parts, values in ((done, step.as_rotvec()), (asked, w)):
                    total = np.concatenate([np.zeros((1, 3)), np.cumsum(values, axis=0)])
                    at = np.arange(0, len(total) - wide, max(wide // 2, 1))
                    parts.append(total[at + wide] - total[at])
            if done and sum(map(len, done)) >= 20:
                a, b = np.concatenate(done), np.concatenate(asked)
                size = math.sqrt(float((a**2).sum() * (b**2).sum()))
                found[convention, axes] = float((a * b).sum()) / size if size > 1e-12 else 0.0
    return found
