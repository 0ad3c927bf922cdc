"""EPIC-KITCHENS-100: kitchen video from the head, each action with its narration, start and stop.

    EPIC_100_train.csv                     narration_id, participant_id, video_id, start_timestamp, stop_timestamp, narration, verb, ...
    EPIC-KITCHENS/P01/videos/P01_01.MP4    as its download script lays them

Columns: epic-kitchens/epic-kitchens-100-annotations, README.md. Folders: epic-kitchens/epic-kitchens-download-scripts, epic_downloader.py.
Damen et al. 2022, Rescaling Egocentric Vision (IJCV); CC-BY-NC-4.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vla.convert.raw import Unreadable
from vla.convert.safe import fill
from vla.convert.video import Caption, ClipReader, clip_id, read_table
from vla.errors import SchemaError, UnknownName

COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration", "verb", "noun")
_CLOCK = re.compile(r"(\d{1,3}):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


class EpicKitchens(ClipReader):
    """`annotations`: the csv, in the folder. `videos`: where a video lies, by any columns of the csv. A part is a video."""

    texts = ("narration", "verb", "noun")

    def __init__(
        self,
        source: str | Path,
        annotations: str = "EPIC_100_train.csv",
        videos: str = "EPIC-KITCHENS/{participant_id}/videos/{video_id}.MP4",
        **options: Any,
    ) -> None:
        super().__init__(source, **options)
        self.table, self.videos = self.source / annotations, videos
        self._rows: dict[str, list[dict[str, str]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_rows": {}}

    def parts(self) -> Sequence[str]:
        """Video ids. The table (77,000 rows) is held in memory, since its rows are not sorted by video."""
        if not self._rows:
            for row in read_table(self.table, COLUMNS):
                self._rows.setdefault(row["video_id"], []).append(row)
            if not self._rows:
                raise SchemaError(f"{self.table} has no rows")
        return list(self._rows)

    def captions(self, part: str) -> Iterator[Caption | Unreadable]:
        if part not in self.parts():
            raise UnknownName("part", part, self.parts()[:20])
        for row in self._rows[part]:
            name = row["narration_id"]
            try:
                start_s, stop_s = (_seconds(row[key], f"{self.table}: {name}") for key in ("start_timestamp", "stop_timestamp"))
            except SchemaError as error:
                yield Unreadable(clip_id(name), str(error))
                continue
            facts = {key: row[key] for key in ("narration_id", "participant_id", "video_id", "verb_class", "noun_class") if key in row}
            yield Caption(name, fill(self.videos, row), {key: row[key] for key in self.texts}, start_s, stop_s, facts)


def _seconds(clock: str, where: str) -> float:
    """`HH:mm:ss.SS` -> seconds."""
    found = _CLOCK.fullmatch(clock.strip())
    if found is None:
        raise SchemaError(f"{where}: '{clock}' is no time of the form 00:01:02.34")
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
