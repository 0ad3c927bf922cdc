"""Episodes against each other: the same content twice, on both sides of the split, idle stretches, and what the language says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.data.format import held_out
from vla.data.keyed import mix
from vla.data.reader import StoredEpisode
from vla.embodiment import ROTATION_UNITS

IDLE_SPEED = 0.03
"""Below this share of its usual fast motion (the 90th percentile) the robot rests."""
IDLE_WARNING, IDLE_NOTE = 0.5, 0.25
SAME_SHARE = 0.5
"""Episodes that share this part of their rows are the same one."""
ROWS_KEPT = 400
"""Rows of an episode that are compared."""
MOST_PAIRS = 200
"""Pairs whose pictures are compared."""
PICTURES_APART = 0.08
"""Pictures (of 0..1, small) whose pixels differ by less, but for 0.5% of them, are the same up to compression."""


@dataclass(frozen=True)
class Prints:
    """Hashes of the rows of episodes of one source: `row_N` uint64, `step_N` where each first stands, `episode_N` its episode's place
    in `names`; `held_E` bool. `index_E`: the episodes' numbers in `sample`'s dataset, whose pictures decide."""

    row_N: np.ndarray
    step_N: np.ndarray
    episode_N: np.ndarray
    names: tuple[str, ...]
    held_E: np.ndarray
    index_E: np.ndarray
    sample: Sampled

    def steps(self, place: int) -> dict[int, int]:
        """Row hash -> step, of one episode."""
        mine = self.episode_N == place
        return dict(zip(self.row_N[mine].tolist(), self.step_N[mine].tolist(), strict=True))


def check(sample: Sampled) -> Iterator[Finding]:
    """Idle steps, missing language, and episodes that are there twice."""
    yield from _idle(sample)
    yield from _language(sample)
    yield from repeats([prints(sample)])


def prints(sample: Sampled) -> Prints:
    """Of up to `budget.compared` episodes: those whose length is another's too first, since a copy has the length of its original."""
    dataset = sample.dataset
    chosen = sample.at_hand_N
    if len(chosen) > sample.budget.compared:
        steps_N = dataset.steps_E[chosen]
        _, back, count = np.unique(steps_N, return_inverse=True, return_counts=True)
        shared = count[back] > 1
        draw = mix(sample.budget.seed, chosen)
        chosen = chosen[np.sort(np.lexsort((draw, steps_N if shared.any() else draw, ~shared))[: sample.budget.compared])]
    rows, steps, owner, names = [], [], [], []
    for place, index in enumerate(chosen):
        if place % 200 == 199:
            sample.progress(f"{sample.name}: comparing episode {place + 1} of {len(chosen)}")
        episode = dataset.episode(int(index))
        found, at = np.unique(_row_hashes(episode), return_index=True)
        found, at = found[:ROWS_KEPT], at[:ROWS_KEPT]  # the smallest hashes: the same ones of a copy, wherever it was cut
        rows.append(found)
        steps.append(at)
        owner.append(np.full(len(found), place))
        names.append(f"{sample.name}/{episode.id}")
    held = held_out(dataset.key_E[chosen], sample.val_fraction)
    return Prints(np.concatenate(rows), np.concatenate(steps), np.concatenate(owner), tuple(names), held, chosen, sample)


def _row_hashes(episode: StoredEpisode) -> np.ndarray:
    """One number per step, of what was recorded there but for its time; of the frames' checksums where there are no rows."""
    parts = [values for values in (episode.state, episode.action) if values is not None and values.shape[1]]
    if not parts:
        table = next(iter(episode.cameras.values()))
        return mix(np.asarray(table.crc, np.uint64))
    values = np.nan_to_num(np.concatenate(parts, axis=1))
    whole = np.round(np.clip(values, -1e12, 1e12) * 1e6).astype(np.int64).astype(np.uint64)
    hashed = np.zeros(len(whole), np.uint64)
    for column in whole.T:
        hashed = mix(hashed, column)
    return hashed


def repeats(sources: Sequence[Prints]) -> Iterator[Finding]:
    """Pairs of episodes, of one source or two, that hold the same rows; worse where one is trained on and the other held out."""
    names = [name for s in sources for name in s.names]
    held = np.concatenate([s.held_E for s in sources])
    first = np.cumsum([0, *(len(s.names) for s in sources)])
    row = np.concatenate([s.row_N for s in sources])
    owner = np.concatenate([s.episode_N + first[i] for i, s in enumerate(sources)])
    order = np.argsort(row, kind="stable")
    row, owner = row[order], owner[order]
    edge = np.flatnonzero(np.diff(row) != 0) + 1
    shared: Counter[tuple[int, int]] = Counter()
    for group in np.split(owner, edge):
        if 1 < len(group) <= 64:  # a row that stands in more episodes than this is a rest pose
            group = np.unique(group)
            shared.update((int(group[i]), int(b)) for i in range(len(group)) for b in group[i + 1 :])
    size = np.bincount(owner, minlength=len(names))
    same = [(a, b) for (a, b), count in shared.items() if count >= max(3, SAME_SHARE * min(size[a], size[b]))]
    same = [pair for pair in same[:MOST_PAIRS] if _look_alike(sources, first, pair)]
    crossing = [(a, b) for a, b in same if held[a] != held[b]]
    if crossing:
        yield Finding(
            "train_val_overlap",
            _pairs(names, crossing[:1]),
            f"{len(crossing)} held-out episodes are also trained on: {_pairs(names, crossing[:3])}",
            "error",
            {"pairs": [(names[a], names[b]) for a, b in crossing[:50]], "count": len(crossing)},
            "remove the copies: a validation score on them is of memory.",
        )
    inside = [pair for pair in same if pair not in set(crossing)]
    if inside:
        yield Finding(
            "duplicate_episodes",
            _pairs(names, inside[:1]),
            f"{len(inside)} pairs of episodes hold the same rows: {_pairs(names, inside[:3])}",
            "warning",
            {"pairs": [(names[a], names[b]) for a, b in inside[:50]], "count": len(inside)},
            "remove the copies, or they weigh more than the rest.",
        )


