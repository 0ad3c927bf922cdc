"""Ego4D: days of first-person video, narrated sentence by sentence at points in time.

    v2/annotations/narration.json    {video_uid: {"narration_pass_1": {"narrations": [{"timestamp_sec": 3.3, "narration_text":
                                      "#C C picks the spanner", ...}, ...], "summaries": [...]}, "narration_pass_2": ..., "status": ...}}
    v2/full_scale/VIDEO_UID.mp4

Schema: EGO4D/docs, docs/data/annotations-schemas.md (Narrations). A narration has a time and no length. The clip around it is EgoVLP's
(Lin et al. 2022, arXiv:2206.01670, section 3.1): t +- beta / (2 alpha), where beta is the mean distance of narrations in that video and
alpha = 4.9 their mean over all videos, so about a second; `window_s` gives a fixed length. Grauman et al. 2022 (arXiv:2110.07058);
Ego4D's own licence agreement.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla.convert.raw import Unreadable
from vla.convert.safe import fill
from vla.convert.video import Caption, ClipReader, clip_id, number
from vla.errors import SchemaError, UnknownName, UserError

EGOVLP_ALPHA = 4.9
PASSES = ("narration_pass_1", "narration_pass_2")
MAX_VIDEO_BYTES = 64 << 20
"""Narrations of one video; the largest have under one megabyte."""
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)


class Ego4D(ClipReader):
    """`annotations`: narration.json, in the folder. `videos`: where a video lies. A part is a video; one is read at a time, of a file that
    holds millions of narrations."""

    texts = ("narration_text",)
    slack_s = math.inf  # a window around a moment, cut at the ends of the video

    def __init__(
        self,
        source: str | Path,
        annotations: str = "v2/annotations/narration.json",
        videos: str = "v2/full_scale/{video_uid}.mp4",
        window_s: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(source, **options)
        if window_s is not None and not window_s > 0:
            raise UserError(f"window_s {window_s} must be positive")
        self.path, self.videos, self.window_s = self.source / annotations, videos, window_s
        self._places: dict[str, tuple[int, int]] = {}

    def parts(self) -> Sequence[str]:
        if not self._places:
            self._places = object_places(self.path)
        return list(self._places)

    def captions(self, part: str) -> Iterator[Caption | Unreadable]:
        if part not in self.parts():
            raise UnknownName("part", part, self.parts()[:20])
        start, stop = self._places[part]
        if stop - start > MAX_VIDEO_BYTES:
            raise SchemaError(f"{self.path}: '{part[:80]}' has {stop - start} bytes; at most {MAX_VIDEO_BYTES}")
        with self.path.open("rb") as file:
            file.seek(start)
            try:
                record = json.loads(file.read(stop - start))
            except (ValueError, RecursionError) as error:
                raise SchemaError(f"{self.path}: '{part[:80]}' is no JSON ({error})") from error
        for name in PASSES:
            told = record.get(name) if isinstance(record, Mapping) else None
            rows = told.get("narrations") if isinstance(told, Mapping) else None
            if isinstance(rows, list):
                yield from self._pass(part, name, rows)

    def _pass(self, uid: str, name: str, rows: list[Any]) -> Iterator[Caption | Unreadable]:
        times: list[float | SchemaError] = []
        for row in rows:
            try:
                times.append(number(row.get("timestamp_sec") if isinstance(row, Mapping) else None, f"{self.path}: {uid}"))
            except SchemaError as error:
                times.append(error)
        window_s = self.window_s or _spacing_s([time for time in times if isinstance(time, float)]) / EGOVLP_ALPHA
        for index, (row, time) in enumerate(zip(rows, times, strict=True)):
            clip = f"{uid}-{name[-1]}-{index}"
            if isinstance(time, SchemaError) or not isinstance(row.get("narration_text"), str):
                yield Unreadable(clip_id(clip), f"narration {index} of {name} of {uid} lacks its time or text")
                continue
            facts = {"video_uid": uid, "pass": name, "timestamp_sec": time}
            start_s = max(time - window_s / 2, 0.0)
            texts = {"narration_text": row["narration_text"]}
            yield Caption(clip, fill(self.videos, {"video_uid": uid}), texts, start_s, time + window_s / 2, facts)


def object_places(path: Path) -> dict[str, tuple[int, int]]:
    """Where the values of a JSON file's outermost object lie: key -> (first byte, end). The file is scanned, never held: narration.json
    has a gigabyte. SchemaError where it is no whole object of objects."""
    places: dict[str, tuple[int, int]] = {}
    try:
        if not path.stat().st_size:
            raise SchemaError(f"{path} is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            depth, key, start, text = 0, "", 0, b""
            for token in _TOKEN.finditer(data):
                kind = token.group()[:1]
                if kind == b'"':
                    text = token.group() if depth == 1 else b""
                elif kind == b":" and depth == 1:
                    key = json.loads(text)
                elif kind in b"{[":
                    start = token.start() if depth == 1 else start
                    depth += 1
                elif kind in b"}]":
                    depth -= 1
                    if depth == 1:
                        places[key] = (start, token.end())
                    if depth < 0:
                        break
    except OSError as error:
        raise SchemaError(f"no narrations {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} is no JSON ({error})") from error
    if depth or not places:
        raise SchemaError(f"{path} is no whole JSON object of videos; it is cut, or another file")
    return places


def _spacing_s(times: list[float]) -> float:
    """Mean distance of consecutive narrations; EgoVLP's mean where there are too few to say."""
    gaps = np.diff(np.sort(times))
    return float(gaps.mean()) if len(gaps) and gaps.mean() > 0 else EGOVLP_ALPHA
