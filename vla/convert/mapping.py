"""A raw episode and a card -> an episode of ours, or the reason why there is none.

Everything about the dataset is the card's; everything here holds for all of them. Nothing that is missing is filled in, and nothing
is left out uncounted.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from vla.convert.card import Card
from vla.convert.fields import BadEpisode, column, compute
from vla.convert.pictures import Encoding, jpegs, mp4_as_it_is, steps_of
from vla.convert.raw import Feature, Pictures, RawEpisode
from vla.convert.vocabulary import TIME_UNITS, FieldMap, Instruction, Where
from vla.data.gop import as_video
from vla.embodiment import Field, Space
from vla.errors import SchemaError
from vla.types import Episode, Frames, Span, VideoFrames

MAX_TEXT = 10_000
"""Characters of an instruction, or of reasoning; more is neither."""
RATE_TOLERANCE = 0.1
"""The median time between steps may differ by this much from what the card's rate says."""


@dataclass(frozen=True)
class Mapped:
    """`episode`: None where the card drops it. `dropped`: what the card left out -> how many (`steps: ...`, `episodes: ...`)."""

    episode: Episode | None
    dropped: Mapping[str, int] = field(default_factory=dict)


class Mapper:
    """`Mapper(card).episode(raw)`. `rate_hz`: what the format states, for cards that leave it open. Survives pickling."""

    def __init__(self, card: Card, encoding: Encoding | None = None, rate_hz: Fraction | None = None) -> None:
        self.card, self.encoding = card, encoding or Encoding()
        self.rate_hz = card.rate_hz or rate_hz

    def episode(self, raw: RawEpisode) -> Mapped:
        """BadEpisode, with its cause, where the episode is not what the card says."""
        dropped: Counter[str] = Counter()
        if reason := self._drops_episode(raw):
            return Mapped(None, {f"episodes: {reason}": 1})
        if not raw.steps:  # a recording that was begun and not made; nothing of it can be other than the card says
            return Mapped(None, {f"episodes: shorter than {self.card.drop.shorter_than} steps": 1})
        rate_hz = self._rate(raw)
        state, action = self._rows(raw)
        texts = _texts(raw, self.card.instruction, "instruction")
        if texts is None:
            return Mapped(None, {"episodes: no instruction": 1})
        reasoning = _texts(raw, self.card.reasoning, "reasoning") if self.card.reasoning else [[""]]
        if reasoning is None:
            return Mapped(None, {"episodes: no reasoning": 1})
        keep = self._kept_steps(raw, action, dropped)
        if len(keep) < self.card.drop.shorter_than or not len(keep):
            return Mapped(None, {f"episodes: shorter than {self.card.drop.shorter_than} steps": 1, **dropped})
        time_s = _closed_up(self._time_s(raw, rate_hz), keep, rate_hz)
        episode = Episode(
            id=raw.id,
            embodiment=self.card.robot.name if self.card.robot else "",
            rate_hz=rate_hz,
            supervision=self.card.supervision,
            instructions=_spans(texts, keep),
            time_s=time_s,
            frames=self.frames(raw, keep),
            state=_packed(self.card.state_space, state, keep),
            action=_packed(self.card.action_space, action, keep),
            licence=self.card.licence,
            source=self.card.source.name,
            info=_facts(raw.facts),
            reasoning=tuple(span for span in _spans(reasoning, keep) if span.text),
        )
        return Mapped(episode, dropped)

    def frames(self, raw: RawEpisode, keep: np.ndarray) -> dict[str, Frames | VideoFrames]:
        """Pictures of each camera at the steps `keep`, as they are stored. A subclass may leave them where they are."""
        frames: dict[str, Frames | VideoFrames] = {}
        for role, camera in self.card.cameras.items():
            pictures, seen, steps = self.chosen(raw, keep, role)
            where = f"camera '{role}' ({camera.column})"
            mp4 = mp4_as_it_is(pictures, seen, camera, self.encoding, where) if camera.store == "mp4" else None
            if mp4 is not None:
                frames[role] = VideoFrames(steps, mp4)
                continue
            stored = Frames(steps, tuple(jpegs(pictures, seen, camera, self.encoding, where)))
            frames[role] = as_video(stored, self._rate(raw)) if camera.store == "mp4" else stored
        return frames

    def chosen(self, raw: RawEpisode, keep: np.ndarray, role: str) -> tuple[Pictures, np.ndarray, np.ndarray]:
        """(a camera's pictures, positions of those that stay, int64 steps at which these are seen, counted in `keep`)."""
        camera = self.card.cameras[role]
        where, pictures = f"camera '{role}' ({camera.column})", raw.pictures.get(camera.column)
        if pictures is None:
            raise BadEpisode("schema", f"{where} is missing")
        step = steps_of(pictures, raw.steps, where)
        _, seen, steps = np.intersect1d(step, keep, assume_unique=True, return_indices=True)
        return pictures, seen[:: camera.every], steps[:: camera.every].astype(np.int64)

    def _rate(self, raw: RawEpisode) -> Fraction:
        rate_hz = self.card.rate_hz or raw.rate_hz or self.rate_hz
        if rate_hz is None:
            raise SchemaError(f"{self.card.name}: the format states no rate; write `rate_hz` into the card")
        return rate_hz

    def _rows(self, raw: RawEpisode) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The fields of state and action, as long as the shortest: `next` and `difference` have no last row."""
        space = self.card.state_space
        state = {name: _field("state", name, how, _of(space, name), raw, {}) for name, how in self.card.state.items()}
        turns = {name: (_of(space, name), values) for name, values in state.items()}
        fields = self.card.action
        action = {name: _field("action", name, how, _of(self.card.action_space, name), raw, turns) for name, how in fields.items()}
        return state, action

    def _drops_episode(self, raw: RawEpisode) -> str:
        for where in self.card.drop.episodes:
            if _where(where, raw, whole=True).any():
                return where.why
        return ""

    def _kept_steps(self, raw: RawEpisode, action: Mapping[str, np.ndarray], dropped: Counter[str]) -> np.ndarray:
        """Numbers of the steps that stay, int64, rising."""
        drop, keep = self.card.drop, np.ones(raw.steps, bool)

        def out(gone: np.ndarray, why: str) -> None:
            if count := int((gone & keep).sum()):
                dropped[f"steps: {why}"] += count
            keep[gone] = False

        number = np.arange(raw.steps)
        if any(how.following for how in (*self.card.state.values(), *self.card.action.values())):
            out(number >= raw.steps - 1, "the last, which nothing follows")
        out(number < drop.first_steps, "first of the episode")
        out(number >= raw.steps - drop.last_steps, "last of the episode")
        for where in drop.steps:
            out(_where(where, raw, whole=False), where.why)
        if drop.idle:
            still = np.ones(raw.steps, bool)
            for name in drop.idle.fields:
                rows = action[name]
                still[: len(rows)] &= (np.abs(rows) <= drop.idle.at_most).all(-1)
            out(still, "idle")
        return np.flatnonzero(keep)

    def _time_s(self, raw: RawEpisode, rate_hz: Fraction) -> np.ndarray | None:
        """The clock of every step, from 0; None to count steps by the rate."""
        how = self.card.time
        if how is not None and how.by_rate:
            return None
        if how is not None:
            found = raw.columns.get(how.column)
            if found is None or np.asarray(found).size != raw.steps or np.asarray(found).dtype.kind not in "iuf":
                raise BadEpisode("schema", f"time '{how.column}' is missing, or no number for each of {raw.steps} steps")
            stamps = np.asarray(found).reshape(-1)
            if stamps.dtype.kind in "iu":  # unsigned or narrow, a step back would be a leap forward
                stamps = stamps.astype(np.int64)
            # Nanoseconds since 1970 lose a quarter of a microsecond in float64: subtract first.
            time_s = (stamps - stamps[0]).astype(np.float64) * TIME_UNITS[how.unit] if len(stamps) else stamps.astype(np.float64)
        elif raw.time_s is not None:
            time_s = np.asarray(raw.time_s, np.float64) - (raw.time_s[0] if len(raw.time_s) else 0.0)
        else:
            return None
        return _checked_clock(time_s, raw.steps, rate_hz)


def check_against(card: Card, features: Sequence[Feature]) -> list[str]:
    """Names of the source that the card neither reads nor mentions. SchemaError, with what is near, for what the source lacks."""
    known = {feature.name: feature for feature in features}
    facts = {where.column for where in card.drop.episodes}  # may be facts of an episode, which no feature announces
    for name in sorted(card.wanted - set(known) - facts):
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise SchemaError(f"{card.name}: the source has no '{name}', which the card reads. Near it: {', '.join(near)}.")
    for role, camera in card.cameras.items():
        feature = known[camera.column]
        if feature.looks_like_pictures:
            fix = "Write them as uint8: (255 * x).round(), where they lie in 0..1."
            shape = " x ".join(map(str, feature.shape))
            raise SchemaError(
                f"{card.name}: camera '{role}': '{camera.column}' holds {feature.dtype} of {shape}; pictures are uint8 (0..255). {fix}"
            )
        if feature.kind != "pictures":
            raise SchemaError(f"{card.name}: camera '{role}': '{camera.column}' is a {feature.kind}, not pictures")
    for kind in ("state", "action"):
        for name, how in getattr(card, kind).items():
            _check_width(f"{card.name}: {kind}: {name}", how, known)
    return sorted(set(known) - card.wanted - set(card.unused))


def _check_width(where: str, how: FieldMap, known: Mapping[str, Feature]) -> None:
    width = 0
    for name in how.columns:
        feature = known[name]
        if feature.kind != ("text" if how.packed else "column"):
            raise SchemaError(f"{where}: '{name}' is {feature.kind}; {'`packed` reads text' if how.packed else 'a field reads columns'}")
        if how.packed or None in feature.shape:
            return  # known when it is read
        width += math.prod(size for size in feature.shape if size is not None)
    highest = max((n if n >= 0 else -n - 1 for n in how.index or ()), default=-1)
    reach = max((abs(n) for n in how.slice or () if n is not None), default=0)
    if how.columns and max(highest + 1, reach) > width:
        raise SchemaError(f"{where}: '{', '.join(how.columns)}' has {width} numbers; the card takes {how.index or how.slice}")


def _of(space: Space | None, name: str) -> Field:
    assert space is not None  # the card was checked
    return space.field(name)


def _field(kind: str, name: str, how: FieldMap, of: Field, raw: RawEpisode, state: Mapping[str, tuple[Field, np.ndarray]]) -> np.ndarray:
    try:
        return compute(how, of, raw, state)
    except BadEpisode as error:
        raise BadEpisode(error.cause, f"{kind} '{name}': {error}") from error


def _packed(space: Space | None, parts: Mapping[str, np.ndarray], keep: np.ndarray) -> np.ndarray | None:
    return None if space is None else space.pack({name: values[keep] for name, values in parts.items()})


def _where(where: Where, raw: RawEpisode, whole: bool) -> np.ndarray:
    """Which steps the filter takes out, bool (steps,); of a whole episode's fact, bool (1,)."""
    if whole and where.column in raw.facts:
        values = np.array([raw.facts[where.column]])
    elif where.column in raw.texts:
        values = np.array(raw.texts[where.column])
    else:
        values = column(raw, where.column)
        if values.shape[1] != 1:
            raise BadEpisode("schema", f"filter: '{where.column}' has {values.shape[1]} numbers a step; it must be one")
        values = values[:, 0]
    if not whole and len(values) != raw.steps:
        values = np.repeat(values, raw.steps)
    if where.equals is not None:
        return values == (float(where.equals) if values.dtype.kind == "f" and not isinstance(where.equals, str) else where.equals)
    if values.dtype.kind not in "fiub":
        raise BadEpisode("schema", f"filter: '{where.column}' is no number")
    return values < where.below if where.below is not None else values > where.above


