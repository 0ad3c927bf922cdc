"""Cameras: which one rides on the hand, whether two changed places, and whether the pictures stand at their rows.

A camera that stands still sees most of its picture unchanged while the arm moves; one on the wrist sees none of it unchanged.
In every episode a role shows about the same scene: two cameras exchanged in some episodes look like each other there. And a
picture changes when the robot moves: how much it does, frame by frame, is held against the state's speed, earlier and later.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Film, Sampled
from vla.data.reader import StoredEpisode
from vla.embodiment import ROTATION_UNITS

STILL = 0.035
"""A pixel whose standard deviation over the run is below this (of 0..1) is unchanged: JPEG and sensor noise stay below."""
FIXED_SHARE, MOVING_SHARE = 0.55, 0.35
"""Unchanged pixels: at least so many before a fixed camera, at most so many before one that moves."""
REACH = 6
"""Frames by which pictures may be early or late, looked at."""
SLOW = 5
"""Frames: slower changes are taken out of both, since a trend looks like any other at any lag."""
HEARD, CLEARER = 0.5, 0.2
"""Correlation at the best lag, and how much less it is at the pictures' own rows (and next to them), for an alarm."""
MIN_EPISODES = 3


def check(sample: Sampled) -> Iterator[Finding]:
    """Cameras that show what another should, stand still, see nothing, or lag behind the state."""
    if not sample.films:
        return
    swapped = list(_roles(sample)) or list(_exchanged(sample))
    yield from swapped
    if sample.moves:
        if not swapped:
            yield from _sides(sample)
        for camera in sample.dataset.cameras:
            yield from _alignment(sample, camera)
    yield from _dark(sample)


def _roles(sample: Sampled) -> Iterator[Finding]:
    share = {camera: _still_shares(sample, camera) for camera in sample.dataset.cameras}
    wrists = [c for c in share if _on_wrist(c)]
    fixed = [c for c in share if not _on_wrist(c)]
    for wrist in wrists:
        for other in fixed:
            w_E, o_E = share[wrist], share[other]
            odd_E = (w_E > FIXED_SHARE) & (o_E < MOVING_SHARE)
            if odd_E.sum() < max(1, 0.1 * len(odd_E)) or len(odd_E) < MIN_EPISODES:
                continue
            whole = odd_E.mean() > 0.5
            names = [trace.id for (trace, _), odd in zip(sample.films, odd_E, strict=True) if odd]
            yield Finding(
                "swapped_cameras",
                f"{sample.name}: {wrist}, {other}",
                f"{'everywhere' if whole else f'in {len(names)} episodes ({chr(44).join(names[:4])})'} '{wrist}' stands still "
                f"({np.median(w_E[odd_E]):.0%} of its pixels unchanged) and '{other}' moves ({np.median(o_E[odd_E]):.0%})",
                "error",
                {"unchanged_" + wrist: float(np.median(w_E)), "unchanged_" + other: float(np.median(o_E)), "episodes": int(odd_E.sum())},
                "exchange the two roles when converting.",
            )
            return


def _still_shares(sample: Sampled, camera: str) -> np.ndarray:
    """Share of pixels that do not change but with the light of the whole picture, per filmed episode, float (E,)."""
    shares = []
    for _, films in sample.films:
        grey = films[camera].grey
        shares.append(float(((grey - grey.mean((1, 2), keepdims=True)).std(0) < STILL).mean()))
    return np.array(shares)


def _exchanged(sample: Sampled) -> Iterator[Finding]:
    """Two roles that changed places in some episodes: pairs of episodes agree as they are, or crosswise."""
    cameras = sample.dataset.cameras
    for i, one in enumerate(cameras):
        for two in cameras[i + 1 :]:
            a, b = (np.stack([films[c].colour.ravel() for _, films in sample.films]) for c in (one, two))
            if len(a) < 2 * MIN_EPISODES:
                continue

            def apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
                return np.sqrt(((x[:, None] - y[None]) ** 2).mean(-1))

            same, cross = apart(a, a) + apart(b, b), apart(a, b) + apart(b, a)
            agree = (cross - same) / np.maximum(cross + same, 1e-9)  # > 0: the same way round
            np.fill_diagonal(agree, 0)
            vector = np.linalg.eigh(agree)[1][:, -1]
            group = vector > 0
            if group.sum() * 2 < len(group):
                group = ~group  # the majority is right
            odd = ~group
            if (
                not odd.any()
                or agree[np.ix_(group, odd)].max() > -0.1
                or agree[np.ix_(group, group)].sum() / max(group.sum() ** 2, 1) < 0.1
            ):
                continue
            names = [trace.id for (trace, _), wrong in zip(sample.films, odd, strict=True) if wrong]
            yield Finding(
                "swapped_cameras",
                f"{sample.name}: {one}, {two}",
                f"in {len(names)} of {len(odd)} filmed episodes ({', '.join(names[:4])}) each shows what the other shows elsewhere",
                "error",
                {"episodes": names, "agreement_within": float(agree[np.ix_(group, group)].mean())},
                "exchange the two roles in these episodes.",
            )


