"""What lies beside an HDF5 file: a JSON file that says what the episode is, and its videos."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla.convert.raw import Clip
from vla.convert.safe import fill, inside, video_times
from vla.errors import Damaged, SchemaError

MAX_METADATA_BYTES = 4 << 20


def metadata(folder: Path, pattern: str) -> dict[str, Any]:
    """The one JSON object that the pattern names in a folder."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SchemaError(f"{folder} holds {len(found)} files like '{pattern}'; one is needed")
    if found[0].stat().st_size > MAX_METADATA_BYTES:
        raise Damaged(f"{found[0]} is larger than any metadata ({found[0].stat().st_size} bytes)")
    try:
        data = json.loads(found[0].read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{found[0]} is no JSON ({error})") from error
    if not isinstance(data, Mapping):
        raise SchemaError(f"{found[0]} holds no object")
    return dict(data)


def json_text(text: str, key: str, where: str) -> str:
    """A text inside JSON: `a/b` is the entry b of the entry a."""
    try:
        value = json.loads(text)
        for name in key.split("/"):
            value = value[name]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SchemaError(f"{where} is no JSON with '{key}'") from error
    if isinstance(value, list):  # LIBERO stores some instructions as lists of words
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        raise SchemaError(f"{where}: '{key}' is no text")
    return value.strip('"')


def clip(folder: Path, template: str, about: Mapping[str, Any], steps: int, surplus_frames: int, where: str) -> Clip:
    """Frame i of a video as the picture of step i, at whatever times it is shown. Damaged where it has fewer frames than steps, or more
    than allowed."""
    plain = {key: str(value) for key, value in about.items() if re.fullmatch(r"[A-Za-z0-9_-]+", str(value))}
    path = inside(folder, fill(template, plain))
    time_s = video_times(path)
    frames = len(time_s)
    if not steps <= frames <= steps + surplus_frames:
        which = "shorter" if frames < steps else "longer"
        raise Damaged(f"{where}: {path} has {frames} frames, {which} than its table of {steps} steps")
    return Clip(np.arange(steps), path, time_s[:steps])
