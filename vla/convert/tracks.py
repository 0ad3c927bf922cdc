"""What was followed through a video, in an npz: arrays of one row per frame. No pickles, and nothing that unpacks to more than a cap."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np

from vla.errors import Damaged, SchemaError

MAX_BYTES = 1 << 30
"""Of one array: an hour of 30 Hz with 1,000 points in float32 is less."""
FRAMES_OFF = 2
"""By so many rows may the table differ from the frames of its video: programs disagree about the last ones."""


@lru_cache(maxsize=1)
def tracks_of(path: Path, wanted: frozenset[str] | None = None) -> Tracks:
    """`Tracks`, of which the last is kept: a video is cut into clips one after another, and its table unpacked once."""
    return Tracks(path, wanted)


class Tracks:
    """The arrays of a file, of those `wanted` (None: all). SchemaError where it is no such file, Damaged where it cannot be read."""

    def __init__(self, path: Path, wanted: Collection[str] | None = None) -> None:
        self.path = path
        self.arrays: dict[str, np.ndarray] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                claimed = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
                if large := [name for name, size in claimed.items() if size > MAX_BYTES]:
                    raise SchemaError(f"{path}: '{large[0]}' has {claimed[large[0]]} bytes; at most {MAX_BYTES} are read")
                if short := [name for name, size in claimed.items() if _claimed(archive, name) > size]:
                    raise Damaged(f"{path}: '{short[0]}' claims to hold more than its {claimed[short[0]]} bytes")
            with np.load(path, allow_pickle=False) as found:
                self.arrays = {name: found[name] for name in found.files if wanted is None or name in wanted}
        except OSError as error:
            raise SchemaError(f"no tracks {path}: {error.strerror or error}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, MemoryError, RuntimeError) as error:
            raise Damaged(f"{path} is no npz that can be read ({error})") from error
        except ValueError as error:
            if isinstance(error, SchemaError):
                raise
            raise SchemaError(f"{path} holds what is no array of numbers ({error})") from error
        for name, values in self.arrays.items():
            if values.dtype.kind not in "fiub" or not values.ndim or not len(values):
                raise SchemaError(f"{path}: '{name}' is {values.dtype} {values.shape}; want numbers, a row for each frame")

    def at(self, frame_N: np.ndarray, frames: int) -> dict[str, np.ndarray]:
        """The rows of some frames of a video that has so many."""
        rows = {}
        for name, values in self.arrays.items():
            if abs(len(values) - frames) > FRAMES_OFF:
                raise SchemaError(f"{self.path}: '{name}' has {len(values)} rows, and its video {frames} frames")
            if frame_N[-1] >= len(values):
                raise SchemaError(f"{self.path}: '{name}' ends at row {len(values)}, before frame {int(frame_N[-1])}")
            rows[name] = values[frame_N]
        return rows


def _claimed(archive: zipfile.ZipFile, name: str) -> int:
    """Bytes that an array's own header speaks of: numpy makes room for them before it reads any."""
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return math.prod(shape) * dtype.itemsize
