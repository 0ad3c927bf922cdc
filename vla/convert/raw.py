"""What a format reader gives: episodes as they were stored, before a card says what their numbers mean.

A reader holds no fact about any dataset or robot. It names columns as the format does and changes no value. `vla/convert/card.py`
holds the vocabulary that turns a `RawEpisode` into an `Episode`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """Pictures of one camera, still encoded (JPEG, PNG, ...): `data[i]` was seen at step `step[i]` (int64, rising)."""

    step: np.ndarray
    data: Sequence[bytes]


@dataclass(frozen=True)
class Pixels:
    """Pictures of one camera as arrays: `data[i]` is uint8 (H, W, 3) RGB or (H, W), seen at step `step[i]`. May be lazy (h5py)."""

    step: np.ndarray
    data: Sequence[np.ndarray]


@dataclass(frozen=True)
class Clip:
    """Pictures of one camera inside a video file: the frame shown at `time_s[i]` (float64, rising, of the file's own clock) was
    seen at step `step[i]`."""

    step: np.ndarray
    path: Path
    time_s: np.ndarray


Pictures = Encoded | Pixels | Clip


@dataclass(frozen=True)
class RawEpisode:
    """One episode as stored.

    `id`: unique in the dataset and the same in every run ([A-Za-z0-9_-], at most 80), usually part and number. `columns`: name ->
    (steps, ...) numbers or bools; names are the format's own, nested ones joined by '/' (`observation/state`). `texts`: name -> one
    string for the episode, or one per step (bytes that are no UTF-8 are kept as `surrogateescape` does). `pictures`: name ->
    pictures. `time_s`: float64 (steps,) where the format keeps a clock, else None (the card's rate makes one). `rate_hz`: where the
    format states one for each episode (a video's). `facts`: JSON-able facts of the episode (success, operator, file).
    """

    id: str
    steps: int
    columns: Mapping[str, np.ndarray]
    texts: Mapping[str, Sequence[str]]
    pictures: Mapping[str, Pictures]
    time_s: np.ndarray | None = None
    rate_hz: Fraction | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unreadable:
    """An episode that is there and cannot be read, although those after it can: counted as damaged, with its reason."""

    id: str
    detail: str


@dataclass(frozen=True)
class Feature:
    """What a column holds, for errors, cards and `vla new-robot`: kind is `column`, `text` or `pictures`; shape is of one step."""

    name: str
    kind: str
    dtype: str = ""
    shape: tuple[int | None, ...] = ()

    @property
    def looks_like_pictures(self) -> bool:
        """Whether it would be pictures, were its numbers bytes."""
        return self.kind == "column" and len(self.shape) == 3 and self.shape[-1] in (1, 3) and self.dtype != "uint8"


@dataclass(frozen=True)
class Size:
    """How much there is to read, as far as the format says without reading it; None where it does not."""

    bytes: int
    episodes: int | None = None
    steps: int | None = None


class Reader(ABC):
    """A dataset in one format: parts that can be read independently of each other, each with its episodes in a fixed order.

    Made as `MyReader(source, **options)`: `source` is a Path on this machine, `options` what the card says under `reader`. A class
    with `streams = True` is given a `vla.convert.store.Store` instead, through which a part's files may come from afar.

    Must survive pickling (parts are read in several processes), hold nothing open between calls, and stream: memory is bounded by
    one episode, whatever the length of the dataset. `rate_hz`: where the format itself states it. `wanted`: names of the columns,
    texts and pictures that the card uses (None: all); what else there is, a reader may leave unread and out of its episodes.
    """

    rate_hz: Fraction | None = None
    streams: bool = False
    wanted: frozenset[str] | None = None

    @abstractmethod
    def features(self) -> Sequence[Feature]:
        """What its episodes hold. UserError, naming the file, where the source is not of this format."""

    @abstractmethod
    def size(self) -> Size:
        """How much there is to read."""

    @abstractmethod
    def parts(self) -> Sequence[str]:
        """Stable names of the independent parts (files, usually), in order."""

    @abstractmethod
    def episodes(self, part: str) -> Iterator[RawEpisode | Unreadable]:
        """The episodes of a part, in order. `vla.errors.Damaged` names file and record from which on it cannot be read."""
