"""When a command begins to act: which rows of the command explain the state's next change.

The change of a state number over one step is regressed (least squares) on the number itself and its last two changes, then also
on four rows of its command: the causal ones, or the same moved one row into the future. A recorded row is issued after the state
of that row was seen, so no sound recording is explained far better by a command that had not yet been given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vla.data.doctor.finding import Finding, Severity
from vla.data.doctor.sample import MAX_ROWS, Sampled, named_alike
from vla.embodiment import ROTATION_UNITS, Field

REACH = 4
"""Rows of the command that may explain one change."""
FUTURE_GAIN = 0.035
"""So much more of the innovation must the future command explain, alone and with its past. On sound data it is less than 0.015, but
for feedback, which `Response.agrees` tells (docs/data-doctor.md)."""
AGAINST, SURE = -0.3, 0.33
"""Below this `agrees`, the next command answers the state rather than causing it; above, it is no answer. In between stand both
feedback that is often at its limits and shifted targets that are reached within a step, so that it is a warning."""
MIN_ROWS, SURE_ROWS = 60, 150
"""Rows of a dimension below which nothing is measured, and no alarm is raised: a handful of episodes may all steer alike."""
COPIED = 0.9
"""Share of exact copies from which actions are taken to be made of states."""


@dataclass(frozen=True)
class Response:
    """Shares of the state's innovation that stay unexplained (1 = the command says nothing). `single`: by one command row at a
    time, {rows ahead: share}; `causal`, `future`: by four rows ending now, or one row later.

    `agrees`: in -1..1, whether the state's change goes along with what the next row asks, as it does in the long run. Who steers by
    what he sees makes the next command tell where the state went, but against it: the further it went, the less is asked.
    """

    action: str
    state: str
    single: dict[int, float]
    causal: float
    future: float
    agrees: float
    rows: int

    @property
    def lag(self) -> int:
        """Rows from a command to the change that it explains best; negative is before it was given."""
        return -min(self.single, key=lambda ahead: self.single[ahead])


def check(sample: Sampled) -> Iterator[Finding]:
    """Actions that stand a row too early or too late."""
    made_of_states = False
    for action, state in channels(sample):
        u, x = sample.action(action.name), sample.state(state.name)
        same = _copied(action, state, u, x)
        made_of_states |= same[1] > COPIED
        yield from _copies(sample, action, same)
        found = respond(u, x, action.name, state.name, _is_target(action, state))
        if found is not None:
            yield from _acausal(sample, found)
    yield from _edges(sample, made_of_states)


def channels(sample: Sampled) -> list[tuple[Field, Field]]:
    """(action field, the state field that it moves): of one name, or for dimensionless commands the one that answers best."""
    pairs = [(a, s) for a, s in named_alike(sample) if a.unit not in ROTATION_UNITS and s.unit not in ROTATION_UNITS and a.size == s.size]
    if not sample.moves:
        return pairs
    assert sample.action_space is not None and sample.state_space is not None
    taken = {a.name for a, _ in pairs}
    free = [s for s in sample.state_space.fields if s.unit not in ROTATION_UNITS and s.name not in {s.name for _, s in pairs}]
    for a in sample.action_space.fields:
        rivals = [s for s in free if s.size == a.size]
        if a.name in taken or a.unit in ROTATION_UNITS or not rivals:
            continue
        answers = [(respond(sample.action(a.name), sample.state(s.name), a.name, s.name), s) for s in rivals]
        heard = [(min(r.single.values()), s) for r, s in answers if r is not None]
        if heard and min(heard, key=lambda row: row[0])[0] < 0.95:
            pairs.append((a, min(heard, key=lambda row: row[0])[1]))
    return pairs


def _is_target(action: Field, state: Field) -> bool:
    return action.frame == "absolute" and action.unit == state.unit and action.unit != "command"


def respond(u: Sequence[np.ndarray], x: Sequence[np.ndarray], action: str, state: str, targets: bool = False) -> Response | None:
    """Over all episodes and dimensions that move; None where too little happens. `u`, `x`: (steps, n) per episode; `targets`: the
    commands are places to go to, in the state's unit, not ways to go."""
    dims = [i for i in range(x[0].shape[1]) if _alive([e[:, i] for e in u]) and _alive([e[:, i] for e in x])] if x else []
    totals = np.zeros(1 + 6 + 2 + 1)
    rows = 0
    for i in dims:
        parts = [_lagged(a[:, i], b[:, i]) for a, b in zip(u, x, strict=True) if len(b) > 2 * REACH]
        if not parts or sum(len(p[0]) for p in parts) < MIN_ROWS:
            continue
        change, own, command = (np.concatenate([p[k] for p in parts]) for k in range(3))
        fine = np.isfinite(own).all(1) & np.isfinite(command).all(1) & np.isfinite(change)
        change, own, command = change[fine], own[fine], command[fine]
        base = _left(change, own)
        if base <= 1e-12 * max(float(change @ change), 1e-30):
            continue
        sets = [[k] for k in range(6)] + [[2, 3, 4, 5], [1, 2, 3, 4]]
        left = [_left(change, np.column_stack([own, command[:, s]])) / base for s in sets]
        asked = [a[:, i] - b[:, i] if targets else a[:, i] for a, b in zip(u, x, strict=True)]
        totals += np.array([1.0, *left, _along(asked, [b[:, i] for b in x])])
        rows += len(change)
    if not totals[0]:
        return None
    share = totals[1:] / totals[0]
    return Response(
        action,
        state,
        {2 - k: float(share[k]) for k in range(6)},
        float(share[6]),
        float(share[7]),
        float(share[8]),
        round(rows / totals[0]),
    )


