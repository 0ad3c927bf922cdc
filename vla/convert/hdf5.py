"""HDF5 files, whatever their arrangement: where episodes, steps, texts and videos lie is data (`Layout`), not code.

    demos    many episodes a file:   data/demo_3/{actions, states, obs/<name>, ...}
    file     one episode a file:     action, observations/{qpos, qvel, images/<camera>}
    folder   one episode a folder:   trajectory.h5 of nested groups, metadata_*.json, recordings/MP4/<serial>.mp4

`demos` is robomimic's (ARISE-Initiative/robomimic, docs/datasets/overview.md) and LIBERO's. `file` is ACT's and ALOHA's
(MarkFzp/mobile-aloha, aloha_scripts/record_episodes.py; compressed: MarkFzp/act-plus-plus, compress_data.py). `folder` is DROID's as
recorded (droid-dataset/droid, droid/camera_utils/recording_readers/mp4_reader.py: a frame of each video for each step).

Columns are named by their path in the episode: `obs/ee_pos`, `observations/qpos`. Pictures are (steps, H, W, 3) bytes, JPEGs or PNGs
padded with zeros to one length (ALOHA's compressed recordings), of variable length, or frames of an mp4 beside the file.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.convert.hdf5_beside import clip, json_text, metadata
from vla.convert.hdf5_safe import Frames, Member, as_text, attribute, attributes, find, is_picture, members, named, opened
from vla.convert.lanes import LANES
from vla.convert.raw import Encoded, Feature, Pictures, Pixels, RawEpisode, Reader, Size, Unreadable
from vla.convert.safe import episode_id
from vla.errors import Damaged, SchemaError, UnknownName, UserError

if TYPE_CHECKING:
    import h5py

MAX_STEPS = 10_000_000
LOOKED_AT = 4
"""Episodes that say what a dataset holds."""
COUNTED_FILES = 256
"""Files of many episodes each are opened to count these, up to so many: a millisecond each."""


@dataclass(frozen=True)
class Layout:
    """Where things lie in a dataset of HDF5 files. Every entry may be given under `reader` in a card.

    `files`: glob of the files. `episodes`: glob of the groups that are episodes ("" where the file is one). `steps`: the dataset
    whose rows are the steps. `leave`: globs of datasets not to read. `only`: a dataset of episode names (robomimic's filter keys).
    `metadata`: glob of a JSON file beside the HDF5 file. `videos`: camera -> mp4 relative to the HDF5 file, one frame a step, with
    `{key}` for a value of the metadata. `surplus_frames`: so many frames may a video have beyond its steps. `texts`: name -> where:

        language            a dataset of the episode         /data@problem_info#language_instruction   JSON in an attribute
        @language           an attribute of the episode      metadata#current_task                     a value of the metadata

    A path that begins with `/` is the file's, any other the episode's.
    """

    files: str = "**/*.hdf5"
    episodes: str = ""
    steps: str = "action"
    leave: Sequence[str] = ()
    only: str = ""
    metadata: str = ""
    videos: Mapping[str, str] = field(default_factory=dict)
    surplus_frames: int = 0
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """Episodes `first` to `stop` of a file, all of them by default."""

    file: str
    first: int = 0
    stop: int | None = None


LAYOUTS = {
    "demos": Layout(episodes="data/*", steps="actions", leave=("next_obs/*",)),  # next_obs is obs, one step later
    "file": Layout(steps="action"),
    "folder": Layout(files="**/trajectory.h5", steps="action/joint_position", metadata="metadata_*.json"),
}


class Hdf5(Reader):
    """A folder of HDF5 files, or one file. A part is a file; of few files with many episodes each, a run of its episodes.

    Columns and pictures are read when they are asked for, while the episode is the current one; bytes outside the file, and types that
    could hold objects, are refused (`hdf5_safe`)."""

    def __init__(self, source: str | Path, layout: str = "", **entries: Any) -> None:
        self.source = Path(source)
        if layout and layout not in LAYOUTS:
            raise UnknownName("HDF5 layout", layout, LAYOUTS)
        for name in entries:
            if name not in (known := [f.name for f in fields(Layout)]):
                raise UnknownName("entry of an HDF5 layout", name, known)
        self.layout = replace(LAYOUTS.get(layout, Layout()), **entries)
        self.files = self._find_files()
        if not layout and "steps" not in entries:
            self.layout = replace(self._detect(), **entries)
        self._parts: dict[str, _Part] = {}

    def features(self) -> Sequence[Feature]:
        """Of the first LOOKED_AT episodes that can be read and have steps, together: one that was begun and not made, or lacks a row
        somewhere, speaks for no other. Where none has steps, of the first."""
        looked: list[list[Feature]] = []
        empty: list[list[Feature]] = []
        wrong: list[Damaged | SchemaError] = []
        for part in self.files:
            try:
                for _, group in self._groups(part):
                    with named(f"{self.files[part]}: {group.name}"):
                        steps = self._steps(part, group)
                        (looked if steps else empty).append(_features(self._members(part, group, steps)))
                    if len(looked) == LOOKED_AT:
                        return self._together(looked)
            except (Damaged, SchemaError) as error:
                wrong.append(error)
        if not looked and wrong:
            raise wrong[0]
        if not looked and not empty:
            raise SchemaError(f"{self.source}: {next(iter(self.files))} holds no episode at '{self.layout.episodes}'")
        return self._together(looked or empty[:1])

    def _together(self, every: Sequence[Sequence[Feature]]) -> list[Feature]:
        """The features of several episodes, as the first that has each says it, and those that lie beside the files."""
        known: dict[str, Feature] = {}
        for feature in itertools.chain(*every):
            known.setdefault(feature.name, feature)
        videos = [Feature(name, "pictures", "video") for name in self.layout.videos]
        return [*known.values(), *videos, *(Feature(name, "text") for name in self.layout.texts)]

    def size(self) -> Size:
        return Size(sum(path.stat().st_size for path in self.files.values()), self._count())

    def parts(self) -> Sequence[str]:
        if not self._parts:
            self._parts = {name: part for file in self.files for name, part in self._parts_of(file)}
        return list(self._parts)

    def _parts_of(self, file: str) -> Iterator[tuple[str, _Part]]:
        """One process reads a part, so few files are divided, for each lane to have several. By the files alone, since parts are the order
        in which episodes are stored."""
        pieces = 4 * LANES // len(self.files)
        episodes = self._count_in(self.files[file]) if self.layout.episodes and pieces > 1 else None
        if not episodes or episodes == 1:
            yield file, _Part(file)
            return
        size = -(-episodes // pieces)
        for first in range(0, episodes, size):
            yield f"{file}#{first}", _Part(file, first, first + size)

    def episodes(self, part: str) -> Iterator[RawEpisode | Unreadable]:
        if part not in self.parts():
            raise UnknownName("part", part, self.parts()[:20])
        run = self._parts[part]
        try:
            for name, group in self._groups(run.file, run.first, run.stop):
                yield self._episode_or_reason(run.file, name, group)
        except SchemaError as error:  # of the file: the next may be sound
            raise Damaged(str(error)) from error

    def _episode_or_reason(self, part: str, name: str, group: h5py.Group) -> RawEpisode | Unreadable:
        try:
            with named(f"{self.files[part]}: {name or '/'}"):
                return self._episode(part, name, group)
        except (Damaged, SchemaError) as error:  # of this episode: the next may be sound
            return Unreadable(episode_id(part, name), str(error))

    def _episode(self, part: str, name: str, group: h5py.Group) -> RawEpisode:
        path, layout = self.files[part], self.layout
        where = f"{path}: {name}" if name else str(path)
        steps = self._steps(part, group)
        found = self._members(part, group, steps)
        about = metadata(path.parent, layout.metadata) if layout.metadata else {}
        texts: dict[str, Sequence[str]] = {key: member.texts() for key, member in found.texts.items()}
        for key, place in layout.texts.items():
            if self._wants(key):
                texts[key] = self._text(place, group, about, where)
        pictures: dict[str, Pictures] = {key: _pictures(member) for key, member in found.pictures.items()}
        for camera, template in layout.videos.items():
            if self._wants(camera):
                pictures[camera] = clip(path.parent, template, about, steps, layout.surplus_frames, where)
        facts = {**_small(attributes(group)), **_small(about), "file": part, "group": name, "left_out": found.left_out}
        return RawEpisode(episode_id(part, name), steps, _Columns(found.columns), texts, pictures, facts=facts)

    def _steps(self, part: str, group: h5py.Group) -> int:
        where = f"{self.files[part]}: {group.name}"
        shape = Member.of(find(group, self.layout.steps, where), f"{where}/{self.layout.steps}").shape
        if not shape or shape[0] > MAX_STEPS:
            raise SchemaError(f"{where}: '{self.layout.steps}' of shape {shape} does not count steps (at most {MAX_STEPS})")
        return shape[0]

    def _members(self, part: str, group: h5py.Group, steps: int) -> _Found:
        """The datasets of an episode by what they are. One that is wanted and does not fit is an error; others are listed."""
        found = _Found()
        for name, dataset in members(group, str(self.files[part])):
            where = f"{self.files[part]}: {group.name.rstrip('/')}/{name}"
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.layout.leave) or not self._wants(name):
                continue
            member = Member.of(dataset, where)
            if member.is_text and not is_picture(member, steps):
                found.texts[name] = member
            elif not member.shape or member.shape[0] != steps:
                if self.wanted is not None:
                    raise SchemaError(f"{where} has shape {member.shape}; the episode has {steps} steps")
                found.left_out[name] = list(member.shape)
            else:
                (found.pictures if is_picture(member, steps) else found.columns)[name] = member
        return found

    def _wants(self, name: str) -> bool:
        return self.wanted is None or name in self.wanted

    def _text(self, place: str, group: h5py.Group, about: Mapping[str, Any], where: str) -> list[str]:
        place, _, key = place.partition("#")
        if place == "metadata":
            if not isinstance(about.get(key), str):
                raise SchemaError(f"{where}: the metadata has no text '{key}'; it has {sorted(about)}")
            return [about[key]]
        path, at, name = place.partition("@")
        start = group.file if path.startswith("/") else group
        target = find(start, path.strip("/"), where)
        texts = [as_text(attribute(target, name, where))] if at else Member.of(target, f"{where}/{path}").texts()
        return [json_text(text, key, f"{where}: '{place}'") for text in texts] if key else texts

    def _groups(self, part: str, first: int = 0, stop: int | None = None) -> Iterator[tuple[str, h5py.Group]]:
        """(name, group) of episodes `first` to `stop` of a file, `demo_9` before `demo_10`."""
        path, pattern = self.files[part], self.layout.episodes.strip("/")
        with opened(path) as file:
            if not pattern:
                yield "", file
                return
            parent = find(file, pattern.rpartition("/")[0], str(path))
            for name in self._names(file, parent, path)[first:stop]:
                yield name, find(parent, name, str(path))

    def _names(self, file: h5py.File, parent: h5py.Group, path: Path) -> list[str]:
        last = self.layout.episodes.strip("/").rpartition("/")[2]
        names = sorted((name for name in parent if fnmatch.fnmatchcase(name, last)), key=_natural)
        if not self.layout.only:
            return names
        kept = set(Member.of(find(file, self.layout.only, str(path)), f"{path}: {self.layout.only}").texts())
        return [name for name in names if name in kept]

    def _count(self) -> int | None:
        """Episodes, from the groups' names; None where that would open too many files, or one is damaged (reading it says how)."""
        if not self.layout.episodes:
            return len(self.files)
        if len(self.files) > COUNTED_FILES:
            return None
        counts = [self._count_in(path) for path in self.files.values()]
        return None if None in counts else sum(counts)  # type: ignore[arg-type]

    def _count_in(self, path: Path) -> int | None:
        """None where the file is damaged: reading it says how."""
        try:
            with opened(path) as file:
                parent = find(file, self.layout.episodes.strip("/").rpartition("/")[0], str(path))
                return len(self._names(file, parent, path))
        except (SchemaError, Damaged):
            return None

    def _find_files(self) -> dict[str, Path]:
        if self.source.is_file():
            return {self.source.name: self.source}
        paths = sorted(self.source.glob(self.layout.files), key=lambda path: _natural(path.as_posix())) if self.source.is_dir() else []
        if not paths:
            raise UserError(f"{self.source} holds no file like '{self.layout.files}'; the entry `files` of the layout says which to read")
        return {path.relative_to(self.source).as_posix(): path for path in paths}

    def _detect(self) -> Layout:
        """The layout of the first file that opens, where it is one of the common ones."""
        wrong: list[Damaged] = []
        for path in self.files.values():
            try:
                return self._layout_of(path)
            except Damaged as error:
                wrong.append(error)
        raise wrong[0]

    def _layout_of(self, path: Path) -> Layout:
        with opened(path) as file:
            if (data := _reach(file, "data")) and any(_reach(data, f"{name}/actions") is not None for name in data):
                return LAYOUTS["demos"]
            for steps in ("action", "actions"):
                if hasattr(_reach(file, steps), "shape"):
                    return replace(LAYOUTS["file"], steps=steps)
            raise UserError(
                f"{path} has {sorted(file)[:12]} and no layout known here; give `layout` ({', '.join(LAYOUTS)}) or `episodes` and `steps`"
            )


@dataclass
class _Found:
    columns: dict[str, Member] = field(default_factory=dict)
    pictures: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, Member] = field(default_factory=dict)
    left_out: dict[str, list[int]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return iter((*self.columns, *self.pictures, *self.texts))

    def __contains__(self, name: str) -> bool:
        return name in self.columns or name in self.pictures or name in self.texts


class _Columns(Mapping[str, np.ndarray]):
    """Columns that are read from the open file when they are asked for."""

    def __init__(self, found: Mapping[str, Member]) -> None:
        self._found = found

    def __getitem__(self, name: str) -> np.ndarray:
        return self._found[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _features(found: _Found) -> list[Feature]:
    columns = [Feature(name, "column", str(m.dtype), m.shape[1:]) for name, m in found.columns.items()]
    pictures = [Feature(name, "pictures", str(m.dtype), m.shape[1:]) for name, m in found.pictures.items()]
    return [*columns, *pictures, *(Feature(name, "text") for name in found.texts)]


def _pictures(member: Member) -> Pictures:
    frames = Frames(member)
    return Encoded(np.arange(len(frames)), frames) if frames.encoded else Pixels(np.arange(len(frames)), frames)


def _reach(group: h5py.Group, path: str) -> Any:
    """What lies at a path, over nothing but hard links, or None."""
    try:
        return find(group, path, group.name)
    except SchemaError:
        return None


def _natural(text: str) -> list:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text)]


def _small(about: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and short texts among the values, as facts for people."""
    return {key: value for key, value in about.items() if isinstance(value, (bool, int, float)) or len(str(value)) < 500}
