"""Run by a Python that has `lerobot`: reads an exported folder, every frame in a shuffled order, and prints what it found as JSON.

python lerobot_reads.py FOLDER CAMERA
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import numpy as np
import torch

if torch.version.cuda is None:  # torchvision registers operators that a CPU torch does not declare, and fails to import without them
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lerobot.datasets.lerobot_dataset import LeRobotDataset

folder, camera = sys.argv[1:]
dataset = LeRobotDataset("vla/exported", root=folder)
rows: list = [None] * len(dataset)
for index in np.random.default_rng(0).permutation(len(dataset)).tolist():
    item = dataset[index]
    red = float(item[f"observation.images.{camera}"][0].mean() * 255)
    rows[index] = [item["action"].tolist(), red, item["task"], int(item["episode_index"])]
packages = {name: version(name) for name in ("lerobot", "torch", "torchcodec", "datasets")}
facts = {
    "fps": dataset.fps,
    "episodes": dataset.num_episodes,
    "features": sorted(dataset.meta.features),
    "stats": sorted(dataset.meta.stats),
}
json.dump({"rows": rows, "packages": packages, **facts}, sys.stdout)
