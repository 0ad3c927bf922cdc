"""EgoDex: tabletop tasks seen from a headset, with the pose of the camera and of 68 joints of body and hands at every frame.

    part1/TASK/0.hdf5     transforms/camera (N, 4, 4), transforms/leftHand, ... (N, 4, 4), confidences/leftHand, ... (N,),
                          camera/intrinsic (3, 3); attributes llm_description, llm_description2, which_llm_description, task, ...
    part1/TASK/0.mp4      1080p, 30 Hz, one frame per row

Poses are in metres, in a world that stands still during a recording (ARKit's); `inv(camera) @ joint` is a joint as the camera sees it, x
right, y down and z forward. Where a task is reversible, `which_llm_description` says which of two descriptions it was.

Layout: aliang8/reward_fm, dataset_upload/dataset_guides/EgoDex.md; pxxq25/egodex-dexhand-retargeting, src/egodex_dexhand/data.py (which
also has the camera's axes). Hoque et al. 2025, EgoDex (arXiv:2505.11709); CC-BY-NC-ND.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla.convert.hdf5_safe import Member, attributes, find, members, opened
from vla.convert.raw import Clip, Feature, RawEpisode, Reader, Size, Unreadable
from vla.convert.safe import inside, video_times
from vla.convert.video import PICTURES, clip_id
from vla.errors import Damaged, SchemaError, UnknownName, UserError

RATE_HZ = Fraction(30)
TEXTS = ("llm_description", "llm_description2", "description", "task")
"""`description` is the one of the two that `which_llm_description` names."""
GROUPS = ("transforms", "confidences")
MAX_STEPS = 1_000_000


class EgoDex(Reader):
    """A folder of `TASK/N.hdf5` and `.mp4`, at any depth. A part is a folder of files, usually a task."""

    rate_hz = RATE_HZ

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        if not self.source.is_dir():
            raise UserError(f"no folder {self.source}")
        self._files: dict[str, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": {}}

    def parts(self) -> Sequence[str]:
        if not self._files:
            found = (path.relative_to(self.source) for path in self.source.rglob("*.hdf5"))
            for path in sorted(found, key=lambda path: (path.parent.as_posix(), len(path.name), path.name)):
                self._files.setdefault(path.parent.as_posix(), []).append(path.name)
            if not self._files:
                raise SchemaError(f"{self.source} holds no .hdf5 of EgoDex")
        return list(self._files)

    def features(self) -> Sequence[Feature]:
        part = self.parts()[0]
        path = inside(self.source, f"{part}/{self._files[part][0]}")
        with opened(path) as file:
            columns = self._columns(file, path, names_only=True)
        numbers = [Feature(name, "column", "float32", tuple(shape)) for name, shape in columns.items()]
        return [*numbers, Feature(PICTURES, "pictures", "video"), *(Feature(name, "text") for name in TEXTS)]

    def size(self) -> Size:
        paths = [path for path in self.source.rglob("*") if path.suffix in (".hdf5", ".mp4")]
        return Size(sum(path.stat().st_size for path in paths), sum(path.suffix == ".hdf5" for path in paths))

    def episodes(self, part: str) -> Iterator[RawEpisode | Unreadable]:
        if part not in self.parts():
            raise UnknownName("part", part, self.parts()[:20])
        for name in self._files[part]:
            clip = clip_id(f"{part}/{name}".removesuffix(".hdf5").replace("/", "-").lstrip(".-"))
            try:
                yield self._episode(f"{part}/{name}", clip)
            except (Damaged, SchemaError) as error:
                yield Unreadable(clip, str(error))

    def _episode(self, relative: str, clip: str) -> RawEpisode:
        path, video = inside(self.source, relative), inside(self.source, relative.removesuffix(".hdf5") + ".mp4")
        with opened(path) as file:
            columns = self._columns(file, path)
            about = attributes(file)
            intrinsic = Member.of(find(file, "camera/intrinsic", str(path)), f"{path}: camera/intrinsic").read()
            steps = self._steps(file, path)
        descriptions = {"1": "llm_description", "2": "llm_description2"}
        chosen = descriptions.get(str(about.get("which_llm_description", "1")), "llm_description")
        texts = {name: [str(about[name])] for name in TEXTS if about.get(name)}
        texts["description"] = [str(about.get(chosen) or about.get("llm_description") or "")]
        step = np.arange(steps)
        known = ("task", "environment", "object", "session_name", "llm_type")
        facts = {"file": relative, "camera/intrinsic": intrinsic.tolist(), **{key: about[key] for key in known if key in about}}
        time_s = video_times(video)
        if len(time_s) < steps:
            raise Damaged(f"{path}: {video} has {len(time_s)} frames, shorter than its table of {steps} steps")
        pictures = {PICTURES: Clip(step, video, time_s[:steps])}
        return RawEpisode(clip, steps, columns, texts, pictures, step / float(RATE_HZ), RATE_HZ, facts)

    def _steps(self, file: Any, path: Path) -> int:
        shape = Member.of(find(file, "transforms/camera", str(path)), f"{path}: transforms/camera").shape
        if len(shape) != 3 or shape[1:] != (4, 4) or not 0 < shape[0] <= MAX_STEPS:
            raise SchemaError(f"{path}: transforms/camera has shape {shape}; expected (frames, 4, 4)")
        return shape[0]

    def _columns(self, file: Any, path: Path, names_only: bool = False) -> dict[str, Any]:
        """The wanted poses and confidences by name; of `names_only`, the shape of a step."""
        steps, columns = self._steps(file, path), {}
        for group in GROUPS:
            if group not in file:  # not every recording has confidences
                continue
            want = (4, 4) if group == "transforms" else ()
            for joint, dataset in members(find(file, group, str(path)), str(path)):
                name = f"{group}/{joint}"
                if not names_only and self.wanted is not None and name not in self.wanted:
                    continue
                member = Member.of(dataset, f"{path}: {name}")
                if member.shape != (steps, *want):
                    raise SchemaError(f"{path}: {name} has shape {member.shape}; expected {(steps, *want)}")
                columns[name] = want if names_only else member.read()
        return columns
