"""The public face of the shard format: write, open, verify, and read with stock `webdataset`.

with ShardWriter(folder, DatasetInfo(name="lift", embodiment=robot.to_json())) as writer:
    writer.add(episode)
dataset = Dataset.open(folder)
groups = webdataset.WebDataset(paths, shardshuffle=False).decode(decode)
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from vla.data.format import DatasetInfo, episode_key, is_validation, unpack_frames
from vla.data.reader import Dataset, Pool, StoredEpisode
from vla.data.verify import Problem, verify
from vla.data.writer import ShardWriter

__all__ = [
    "Dataset",
    "DatasetInfo",
    "Pool",
    "Problem",
    "ShardWriter",
    "StoredEpisode",
    "decode",
    "episode_key",
    "is_validation",
    "verify",
]


def decode(key: str, data: bytes) -> Any:
    """One member of a group, as `webdataset`'s `.decode(decode)` calls it; None for members that are not ours.

    `.episode.json` -> dict, `.steps.npz` -> {column: float64 array}, `.<camera>.jpgs` -> `vla.types.Frames` (still JPEG),
    `.<camera>.mp4` -> its bytes (the steps of its frames are the column `step.<camera>`; webdataset's own video decoders take it too).
    """
    if key.endswith(".episode.json"):
        return json.loads(data)
    if key.endswith(".steps.npz"):
        with np.load(io.BytesIO(data), allow_pickle=False) as columns:
            return {name: columns[name] for name in columns.files}
    if key.endswith(".jpgs"):
        return unpack_frames(data)
    if key.endswith(".mp4"):
        return data
    return None
