"""Any video files, with a csv of captions: columns `path` and `text`, and where a file holds more than one clip `start_s` and `stop_s`.

    path,start_s,stop_s,text
    kitchen/day1.mp4,3.2,7.9,put the cup into the sink

Empty times mean the file's start and end. Further columns become facts of the episode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vla.convert.raw import Unreadable
from vla.convert.video import Caption, ClipReader, clip_id, number, read_table
from vla.errors import SchemaError, UnknownName

CLIPS_PER_PART = 256
TIMES = ("start_s", "stop_s")
_TIME_LIKE = re.compile(r"(start|begin|stop|end)(_?(s|sec|seconds|ms|time|timestamp|frame))?")
"""Columns that mean a time: one that nobody reads would make every caption one of the whole file."""


class VideoFolder(ClipReader):
    """A folder with `captions` (default: captions.csv), whose paths are relative to it. A part is a run of 256 rows."""

    texts = ("text",)

    def __init__(self, source: str | Path, captions: str = "captions.csv", **options: Any) -> None:
        super().__init__(source, **options)
        self.table = self.source / captions
        self._count: int | None = None

    def parts(self) -> Sequence[str]:
        if self._count is None:
            self._count = sum(1 for _ in self._rows())
        if not self._count:
            raise SchemaError(f"{self.table} has no rows")
        return [f"{first:07d}" for first in range(0, self._count, CLIPS_PER_PART)]

    def captions(self, part: str) -> Iterator[Caption | Unreadable]:
        if part not in self.parts():
            raise UnknownName("part", part, self.parts()[:20])
        first = int(part)
        for row, values in enumerate(self._rows()):
            if row >= first + CLIPS_PER_PART:
                return
            if row >= first:
                yield self._caption(row, values)

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
