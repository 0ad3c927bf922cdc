"""A decoder from outside the package: one file, no edit elsewhere. It trains, saves, loads and acts through `--plugin`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.toy import write_shards

ROOT = Path(__file__).parents[2]
DECODER = '''
"""The same chunk whatever is seen, learned per robot; what a stranger would write first."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vla.decoders.base import ActionDecoder, make_loss


@dataclass(frozen=True)
class MeanChunk:
    kind: ClassVar[str] = "decoder.mean_chunk"
    scale: float = 1.0

    def build(self, width, roster):
        return MeanDecoder(self, width, roster)


class MeanDecoder(ActionDecoder):
    def __init__(self, config, width, roster):
        super().__init__()
        self.scale = config.scale
        self.roster_axes = {"chunk_ETA": ("E", "T", "A")}
        self.chunk_ETA = nn.Parameter(torch.zeros(len(roster), roster.horizon, roster.action_width))
        self.look = nn.Linear(width, 1)

    def weights(self, target, noise):
        return {"l2": target.label_BTA.sum().float()}

    def loss(self, backbone, prefix, target, noise):
        pred_BTA = self._chunk(backbone, prefix, target.spec)
        return make_loss({"l2": ((pred_BTA - target.action_BTA).square(), target.label_BTA)}, {"l2": self.scale})

    def sample(self, backbone, prefix, like, noise):
        return self._chunk(backbone, prefix, like) * like.mask_BTA

    def _chunk(self, backbone, prefix, like):
        return self.chunk_ETA[like.embodiment_B] + self.look(backbone(prefix).x_BSD[:, -1])[:, :, None]
'''
RECIPE = """
from dataclasses import replace
from tests.train.toy import MODEL, toy_run
from mean_chunk import MeanChunk
RUN = toy_run(steps=3, model=replace(MODEL, decoder=MeanChunk(scale=2.0)))
"""
ACT = """
import sys
import numpy as np
from vla.config import load_plugin
from vla.errors import UserError
from vla.policy import Policy
from vla.types import Observation
for plugin in sys.argv[2:]:
    load_plugin(plugin)
try:
    policy = Policy.load(sys.argv[1])
except UserError as error:
    sys.exit(f"refused: {error}")
seen = Observation({"front": np.zeros((1, 16, 16, 3), np.uint8)}, np.zeros((1, 2)), "push it", "narrow")
print("acted", policy.act(seen).action_TA.shape, policy.model.decoder.scale)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, plug-in file) after `vla train --plugin`, in a process of its own."""
    folder = tmp_path_factory.mktemp("plugin")
    write_shards(folder / "data")
    (folder / "mean_chunk.py").write_text(DECODER)
    (folder / "recipe.py").write_text(RECIPE)
    return folder, python("-m", "vla", "train", "recipe.py", "--plugin", "mean_chunk.py", "--data-root", "data", cwd=folder)


def python(*words, cwd) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=110)


@pytest.mark.thorough
def test_it_trains_saves_loads_and_acts(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    acted = python("-c", ACT, "runs/toy", "mean_chunk.py", cwd=folder)
    assert acted.stdout.strip() == "acted (3, 2) 2.0", acted.stderr


@pytest.mark.thorough
def test_without_the_plug_in_the_missing_kind_is_named(trained):
    folder, _ = trained
    refused = python("-c", ACT, "runs/toy", cwd=folder)
    assert refused.returncode == 1
    assert "unknown kind 'decoder.mean_chunk'" in refused.stderr and "--plugin module_or_file" in refused.stderr
