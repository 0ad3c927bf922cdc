"""Any video files, with a csv of captions: columns `path` and `text`, and where a file holds more than one clip `start_s` and `stop_s`.

    path,start_s,stop_s,text
    kitchen/day1.mp4,3.2,7.9,put the cup into the sink

Empty times mean the file's start and end. Further columns become facts of the episode.

Points that were followed through a video (CoTracker, TAPIR) may lie beside it, one row per frame of the whole file, and become columns
under the names that they have there:

    reader: {tracks: "{stem}.npz"}      # kitchen/day1.mp4 -> kitchen/day1.npz
    np.savez("kitchen/day1.npz", tracks=tracks[0], visible=visible[0])      # (frames, points, 2) pixels, and (frames, points)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vla.convert.raw import Feature, Unreadable
from vla.convert.safe import fill, inside, video_times
from vla.convert.tracks import Tracks, tracks_of
from vla.convert.video import Caption, ClipReader, clip_id, clips_per_part, number, read_table
from vla.data.video import ROUNDING_S
from vla.errors import SchemaError, UnknownName

TIMES = ("start_s", "stop_s")
_TIME_LIKE = re.compile(r"(start|begin|stop|end)(_?(s|sec|seconds|ms|time|timestamp|frame))?")
"""Columns that mean a time: one that nobody reads would make every caption one of the whole file."""


class VideoFolder(ClipReader):
    """A folder with `captions` (default: captions.csv), whose paths are relative to it. A part is a run of rows (`clips_per_part`).
    `tracks`: the name, beside a video, of the npz with what was followed in it; `{stem}` is the video's own name."""

    texts = ("text",)

    def __init__(self, source: str | Path, captions: str = "captions.csv", tracks: str = "", **options: Any) -> None:
        super().__init__(source, **options)
        if tracks and (not tracks.endswith(".npz") or "{stem}" not in tracks):
            raise SchemaError(f"tracks '{tracks}': give the name of an npz beside each video, such as {{stem}}.npz")
        self.table, self.tracks = self.source / captions, tracks
        self._count: int | None = None

    def features(self) -> Sequence[Feature]:
        if not self.tracks:
            return super().features()
        first = next(self._rows())["path"]
        arrays = Tracks(self._beside(first)).arrays
        rows = [Feature(name, "column", str(values.dtype), tuple(values.shape[1:])) for name, values in arrays.items()]
        return [*super().features(), *rows]

    def columns(self, caption: Caption, path: Path, time_s: np.ndarray) -> dict[str, np.ndarray]:
        if not self.tracks:
            return {}
        begin_s = video_times(path)
        frame_N = np.searchsorted(begin_s, time_s + ROUNDING_S, side="right") - 1  # the frame that `images_at` shows then
        return tracks_of(self._beside(caption.video), self.wanted).at(frame_N.clip(min=0), len(begin_s))

    def _beside(self, video: str) -> Path:
        place = PurePosixPath(video)
        return inside(self.source, (place.parent / fill(self.tracks, {"stem": place.stem})).as_posix())

    def parts(self) -> Sequence[str]:
        return [f"{first:07d}" for first in range(0, self._length(), clips_per_part(self._length()))]

    def captions(self, part: str) -> Iterator[Caption | Unreadable]:
        if part not in self.parts():
            raise UnknownName("part", part, self.parts()[:20])
        first = int(part)
        for row, values in enumerate(self._rows()):
            if row >= first + clips_per_part(self._length()):
                return
            if row >= first:
                yield self._caption(row, values)

    def _length(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self._rows())
        if not self._count:
            raise SchemaError(f"{self.table} has no rows")
        return self._count

    def _rows(self) -> Iterator[dict[str, str]]:
        for row in read_table(self.table, ("path", "text")):
            if wrong := [name for name in row if _TIME_LIKE.fullmatch(name.lower()) and name not in TIMES]:
                raise SchemaError(f"{self.table}: column '{wrong[0]}' is not read; times are {' and '.join(TIMES)}, in seconds")
            yield row

    def _caption(self, row: int, values: dict[str, str]) -> Caption | Unreadable:
        name = f"{Path(values['path']).with_suffix('').as_posix().replace('/', '-')}-{row}"
        where = f"{self.table}, row {row + 1}"
        times = {key: values.get(key, "").strip() for key in TIMES}
        try:
            start_s = number(times["start_s"] or 0, where)
            stop_s = number(times["stop_s"], where) if times["stop_s"] else None
        except SchemaError as error:
            return Unreadable(clip_id(name), str(error))
        facts = {key: value for key, value in values.items() if key not in ("path", "text", *TIMES)}
        return Caption(name, values["path"], {"text": values["text"]}, start_s, stop_s, facts)
