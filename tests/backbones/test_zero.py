"""The library's models under DeepSpeed: two processes, one of which sees neither image nor label, follow a single one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.backbones.families import FAMILIES
from tests.train.processes import DEEPSPEED, warm
from tests.train.toy import write_shards

CASES = (*FAMILIES, "adapted")


@pytest.mark.slow
def test_two_ranks_follow_one_process(tmp_path):
    """Losses and weights after two steps, ZeRO-2 and ZeRO-3, with gradient checkpointing; and with adapters beside frozen weights."""
    shards = write_shards(tmp_path / "shards")
    where = {"module": "tests.backbones.zero_scenario", "name": "steps", "root": shards, "out": tmp_path}
    with warm(*DEEPSPEED, "tests.backbones.zero_scenario") as processes:
        assert processes.run("elsewhere", stage=0, **where) == [0]
        for stage in (2, 3):
            assert processes.run("elsewhere", world=2, stage=stage, **where) == [0, 0]
    for case in CASES:
        want, losses = load_file(tmp_path / f"{case}-0.safetensors"), json.loads((tmp_path / f"{case}-0.json").read_text())
        for stage in (2, 3):
            got = load_file(tmp_path / f"{case}-{stage}.safetensors")
            assert json.loads((tmp_path / f"{case}-{stage}.json").read_text()) == pytest.approx(losses, rel=1e-5)
            assert set(got) == set(want)
            for name, tensor in want.items():
                torch.testing.assert_close(
                    got[name], tensor, atol=2e-5, rtol=1e-5, msg=lambda text, key=(case, stage, name): f"{key}: {text}"
                )