def _facts(value: Any) -> Any:
    """Facts for people as JSON holds them: recorders write NaN for what was not measured, and texts in encodings of their own."""
    if isinstance(value, Mapping):
        return {_facts(str(key)): _facts(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_facts(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _checked_clock(time_s: np.ndarray, steps: int, rate_hz: Fraction) -> np.ndarray:
    if time_s.shape != (steps,):
        raise BadEpisode("schema", f"{time_s.shape} times for {steps} steps")
    if not np.isfinite(time_s).all():
        raise BadEpisode("nonfinite", f"the time of step {int(np.flatnonzero(~np.isfinite(time_s))[0])} is NaN or infinite")
    apart = np.diff(time_s)
    if (apart <= 0).any():
        step = int(np.flatnonzero(apart <= 0)[0]) + 1
        raise BadEpisode("time", f"the clock does not rise at step {step} ({time_s[step - 1]:.6f} s, then {time_s[step]:.6f} s)")
    if len(apart) and abs(float(np.median(apart)) * float(rate_hz) - 1) > RATE_TOLERANCE:
        raise BadEpisode("time", f"by its clock it runs at {1 / float(np.median(apart)):.4g} Hz; the card says {float(rate_hz):.4g}")
    return time_s


def _closed_up(time_s: np.ndarray | None, keep: np.ndarray, rate_hz: Fraction) -> np.ndarray:
    """The times of the kept steps from 0, without those of dropped ones between them."""
    if time_s is None:
        return np.arange(len(keep)) / float(rate_hz)
    lasts = np.append(np.diff(time_s), 1 / float(rate_hz))[keep]
    return np.concatenate([[0.0], np.cumsum(lasts[:-1])])


def _texts(raw: RawEpisode, how: Instruction, what: str) -> list[list[str]] | None:
    """Paraphrases, each one text or one per step; None where the card drops an episode without any."""
    if how.text:
        return [[how.text]]
    rows = [_cleaned(_text_column(raw, name, how.codes), how.replace, what) for name in how.columns]
    if how.first_of:
        length = max(map(len, rows))
        wide = [row if len(row) == length else row * length for row in rows]
        rows = [[next((text for text in choices if text), "") for choices in zip(*wide, strict=True)]]
    rows = [row for number, row in enumerate(rows) if any(row) and row not in rows[:number]]
    if rows:
        return rows
    if how.missing == "refuse":
        raise BadEpisode("language", f"no {what} in {', '.join(how.columns)}")
    return None if how.missing == "drop" else [[""]]


def _text_column(raw: RawEpisode, name: str, codes: bool) -> list[str]:
    if codes:
        rows = column(raw, name)
        if not ((rows >= 0) & (rows < 0x110000) & (rows == np.floor(rows))).all():
            raise BadEpisode("language", f"'{name}' holds no character codes")
        known: dict[bytes, str] = {}  # mostly the same at every step
        return [known.setdefault(row.tobytes(), "".join(chr(int(code)) for code in row if code)) for row in rows]
    texts = raw.texts.get(name)
    if texts is None or len(texts) not in (1, raw.steps):
        raise BadEpisode("schema", f"text '{name}' is missing, or neither one nor one for each of {raw.steps} steps")
    return list(texts)


def _cleaned(texts: list[str], replace: Mapping[str, str], what: str) -> list[str]:
    known: dict[str, str] = {}
    for text in texts:
        if text in known:
            continue
        clean = text
        for old, new in replace.items():
            clean = clean.replace(old, new)
        clean = clean.strip().strip("\0").strip()
        try:
            clean.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadEpisode("language", f"a text of the {what} is no UTF-8") from error
        if len(clean) > MAX_TEXT:
            raise BadEpisode("language", f"{what} of {len(clean)} characters; at most {MAX_TEXT}")
        known[text] = clean
    return [known[text] for text in texts]


def _spans(paraphrases: Sequence[Sequence[str]], keep: np.ndarray) -> tuple[Span, ...]:
    """Runs of equal text over the steps `keep`; a text for the whole episode is one span."""
    spans, steps = [], len(keep)
    for row in paraphrases:
        texts = row if len(row) == 1 else [row[i] for i in keep]
        if len(texts) == 1:
            spans.append(Span(texts[0], 0, steps))
            continue
        starts = [0, *(i for i in range(1, steps) if texts[i] != texts[i - 1])]
        spans += [Span(texts[a], a, b) for a, b in zip(starts, [*starts[1:], steps], strict=True)]
    return tuple(spans)
