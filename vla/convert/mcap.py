"""MCAP recordings (ROS 2 and JSON messages) -> steps at a fixed rate: at each tick, the latest value at or before it.

A file is an episode. Columns are named by topic and field: `joint_states/position`, `cmd_vel/linear/x`; texts (`instruction/data`)
likewise; pictures by their topic alone (`camera/image/compressed`). ROS 1 bags and rosbag2's sqlite files become MCAP with `mcap convert`,
the format's own tool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla.convert.mcap_records import TIMES, Message, flat, messages, picture_of
from vla.convert.raw import Encoded, Feature, Pictures, Pixels, RawEpisode, Reader, Size, Unreadable
from vla.convert.safe import episode_id
from vla.errors import Damaged, SchemaError, UnknownName, UserError

MAX_EPISODE_BYTES = 8 << 30
MAX_TICKS = 1_000_000
SAMPLED_MESSAGES = 20_000
"""So many messages are looked at to say what a recording holds."""
PICTURES = ("encoded", "pixels")
TREMBLE = 0.25
"""Share of a step that pictures may be late by and still belong to it."""
PER_TICK = 1.2
"""Pictures a step from which on each step has a new one, however they tremble."""


class Mcap(Reader):
    """A folder of .mcap files, or one. `rate_hz`: of the steps. `clock`: which time of a message counts: `log` (when it was received),
    `publish`, or `header` (its own stamp). The episode runs while all topics do: from the first value of the last to begin, and as much
    later as pictures are late at times, to the last of the first to end. A value older than `max_age_s` at a step, or a topic that ends so
    much before another, is damage, unless it is one of the `latched` topics, which are sent when they change (texts are, always)."""

    def __init__(
        self,
        source: str | Path,
        rate_hz: Any = None,
        clock: str = "log",
        max_age_s: float = 1.0,
        latched: Sequence[str] = (),
        files: str = "**/*.mcap",
    ) -> None:
        if clock not in TIMES:
            raise UnknownName("clock of messages", clock, TIMES)
        self.source, self.clock, self.max_age_s = Path(source), clock, float(max_age_s)
        self.rate_hz = None if rate_hz is None else Fraction(str(rate_hz))
        self.latched = frozenset(topic.strip("/") for topic in latched)
        if self.rate_hz is not None and not 0 < self.rate_hz <= 10_000:
            raise UserError(f"rate_hz {rate_hz} is no rate of steps")
        if self.source.is_file():
            self.files = {self.source.name: self.source}
        else:
            paths = sorted(self.source.glob(files)) if self.source.is_dir() else []
            self.files = {path.relative_to(self.source).as_posix(): path for path in paths}
        if not self.files:
            raise UserError(f"{source} holds no file like '{files}'")

    def features(self) -> Sequence[Feature]:
        part = next(iter(self.files))
        found: dict[str, Feature] = {}
        for number, message in enumerate(messages(self.files[part])):
            if number >= SAMPLED_MESSAGES:
                break
            for name, value in _values(message).items():
                found.setdefault(name, _feature(name, value))
        return list(found.values())

    def size(self) -> Size:
        return Size(sum(path.stat().st_size for path in self.files.values()), len(self.files))

    def parts(self) -> Sequence[str]:
        return list(self.files)

    def episodes(self, part: str) -> Iterator[RawEpisode | Unreadable]:
        if part not in self.files:
            raise UnknownName("part", part, list(self.files)[:20])
        if self.rate_hz is None:
            raise UserError(f"{self.source}: at which rate are the steps? Give the reader's option rate_hz (`reader: {{rate_hz: 20}}`)")
        try:
            episode: RawEpisode | Unreadable = self._episode(part, self.files[part])
        except (Damaged, SchemaError) as error:
            episode = Unreadable(episode_id(part), str(error))
        yield episode

    def _episode(self, part: str, path: Path) -> RawEpisode:
        tracks = self._tracks(path)
        start_ns, ticks = self._span(tracks, path)
        period_ns = 1_000_000_000 / self.rate_hz
        tick_ns = np.array([start_ns + round(step * period_ns) for step in range(ticks)], np.int64)
        columns: dict[str, np.ndarray] = {}
        texts: dict[str, Sequence[str]] = {}
        latest_of: dict[str, np.ndarray] = {}
        for name, track in tracks.items():
            latest = np.searchsorted(track.time_ns, tick_ns, side="right") - 1
            self._check_age(track, tick_ns, latest, f"{path}: {name}")
            if track.kind == "text":
                said = [track.values[i] for i in latest]
                texts[name] = said[:1] if len(set(said)) == 1 else said
            elif track.kind == "column":
                columns[name] = _stacked([track.values[i] for i in latest], f"{path}: {name}")
            else:
                latest_of[name] = latest
        pictures = self._pictures(tracks, latest_of)
        facts = {"file": part, "start_ns": int(start_ns), "orders": {name: list(t.order) for name, t in tracks.items() if t.order}}
        return RawEpisode(episode_id(part), ticks, columns, texts, pictures, (tick_ns - start_ns) / 1e9, facts=facts)

    def _pictures(self, tracks: Mapping[str, _Track], latest: Mapping[str, np.ndarray]) -> dict[str, Pictures]:
        """A picture is of the step at which it is first the latest. Cameras that take turns would have no step in common: where the slowest
        has one, the others are shown as they are known then, as a policy would see them. `latest`: the number of the picture at each step,
        int64 (steps,)."""
        new = {name: np.flatnonzero(np.diff(at, prepend=-1)) for name, at in latest.items()}
        anchors = min((new[name] for name in new if not tracks[name].latched), key=len, default=np.zeros(0, np.int64))
        found: dict[str, Pictures] = {}
        for name, own in new.items():
            steps = np.union1d(own, anchors)
            kind = Encoded if tracks[name].kind == "encoded" else Pixels
            found[name] = kind(steps, [tracks[name].values[i] for i in latest[name][steps]])
        return found

    def _tracks(self, path: Path) -> dict[str, _Track]:
        """What was recorded, by name, in the order of its times."""
        tracks: dict[str, _Track] = {}
        held = 0
        topics = None if self.wanted is None else frozenset(self.wanted)
        for message in messages(path, topics):
            time_ns = message.time_ns(self.clock)
            for name, value in _values(message).items():
                if self.wanted is not None and name not in self.wanted:
                    continue
                kind = _feature(name, value).dtype
                track = tracks.setdefault(name, _Track(kind, message.topic in self.latched))
                if kind != track.kind:  # JSON says nothing of types
                    raise SchemaError(f"{path}: {name} is {kind} at {time_ns} ns, and was {track.kind} before")
                track.add(time_ns, value, message.order, f"{path}: {name}")
                held += value.nbytes if isinstance(value, np.ndarray) else len(value)
                if held > MAX_EPISODE_BYTES:
                    raise Damaged(f"{path}: an episode of more than {MAX_EPISODE_BYTES} bytes; cut the recording")
        for name, track in tracks.items():
            track.close(f"{path}: {name}", must_rise=self.clock == "header")
        return tracks

    def _span(self, tracks: Mapping[str, _Track], path: Path) -> tuple[int, int]:
        """(time of the first tick in ns, number of ticks)."""
        live = {name: track for name, track in tracks.items() if not track.latched}
        if not live:
            raise SchemaError(f"{path} holds no topic that runs with the robot; it has {sorted(tracks)}")
        start = max(int(track.time_ns[0]) for track in tracks.values())
        start += _lag_ns([track.time_ns - start for track in live.values() if track.kind in PICTURES], self.rate_hz)
        ends = {name: int(track.time_ns[-1]) for name, track in live.items()}
        first, last = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
        if ends[last] - ends[first] > self.max_age_s * 1e9:
            raise Damaged(f"{path}: '{first}' ends {(ends[last] - ends[first]) / 1e9:.1f} s before '{last}'; if it is latched, say so")
        ticks = int((ends[first] - start) * self.rate_hz / 1_000_000_000) + 1 if ends[first] >= start else 0
        if ticks > MAX_TICKS:
            raise Damaged(f"{path}: {ticks} steps; times from {start} to {ends[first]} ns are not of one recording")
        return start, ticks

    def _check_age(self, track: _Track, tick_ns: np.ndarray, latest: np.ndarray, where: str) -> None:
        if track.latched or not len(tick_ns):
            return
        age_s = (tick_ns - track.time_ns[latest]) / 1e9
        if age_s.max() > self.max_age_s:
            raise Damaged(f"{where} is {age_s.max():.2f} s old at step {int(age_s.argmax())}; at most {self.max_age_s} s (`max_age_s`)")


def _lag_ns(since_start: Sequence[np.ndarray], rate_hz: Fraction) -> int:
    """How much later ticks have to be, in ns, so that pictures which come once a tick and tremble around it are there at each. Else a tick
    would now and then see none, the next one two, of which one is lost; and a step without a picture of each camera is none to learn from.
    `since_start`: when the pictures of each camera were taken, int64 ns (N,)."""
    period_ns = 1e9 / float(rate_hz)
    late_ns = 0.0
    for time_ns in since_start:
        if len(time_ns) < 2 or np.median(np.diff(time_ns)) * PER_TICK < period_ns:
            continue  # so many that each tick has a new one
        after_ns = time_ns - np.floor(time_ns / period_ns) * period_ns
        late_ns = max(late_ns, after_ns[after_ns <= TREMBLE * period_ns].max(initial=0.0))
    return int(np.ceil(late_ns))


@dataclass
class _Track:
    """The values of one name. `kind`: column, text, encoded or pixels; `order`: the names of its numbers, where the message says them."""

    kind: str
    latched: bool
    times: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    order: tuple[str, ...] = ()
    time_ns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, time_ns: int, value: Any, order: tuple[str, ...], where: str) -> None:
        if self.kind == "column" and len(order) == np.size(value):
            if self.order and order != self.order:
                raise SchemaError(f"{where}: the names of its numbers change from {self.order[:8]} to {order[:8]}")
            self.order = order
        self.times.append(time_ns)
        self.values.append(value)

    def close(self, where: str, must_rise: bool) -> None:
        times = np.array(self.times, np.int64)
        if must_rise and (np.diff(times) < 0).any():
            late = int(np.flatnonzero(np.diff(times) < 0)[0]) + 1
            raise SchemaError(f"{where}: time goes back at message {late}, by {(times[late - 1] - times[late]) / 1e9:.3f} s")
        order = np.argsort(times, kind="stable")
        self.time_ns, self.values = times[order], [self.values[i] for i in order]
        self.latched = self.latched or self.kind == "text"


def _values(message: Message) -> dict[str, Any]:
    """Name -> number(s), text, picture bytes or pixels of one message."""
    picture = picture_of(message)
    return {message.topic: picture} if picture is not None else flat(message)


def _feature(name: str, value: Any) -> Feature:
    if isinstance(value, str):
        return Feature(name, "text", "text")
    if isinstance(value, bytes):
        return Feature(name, "pictures", "encoded")
    if value.dtype == np.uint8 and value.ndim >= 2:
        return Feature(name, "pictures", "pixels", value.shape)
    return Feature(name, "column", "column", value.shape)


def _stacked(values: list[np.ndarray], where: str) -> np.ndarray:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise SchemaError(f"{where} has {sorted(shapes)[:4]} numbers, which vary within the episode")
    return np.stack(values) if values else np.zeros((0,))
