"""What the files of a dataset may ask for: other files inside the dataset, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.video import VideoFacts, frame_times, probe
from vla.errors import Damaged, SchemaError, UserError

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)(?::0(\d)d)?\}")


def inside(folder: Path, relative: str) -> Path:
    """A file of the dataset by its relative name; SchemaError for one that lies elsewhere.

    Links may lead into the `blobs` folder of a hub cache, which is how its snapshots are stored, and nowhere else outside.
    """
    path, root = folder / relative, folder.resolve()
    roots = [root, *(parent.parent / "blobs" for parent in (root, *root.parents) if parent.name == "snapshots")]
    if Path(relative).is_absolute() or ".." in Path(relative).parts or not any(path.resolve().is_relative_to(each) for each in roots):
        raise SchemaError(f"{folder}: '{relative}' leads out of the dataset")
    return path


def fill(template: str, values: Mapping[str, int | str]) -> str:
    """A path template with its values; SchemaError for anything but plain `{name}` and `{name:03d}`.

    Not `str.format`, which would look into attributes and pad to any width that a hostile template asks for.
    """

    def value(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in values:
            raise SchemaError(f"path template '{template[:200]}' uses '{name}'; it may use {sorted(values)[:40]}")
        return str(values[name]).zfill(int(width or 0))

    if set("{}") & set(_PLACEHOLDER.sub("", template)):
        raise SchemaError(f"path template '{template[:200]}' holds more than {{name}} and {{name:03d}}")
    return _PLACEHOLDER.sub(value, template)


def episode_id(part: str, name: str = "") -> str:
    """A name of [A-Za-z0-9_-], at most 80, for an episode of a file; where letters had to go, a hash keeps it unique."""
    whole = f"{part}/{name}" if name else part
    stem = re.sub(r"\.(hdf5|h5|mcap)(?=/|$)", "", whole).replace("/", "-")
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", stem)
    if plain == stem and len(plain) <= 80 and plain[:1] != "-":
        return plain
    tail = f"-{name}"[-24:] if name else ""
    digest = hashlib.blake2b(whole.encode(), digest_size=6).hexdigest()
    return f"{plain.lstrip('-')[: 80 - len(digest) - len(tail) - 1]}-{digest}{re.sub(r'[^A-Za-z0-9_-]', '_', tail)}"


@functools.lru_cache(maxsize=64)
def video_facts(path: Path) -> VideoFacts:
    """What a video says of itself (`vla.data.video.probe`). Damaged where it is missing, too."""
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    return probe(path)


@functools.lru_cache(maxsize=8)
def video_times(path: Path) -> np.ndarray:
    """When each frame of a video is first shown (`vla.data.video.frame_times`), float64 (frames,), s. Damaged where it is missing, too. The
    number of a frame is found here and not by the rate: many recorders, phones among them, keep none."""
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    times = frame_times(path)
    times.flags.writeable = False
    return times


@contextlib.contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Errors of pyarrow as Damaged, with the file's name; so is a missing file."""
    pa = require("pyarrow")
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise Damaged(f"{path} does not read as parquet: {' '.join(str(error).split())[:300]}") from error


def require(module: str, extra: str = "convert") -> Any:
    """An optional library; UserError that names the extra where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module.split('.')[0]} is not installed; run: pip install 'vla[{extra}]'") from error
