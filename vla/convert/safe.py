"""What the files of a dataset may ask for: other files inside the dataset, and nothing else."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.data.video import VideoFacts, probe
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


@functools.lru_cache(maxsize=64)
def video_facts(path: Path) -> VideoFacts:
    """What a video says of itself (`vla.data.video.probe`). Damaged where it is missing, too."""
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    return probe(path)


def require(module: str, extra: str = "convert") -> Any:
    """An optional library; UserError that names the extra where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module.split('.')[0]} is not installed; run: pip install 'vla[{extra}]'") from error
