"""What a dataset offers to a new robot: its columns with what they reach, texts, cameras and rate. Read, not interpreted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla.convert.raw import Reader, Unreadable
from vla.data.format import MANIFEST
from vla.embodiment import Embodiment
from vla.errors import UnknownName, UserError

EPISODES_READ = 8
"""Of which the reach of the numbers is taken; of all, a large dataset would take minutes."""


@dataclass(frozen=True)
class Column:
    """`names`: of its numbers, where the dataset has some. `low_A`, `high_A`: what they reached in the episodes looked at."""

    name: str
    width: int
    names: tuple[str, ...] = ()
    low_A: tuple[float, ...] = ()
    high_A: tuple[float, ...] = ()


@dataclass(frozen=True)
class Offer:
    """`robot`: by value, where the dataset is one of our own. `looked_at`: episodes whose numbers were read. `no_bytes`: columns that would
    be pictures, were their numbers uint8, and pictures of 16 bits, which are depth mostly."""

    format: str
    path: Path
    columns: Mapping[str, Column] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    rate_hz: Fraction | None = None
    episodes: int | None = None
    steps: int | None = None
    licence: str = ""
    looked_at: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    robot: Embodiment | None = None
    no_bytes: Mapping[str, str] = field(default_factory=dict)


def look(path: Path, format_name: str = "", options: Mapping[str, Any] | None = None) -> Offer:
    """Reads what a folder or file holds: our shards, LeRobot, HDF5, or the format that is named. UserError where it is none of them."""
    found = format_name or _format_of(path)
    if found == "shards":
        return _shards(path)
    from vla.convert.formats import FORMATS, open_reader

    if found not in FORMATS:
        raise UnknownName("format", found, [*FORMATS, "shards"])
    return _foreign(found, path, open_reader(found, path, options or {}), options or {})


def _format_of(path: Path) -> str:
    if (path / MANIFEST).is_file():
        return "shards"
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    files = [path] if path.is_file() else itertools.islice(path.rglob("*"), 10_000)
    if any(file.suffix in (".hdf5", ".h5") for file in files):
        return "hdf5"
    if not path.exists():
        raise UserError(f"there is nothing at {path}; give a dataset: our shards, LeRobot, HDF5")
    raise UserError(f"{path} is no dataset of shards, LeRobot or HDF5 that can be told; name its format with --format")


def _shards(path: Path) -> Offer:
    from vla.data.reader import Dataset

    dataset = Dataset.open(path)
    if dataset.info.robot is None or dataset.info.supervision != "actions":
        raise UserError(f"{path} holds no actions of a robot ({dataset.info.supervision}); give a dataset that does")
    robot = dataset.info.robot
    return Offer(
        "shards",
        path,
        cameras=tuple(dataset.cameras),
        rate_hz=robot.rate_hz,
        episodes=len(dataset),
        steps=dataset.steps,
        licence=dataset.info.licence,
        robot=robot,
    )


def _foreign(name: str, path: Path, reader: Reader, options: Mapping[str, Any]) -> Offer:
    features, size = reader.features(), reader.size()
    numeric = {f.name: f for f in features if f.kind == "column" and f.dtype != "bool" and None not in f.shape}
    names: Mapping[str, tuple[str, ...]] = getattr(reader, "names", {})
    low, high, looked_at = _reach(reader, frozenset(numeric))
    columns = {}
    for column, feature in numeric.items():
        width = math.prod(n for n in feature.shape if n is not None)
        reached = [tuple(map(float, ends[column])) if column in ends else () for ends in (low, high)]
        columns[column] = Column(column, width, tuple(names.get(column, ())), *reached)
    return Offer(
        name,
        path,
        columns,
        tuple(f.name for f in features if f.kind == "text"),
        tuple(f.name for f in features if f.kind == "pictures" and f.dtype != "uint16"),
        reader.rate_hz,
        size.episodes,
        size.steps,
        looked_at=looked_at,
        options=options,
        no_bytes={f.name: f.dtype for f in features if f.looks_like_pictures or (f.kind == "pictures" and f.dtype == "uint16")},
    )


def _reach(reader: Reader, wanted: frozenset[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """(lowest, highest) of every column in the first episodes, of its rows that are numbers throughout, and how many episodes these were.
    A column whose width is not the same in all reaches nothing that can be said."""
    reader.wanted = wanted
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    widths: dict[str, set[int]] = {name: set() for name in wanted}
    looked_at = 0
    every = (episode for part in reader.parts() for episode in reader.episodes(part))
    for episode in itertools.islice(every, EPISODES_READ):
        if isinstance(episode, Unreadable):
            continue
        looked_at += 1
        for name in wanted:
            if name not in episode.columns or not len(episode.columns[name]):
                continue
            rows = np.asarray(episode.columns[name], np.float64).reshape(len(episode.columns[name]), -1)
            widths[name].add(rows.shape[1])
            rows = rows[np.isfinite(rows).all(1)]
            if len(rows) and len(widths[name]) == 1:
                low[name] = np.minimum(low.get(name, np.inf), rows.min(0))
                high[name] = np.maximum(high.get(name, -np.inf), rows.max(0))
    even = {name for name in low if len(widths[name]) == 1}
    return {name: low[name] for name in even}, {name: high[name] for name in even}, looked_at
