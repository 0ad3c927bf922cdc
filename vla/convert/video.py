"""Video of people: clips with words, out of files that are longer or one clip each. What the readers of this kind share.

A clip becomes one episode without columns: its pictures are `video` (a `Clip`, decoded when they are asked for), its words stand under
the format's own names, its place in the file among its facts. Hands and cameras, where a format has them, are columns. What supervision
that is (none, tracks, hands) is for the card to say.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla.convert.lanes import LANES
from vla.convert.raw import Clip, Feature, RawEpisode, Reader, Size, Unreadable
from vla.convert.safe import inside, video_facts
from vla.errors import Damaged, SchemaError, UserError

PICTURES = "video"
LONGEST_S = 60.0
"""A longer clip is divided, so that memory stays that of a minute of pictures."""
MAX_JSON_BYTES = 1 << 30
CLIPS_PER_PART = 256
"""At most, in tables that are divided by their rows."""


@dataclass(frozen=True)
class Caption:
    """A stretch of a video and its words. `name`: unique in the dataset. `video`: path inside the dataset. `stop_s`: None for the end."""

    name: str
    video: str
    texts: Mapping[str, str]
    start_s: float = 0.0
    stop_s: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class ClipReader(Reader):
    """Options of every reader of this kind: `rate_hz`, pictures per second (default: every frame of the video); `longest_s`, beyond
    which a clip is divided into episodes `<name>-0`, `<name>-1`, ... with the same words."""

    texts: tuple[str, ...] = ()
    """Names of the texts that captions have."""
    slack_s: float = 1.0
    """A caption may end so long after its video, as tables are rounded; more says that it is of another video, or in another unit."""

    def __init__(self, source: str | Path, rate_hz: float | str | None = None, longest_s: float = LONGEST_S) -> None:
        self.source = Path(source)
        if not self.source.is_dir():
            raise UserError(f"no folder {self.source}")
        self.asked_hz = None if rate_hz is None else Fraction(str(rate_hz))
        if (self.asked_hz is not None and self.asked_hz <= 0) or not longest_s > 0:
            raise UserError(f"rate_hz {rate_hz} and longest_s {longest_s} must be positive")
        self.longest_s = float(longest_s)

    @abstractmethod
    def captions(self, part: str) -> Iterator[Caption | Unreadable]:
        """The captions of a part, in order."""

    def features(self) -> Sequence[Feature]:
        self.parts()
        return [Feature(PICTURES, "pictures", "video"), *(Feature(name, "text") for name in self.texts)]

    def columns(self, caption: Caption, path: Path, time_s: np.ndarray) -> dict[str, np.ndarray]:
        """What a format says of the frames of the video `path` that are shown at these times, a row each. SchemaError where it does not."""
        return {}

    def size(self) -> Size:
        """Bytes of all files in the folder; a walk over their names."""
        return Size(sum(path.stat().st_size for path in self.source.rglob("*") if path.is_file()))

    def episodes(self, part: str) -> Iterator[RawEpisode | Unreadable]:
        for caption in self.captions(part):
            if isinstance(caption, Unreadable):
                yield caption
                continue
            try:
                yield from self._clips(caption)
            except (Damaged, SchemaError) as error:  # this video is missing, no video, or outside; the next may be good
                yield Unreadable(clip_id(caption.name), str(error))

    def _clips(self, caption: Caption) -> Iterator[RawEpisode]:
        path = inside(self.source, caption.video)
        facts = video_facts(path)
        if (problem := _badly_placed(caption, facts.duration_s, self.slack_s)) is not None:
            raise SchemaError(f"{path}: '{caption.name}' {problem}")
        ends = [end for end in (caption.stop_s, facts.duration_s) if end is not None]
        rate_hz = min(self.asked_hz or facts.rate_hz, facts.rate_hz)
        # Frame k of the grid lasts from k / rate to (k + 1) / rate; the clip has those that begin in it, but one at least.
        first = math.ceil(caption.start_s * rate_hz - 1e-6)
        last = max(math.ceil(min(ends) * rate_hz - 1e-6), first + 1)
        longest = max(int(self.longest_s * rate_hz), 1)
        pieces = [(low, min(low + longest, last)) for low in range(first, last, longest)]
        for number, (low, high) in enumerate(pieces):
            name = caption.name if len(pieces) == 1 else f"{caption.name}-{number}"
            # In the middle of the video's frame, where no rounding leads to its neighbour.
            half_s = 0.5 / float(facts.rate_hz)
            time_s = np.arange(low, high) / float(rate_hz) + half_s
            if facts.duration_s is not None:
                time_s = np.minimum(time_s, facts.duration_s - half_s)
            yield RawEpisode(
                id=clip_id(name),
                steps=high - low,
                columns=self.columns(caption, path, time_s),
                texts={key: [text] for key, text in caption.texts.items()},
                pictures={PICTURES: Clip(np.arange(high - low), path, time_s)},
                rate_hz=rate_hz,
                facts={**caption.facts, "video": caption.video, "start_s": float(low / rate_hz), "stop_s": float(high / rate_hz)},
            )


def clips_per_part(count: int) -> int:
    """Of a table with so many rows: one process reads a part, so a short table has small ones, several for each lane. By the table alone,
    since parts are the order in which episodes are stored."""
    return min(max(count // (4 * LANES), 1), CLIPS_PER_PART)


def clip_id(name: str) -> str:
    """A name as an id: letters, digits, `_` and `-`; whatever else it held, or its length, is replaced by a digest, so that two names
    stay two."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name).lstrip("-") or "clip"
    if plain == name and len(name) <= 80:
        return name
    return f"{plain[:70]}_{hashlib.blake2b(name.encode(errors='surrogateescape'), digest_size=4).hexdigest()}"


def number(value: Any, where: str) -> float:
    """A finite number of a table; SchemaError, with the place, for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise SchemaError(f"{where}: {value!r} is no number of seconds")
    return found


def read_table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a csv that has these columns, one after the other. SchemaError, with file and line, where it is none."""
    import csv

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = sorted(set(columns) - set(rows.fieldnames or ()))
            if missing:
                raise SchemaError(f"{path}: no column {', '.join(missing)}; it has {', '.join(rows.fieldnames or ()) or 'none'}")
            for row in rows:
                if None in row or None in row.values():
                    raise SchemaError(f"{path}, line {rows.line_num}: {len(rows.fieldnames or ())} columns expected")
                yield row
    except OSError as error:
        raise SchemaError(f"no table {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} is no csv ({error})") from error


def read_json(path: Path) -> Any:
    """A whole JSON file of annotations. SchemaError where it is none, or too large to be one."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SchemaError(f"{path} has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read at once")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SchemaError(f"no annotations {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"{path} is no JSON ({error})") from error


def _badly_placed(caption: Caption, duration_s: float | None, slack_s: float) -> str | None:
    if not caption.start_s >= 0:
        return f"begins at {caption.start_s:g} s"
    if caption.stop_s is not None and not caption.stop_s > caption.start_s:
        return f"ends at {caption.stop_s:g} s and begins at {caption.start_s:g} s"
    if duration_s is None and caption.stop_s is None:
        return "has no end, and the video states no duration; give one"
    if duration_s is not None and caption.start_s >= duration_s:
        return f"begins at {caption.start_s:g} s; the video lasts {duration_s:.3f} s"
    if duration_s is not None and caption.stop_s is not None and caption.stop_s > duration_s + slack_s:
        return f"ends at {caption.stop_s:g} s; the video lasts {duration_s:.3f} s"
    return None
