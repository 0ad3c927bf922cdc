"""Something-Something v2: 220,847 short clips of hands and objects, one webm each, with what happens in it.

    labels/train.json                    [{"id": "78687", "label": "holding potato next to vicks vaporub bottle",
                                           "template": "Holding [something] next to [something]", "placeholders": ["potato", ...]}, ...]
    20bn-something-something-v2/78687.webm

Layout: facebookresearch/SlowFast, slowfast/datasets/DATASET.md, and the dataset's own instructions (Goyal et al. 2017, arXiv:1706.04261).
The files were also published as `something-something-v2-train.json`. Research use only (Qualcomm's Data License Agreement).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vla.convert.raw import Unreadable
from vla.convert.safe import fill
from vla.convert.video import Caption, ClipReader, clip_id, clips_per_part, read_json
from vla.errors import SchemaError, UnknownName


class SomethingSomething(ClipReader):
    """`annotations`: the json, in the folder. `videos`: where a clip lies, by its id. A part is a run of clips (`clips_per_part`)."""

    texts = ("label", "template")

    def __init__(
        self,
        source: str | Path,
        annotations: str = "labels/train.json",
        videos: str = "20bn-something-something-v2/{id}.webm",
        **options: Any,
    ) -> None:
        super().__init__(source, **options)
        self.path, self.videos = self.source / annotations, videos
        self._rows: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_rows": []}

    def parts(self) -> Sequence[str]:
        count = len(self._table())
        return [f"{first:07d}" for first in range(0, count, clips_per_part(count))]

    def captions(self, part: str) -> Iterator[Caption | Unreadable]:
        if part not in self.parts():
            raise UnknownName("part", part, self.parts()[:20])
        rows = self._table()
        for number, row in enumerate(rows[int(part) : int(part) + clips_per_part(len(rows))], int(part)):
            if not isinstance(row, dict) or not isinstance(row.get("id"), str | int) or not isinstance(row.get("label"), str):
                yield Unreadable(clip_id(f"row-{number}"), f"{self.path}: entry {number} has no id and label (test.json has no labels)")
                continue
            objects = row.get("placeholders", [])
            facts = {"placeholders": [str(each) for each in objects] if isinstance(objects, list) else []}
            texts = {"label": row["label"], "template": str(row.get("template", ""))}
            yield Caption(str(row["id"]), fill(self.videos, {"id": str(row["id"])}), texts, facts=facts)

    def _table(self) -> list[Any]:
        if not self._rows:
            rows = read_json(self.path)
            if not isinstance(rows, list) or not rows:
                raise SchemaError(f"{self.path} is no list of clips")
            self._rows = rows
        return self._rows