def _look_alike(sources: Sequence[Prints], first: np.ndarray, pair: tuple[int, int]) -> bool:
    """Whether the pictures at shared rows are the same too: a scripted arm may move the same way in another scene."""
    sides = []
    for number in pair:
        which = int(np.searchsorted(first, number, side="right")) - 1
        source, place = sources[which], number - int(first[which])
        sides.append((source.sample, int(source.index_E[place]), source.steps(place)))
    (one, a, steps_a), (two, b, steps_b) = sides
    for camera in set(one.dataset.cameras) & set(two.dataset.cameras):
        at_a, at_b = ({int(step): k for k, step in enumerate(s.dataset.episode(i).cameras[camera].step)} for s, i in ((one, a), (two, b)))
        shared = [(at_a[steps_a[h]], at_b[steps_b[h]]) for h in steps_a if h in steps_b and steps_a[h] in at_a and steps_b[h] in at_b]
        for i, j in sorted(shared)[:: max(len(shared) // 3, 1)]:
            apart = np.abs(one.thumbnail(a, camera, i) - two.thumbnail(b, camera, j))
            if float(np.quantile(apart, 0.995)) > PICTURES_APART:
                return False
    return True


def _pairs(names: list[str], pairs: list[tuple[int, int]]) -> str:
    return ", ".join(f"{names[a]} = {names[b]}" for a, b in pairs)


def _idle(sample: Sampled) -> Iterator[Finding]:
    if not sample.moves:
        return
    speeds = [_speed(sample, trace) for trace in sample.traces if trace.state is not None and len(trace.state) > 4]
    if not speeds:
        return
    fast = float(np.quantile(np.concatenate(speeds), 0.9))
    if fast <= 0:
        return
    resting = [speed < IDLE_SPEED * fast for speed in speeds]
    share = float(np.concatenate(resting).mean())
    ends = [float(np.argmin(r) + np.argmin(r[::-1])) / len(r) if not r.all() else 1.0 for r in resting]
    if share > IDLE_NOTE:
        yield Finding(
            "idle",
            f"{sample.name}: state, action",
            f"in {share:.0%} of the steps neither the robot nor its command moves ({np.mean(ends):.0%} at the ends of episodes)",
            "warning" if share > IDLE_WARNING else "note",
            {"share": share, "share_at_ends": float(np.mean(ends))},
            "cut resting ends off when converting: a policy learns to stay.",
        )


def _speed(sample: Sampled, trace: StoredEpisode) -> np.ndarray:
    """How fast state and action change, each number in its own usual motion; smoothed over 5 rows. float (steps - 1,)."""
    assert trace.state is not None and trace.action is not None and sample.action_space is not None
    total = np.zeros(len(trace.state) - 1)
    relative = np.concatenate([[f.frame != "absolute" and f.unit not in ROTATION_UNITS] * f.size for f in sample.action_space.fields])
    action = np.abs(np.diff(trace.action, axis=0))
    action[:, relative] = np.abs(trace.action[: len(action)])[:, relative]  # a step that is not zero asks for motion
    for change in (np.abs(np.diff(trace.state, axis=0)), action):
        usual = np.maximum(np.quantile(change, 0.95, axis=0), 0.2 * change.max(0))  # a lone jump is no measure, nor rounding noise
        total = total + (change / np.where(usual > 1e-9, usual, np.inf)).max(1)
    return np.convolve(np.pad(total, 2, mode="edge"), np.full(5, 0.2), "valid")


def _language(sample: Sampled) -> Iterator[Finding]:
    texts = Counter(span.text.strip() for trace in sample.traces for span in trace.spans)
    total = sum(texts.values())
    where = f"{sample.name}: instructions"
    if missing := texts.pop("", 0):
        yield Finding(
            "missing_language",
            where,
            f"{missing} of {total} instructions are empty",
            "warning" if missing > 0.2 * total else "note",
            {"empty": missing, "spans": total},
            "fill them in, or declare the dataset as video without language.",
        )
    if len(texts) == 1 and len(sample.traces) > 1:
        text = next(iter(texts))
        yield Finding(
            "one_instruction", where, f"'{text}' is the text of all {total - missing} instructions looked at", "note", {"text": text}
        )
    odd = {
        "special tokens": sum(count for text, count in texts.items() if "<" in text and ">" in text),
        "over 500 characters": sum(count for text, count in texts.items() if len(text) > 500),
    }
    for what, count in odd.items():
        if count:
            yield Finding(
                "odd_language", where, f"{count} of {total} instructions hold {what}", "warning", {what: count}, "clean the texts."
            )