def _lagged(u: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(change of x over step t; its past; commands at t+2, t+1, t, t-1, t-2, t-3), for all t that have them."""
    d = np.diff(x)
    t = np.arange(3, len(x) - 2)
    own = np.column_stack([np.ones(len(t)), x[t], d[t - 1], d[t - 2]])
    return d[t], own, np.column_stack([u[t + ahead] for ahead in (2, 1, 0, -1, -2, -3)])


def _left(y: np.ndarray, columns: np.ndarray) -> float:
    """Sum of squares that a least-squares fit leaves."""
    scale = np.maximum(np.abs(columns).max(0), 1e-30)
    solution = np.linalg.lstsq(columns / scale, y, rcond=1e-10)[0]
    rest = y - columns / scale @ solution
    return float(rest @ rest)


def _along(u: Sequence[np.ndarray], x: Sequence[np.ndarray]) -> float:
    """Partial correlation, within episodes, of the state's change with what the next row's command asks for (a target: its distance
    from the state of its row), given the state and its past; its sign is that of the command's answer in the long run."""
    columns: list[list[np.ndarray]] = [[], [], []]
    answer = weight = 0.0
    for a, b in zip(u, x, strict=True):
        if len(b) <= 2 * REACH:
            continue
        change, own, command = _lagged(a, b)
        for kept, values in zip(columns, (change[:, None], own[:, 1:], command[:, 1:2]), strict=True):
            kept.append(values - values.mean(0))
        wide = max(len(b) // 6, 4)
        at = np.arange(0, len(b) - wide, wide)
        asked, done = np.array([a[t : t + wide].mean() for t in at]), b[at + wide] - b[at]
        answer, weight = answer + float(asked @ done), weight + float(np.abs(asked) @ np.abs(done))
    change, own, ahead = (np.concatenate(kept) for kept in columns)
    scale = np.maximum(np.abs(own).max(0), 1e-30)
    left, right = (v[:, 0] - (own / scale) @ np.linalg.lstsq(own / scale, v[:, 0], rcond=1e-10)[0] for v in (change, ahead))
    size = float(np.sqrt((left @ left) * (right @ right)))
    return float(np.sign(answer)) * float(left @ right) / size if size > 1e-30 and weight > 0 else 0.0


def _alive(parts: list[np.ndarray]) -> bool:
    """Whether a number changes at all, beyond rounding."""
    size = max((float(np.nanmax(np.abs(p))) for p in parts if len(p)), default=0.0)
    return any(len(p) > 1 and float(np.nanmax(np.abs(np.diff(p)), initial=0.0)) > 1e-7 * max(size, 1e-6) for p in parts)


def _acausal(sample: Sampled, found: Response) -> Iterator[Finding]:
    gain = min(found.causal - found.future, found.single[0] - found.single[1])
    if found.rows < SURE_ROWS or gain < FUTURE_GAIN or found.agrees < AGAINST:
        return
    yield Finding(
        "actions_shifted",
        f"{sample.name}: action.{found.action}",
        f"the change of state.{found.state} is explained by the command of the row after it: {1 - found.future:.0%} of it, "
        f"against {1 - found.causal:.0%} by commands already given; rows of actions stand at least one step too late",
        "error" if found.agrees > SURE else "warning",
        {
            "explained_by_future": 1 - found.future,
            "explained_by_causal": 1 - found.causal,
            "agrees": found.agrees,
            "rows": found.rows,
            "single": found.single,
        },
        "move the actions one row earlier when converting (drop the first action and the last state), and convert again.",
        {"rows ahead": list(found.single), "unexplained": list(found.single.values())},
    )


def _copied(action: Field, state: Field, u: Sequence[np.ndarray], x: Sequence[np.ndarray]) -> dict[int, float]:
    """Share of the actions that are exactly the state (or its difference) so many rows ahead, where it moves."""
    same = dict.fromkeys((0, 1, 2), 0.0)
    if action.unit != state.unit or action.unit == "command" or action.size != state.size:
        return same
    for ahead in same:
        parts = []
        for a, b in zip(u, x, strict=True):
            want = b if action.frame == "absolute" else np.diff(b, axis=0, prepend=b[:1])  # [k] leads to the state of row k
            n = min(len(a), len(want) - ahead)
            moved = np.abs(np.diff(b, axis=0, append=b[-1:])).max(1)[:n] > 1e-9
            if n > 4 and moved.any():
                parts.append((np.abs(a[:n] - want[ahead : ahead + n]).max(1) <= 1e-6 * (1 + np.abs(a[:n]).max(1)))[moved])
        same[ahead] = float(np.concatenate(parts).mean()) if len(parts) > 1 else 0.0
    return same


def _copies(sample: Sampled, action: Field, same: dict[int, float]) -> Iterator[Finding]:
    """Actions that were made from the states, of another row than the next."""
    wrong = 0 if same[0] >= same[2] else 2
    if same[wrong] > COPIED and same[1] < 0.5:
        yield Finding(
            "actions_shifted",
            f"{sample.name}: action.{action.name}",
            f"{same[wrong]:.0%} of the actions are exactly the state {wrong} rows ahead; made from states, row t leads to row t + 1",
            "error",
            {"equal_to_state_ahead": same},
            "pair row t with the state of row t + 1 when converting.",
        )


def _edges(sample: Sampled, made_of_states: bool) -> Iterator[Finding]:
    """What a shift leaves at the ends of episodes: a row that stands twice, or one that came around from the other end.

    Actions made of states end with a row twice by nature: the last state has no next one.
    """
    rows = [trace.action for trace in sample.traces if trace.action is not None and len(trace.action) > 8]
    whole = [len(action) < MAX_ROWS for action in rows]
    if len(rows) < 6:
        return
    inner = np.concatenate([(np.diff(a[2:-2], axis=0) == 0).all(1) for a in rows]).mean()
    for where, pair, after, drop in (("first", (0, 1), (1, 2), "late"), ("last", (-1, -2), (-2, -3), "early")):
        used = [a for a, complete in zip(rows, whole, strict=True) if complete or where == "first"]
        twice = np.mean([(a[pair[0]] == a[pair[1]]).all() and (a[after[0]] != a[after[1]]).any() for a in used]) if used else 0.0
        if len(used) >= 6 and twice > 0.9 and inner < 0.1 and not (made_of_states and where == "last"):
            text = f"the {where} two rows of actions are the same in {twice:.0%} of the episodes"
            yield _edge_finding(sample, text, drop, inner, "error" if where == "first" else "warning")
            return
    jumps = np.array([_wrapped(a) for a, complete in zip(rows, whole, strict=True) if complete])
    if len(jumps) >= 6:
        for column, where, drop in ((0, "first", "late"), (1, "last", "early")):
            if (share := (jumps[:, column] > 0).mean()) > 0.8:
                text = f"the {where} row of actions continues the other end of the episode in {share:.0%} of them"
                yield _edge_finding(sample, text, drop, inner, "error")


def _wrapped(a: np.ndarray) -> tuple[bool, bool]:
    """Whether the first row fits the last but not the second, and whether the last fits the first but not the one before."""
    scale = np.maximum(a.std(0), 1e-9)
    step = np.quantile(np.abs(np.diff(a[1:-1], axis=0) / scale).sum(1), 0.98)

    def apart(i: int, j: int) -> float:
        return float(np.abs((a[i] - a[j]) / scale).sum())

    limit = max(2.0 * float(step), 0.05)
    return (apart(0, 1) > limit > apart(0, -1)), (apart(-1, -2) > limit > apart(-1, 0))


def _edge_finding(sample: Sampled, text: str, direction: str, inner: float, severity: Severity) -> Finding:
    return Finding(
        "actions_shifted",
        f"{sample.name}: action",
        f"{text} (elsewhere rows repeat in {inner:.1%}): they were moved one step {'later' if direction == 'late' else 'earlier'}",
        severity,
        {"repeats_elsewhere": float(inner), "direction": direction},
        "pair each action with the observation after which it was issued, and drop the row that has no partner.",
    )
