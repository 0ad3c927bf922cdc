"""What `vla export lerobot` writes, read by `lerobot` itself, in an environment of its own (docs/lerobot.md says how to make one)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("pyarrow")

from tests.convert.test_lerobot_write import make_episode, write_shards
from vla.convert.lerobot_write import LeRobotWriter, Options
from vla.data.images import decode_jpeg

PYTHON = os.environ.get("LEROBOT_PYTHON", "")
SCRIPT = Path(__file__).with_name("lerobot_reads.py")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="set LEROBOT_PYTHON to a Python that has lerobot")
@pytest.mark.parametrize("images", [False, True])
def test_lerobot_reads_what_is_exported(tmp_path, images):
    dataset = write_shards(tmp_path / "shards", [make_episode(f"e{i}", 12 + 3 * i) for i in range(4)])
    with LeRobotWriter(tmp_path / "out", dataset.info, dataset.cameras, Options(images=images)) as writer:
        for index in range(len(dataset)):
            writer.add(dataset.read(index))
    command = [PYTHON, str(SCRIPT), str(tmp_path / "out"), "third_person"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert (found["fps"], found["episodes"], len(found["rows"])) == (50, 4, dataset.steps)
    assert {"action", "observation.state"} <= set(found["stats"])
    row = iter(found["rows"])
    for index in range(len(dataset)):
        episode = dataset.read(index)
        for step in range(episode.steps):
            action, red, task, number = next(row)
            assert (np.array(action, np.float32) == episode.action[step].astype(np.float32)).all()  # lerobot hands out float32
            want = decode_jpeg(episode.frames["third_person"].jpeg[step])[..., 0].mean()
            assert abs(red - want) < (0.01 if images else 4)
            assert number == index and task == episode.instructions[int(step >= episode.instructions[0].stop)].text