def _sides(sample: Sampled) -> Iterator[Finding]:
    """A camera on one wrist whose picture moves with the other arm: cameras or arms are exchanged."""
    assert sample.state_space is not None
    for camera in (c for c in sample.dataset.cameras if _on_wrist(c) and c.endswith(("left", "right"))):
        own = camera.rsplit("_", 1)[1]
        other = "right" if own == "left" else "left"
        arms = {side: [f.name for f in sample.state_space.fields if side in f.name] for side in (own, other)}
        if not arms[own] or not arms[other]:
            continue
        pairs = {side: [_change_and_motion(sample, t, films[camera], arms[side]) for t, films in sample.films] for side in (own, other)}
        found = None
        for quick, least, margin in ((True, 0.35, 0.3), (False, 0.6, 0.4)):  # trends alike by chance need more to be believed
            heard = {side: _partial(pairs[side], pairs[other if side == own else own], quick) for side in (own, other)}
            if heard[other] > least and heard[other] > heard[own] + margin:
                found = heard
        if found is not None:
            yield Finding(
                "swapped_arms",
                f"{sample.name}: {camera}",
                f"its picture moves with the {other} arm (correlation {found[other]:.2f}), not with the {own} one ({found[own]:.2f})",
                "error",
                {f"correlation_{side}": float(value) for side, value in found.items()},
                f"exchange the two arms in state and action, or the cameras of the wrists; see which of them '{camera}' shows.",
            )


def _partial(pairs: list[tuple[np.ndarray, np.ndarray]], rivals: list[tuple[np.ndarray, np.ndarray]], quick: bool) -> float:
    """Correlation of the picture's change with one arm's motion, the other arm's (and, if `quick`, slow trends) taken out."""
    y, a, b = (
        np.concatenate([_quick(v) if quick else v - v.mean() for v in values])
        for values in ([c for c, _ in pairs], [m for _, m in pairs], [m for _, m in rivals])
    )
    if (size := float(b @ b)) > 1e-12:
        y, a = y - b * float(y @ b) / size, a - b * float(a @ b) / size
    size = float(np.sqrt((y @ y) * (a @ a)))
    return float(y @ a) / size if size > 1e-9 else 0.0


def _alignment(sample: Sampled, camera: str) -> Iterator[Finding]:
    pairs = [_change_and_motion(sample, trace, films[camera], None) for trace, films in sample.films]
    found = lag_of(pairs)
    if found is None:
        return
    best, table = found
    ticks = np.median(np.concatenate([np.diff(films[camera].step) for _, films in sample.films]))
    rate = float(sample.traces[0].rate_hz)
    late_s = best * ticks / rate
    if abs(best) < 2 or table[best] < HEARD or table[best] - max(table[0], table[1], table[-1]) < CLEARER:
        return
    yield Finding(
        "misaligned_frames",
        f"{sample.name}: {camera}",
        f"the pictures change {abs(best)} frames ({abs(late_s):.2f} s) {'after' if best > 0 else 'before'} the state does "
        f"(correlation {table[best]:.2f} there, {table[0]:.2f} at their own rows)",
        "error" if abs(best) >= 3 or best < 0 else "warning",
        {"lag_frames": best, "lag_s": float(late_s), "correlation": {str(k): round(v, 3) for k, v in table.items()}},
        "check which frame belongs to which row: rates of video and table, dropped frames, decoding by time stamp.",
        {"lag in frames": list(table), "correlation": list(table.values())},
    )


def lag_of(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[int, dict[int, float]] | None:
    """(frames by which pictures follow the state, correlation at each lag); None where too little happens."""
    quick = [(_quick(change), _quick(motion)) for change, motion in pairs if len(change) >= 3 * REACH]
    quick = [(c, m[REACH:-REACH]) for c, m in quick if c.std() > 1e-6 and m[REACH:-REACH].std() > 1e-9]
    if len(quick) < MIN_EPISODES or sum(len(m) for _, m in quick) < 60:
        return None
    table = {}
    for lag in range(-REACH, REACH + 1):
        moved = [(np.roll(c, -lag)[REACH:-REACH], m) for c, m in quick]
        table[lag] = float(np.mean([((c - c.mean()) * (m - m.mean())).mean() / max(c.std() * m.std(), 1e-12) for c, m in moved]))
    return max(table, key=lambda k: table[k]), table


def _quick(values: np.ndarray) -> np.ndarray:
    """Without its moving average."""
    wide = np.pad(values, SLOW // 2, mode="edge")
    return values - np.convolve(wide, np.full(SLOW, 1 / SLOW), "valid")


def _change_and_motion(sample: Sampled, trace: StoredEpisode, film: Film, fields: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """(how much each frame differs from the one before, how far the state went between the two rows), both (n - 1,)."""
    assert trace.state is not None and sample.state_space is not None
    change = np.sqrt((np.diff(film.grey, axis=0) ** 2).mean((1, 2)))
    motion = np.zeros(len(change))
    for field in sample.state_space.fields:
        if fields is not None and field.name not in fields:
            continue
        x = trace.state[film.step, sample.state_space.slices()[field.name]]
        if field.unit in ROTATION_UNITS or field.unit in ("m/s", "rad/s", "N"):
            continue
        motion = motion + np.linalg.norm(np.diff(x, axis=0), axis=1) / max(_usual(sample, field.name), 1e-9)
    return change, motion


def _usual(sample: Sampled, name: str) -> float:
    """The usual size of a field's motion, so that fields of different units add up."""
    steps = np.concatenate([np.linalg.norm(np.diff(e, axis=0), axis=1) for e in sample.state(name)])
    return float(np.sqrt((steps**2).mean())) if len(steps) else 0.0


def _dark(sample: Sampled) -> Iterator[Finding]:
    for camera in sample.dataset.cameras:
        flat = [trace.id for trace, films in sample.films if films[camera].grey.std(axis=(1, 2)).max() < 0.01]
        if flat:
            yield Finding(
                "blank_pictures",
                f"{sample.name}: {camera}",
                f"one colour throughout in {len(flat)} of {len(sample.films)} filmed episodes ({', '.join(flat[:3])})",
                "warning",
                {"episodes": len(flat)},
                "a camera that was not there should be left out, not filled in.",
            )


def _on_wrist(camera: str) -> bool:
    """Roles are `wrist`, `wrist_left`, ...: cameras that ride on a hand."""
    return camera.startswith(("wrist", "hand", "ego"))
