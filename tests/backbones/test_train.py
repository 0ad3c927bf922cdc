"""A library backbone through the whole house: a run from published weights, a checkpoint that acts, and going on from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.backbones.families import FAMILIES
from tests.backbones.test_pretrained import published
from tests.train.toy import NARROW, toy_run, write_shards
from vla.backbones.adapters import LoRA
from vla.backbones.smolvlm import SmolVLM
from vla.decoders.conditioning import CrossAttention
from vla.decoders.dit import DiT
from vla.model import Model
from vla.policy import Policy
from vla.train.loop import train
from vla.types import Observation


@pytest.mark.slow
def test_from_published_weights_to_acting(tmp_path):
    root = write_shards(tmp_path / "data")
    folder = published("smolvlm", tmp_path / "published")
    settings = {"prompt": FAMILIES["smolvlm"].prompt, "cameras": ("front",), "lora": LoRA(rank=2), "gradient_checkpointing": True}
    config = SmolVLM.from_pretrained(str(folder), **settings)
    decoder = DiT(conditioning=CrossAttention(width=16, depth=1, heads=2), evaluations=2)
    run = toy_run(model=Model(config, decoder), steps=3, precision="bf16")
    assert not train(run, tmp_path / "run", data_root=root, near=root).stopped
    policy = Policy.load(tmp_path / "run")
    image = np.zeros((1, 20, 30, 3), dtype=np.uint8)
    seen = Observation({"front": image}, np.zeros((1, NARROW.state.size)), "push <image> it", NARROW.name)
    assert np.isfinite(policy.act(seen).action_TA).all()
    weight = "language.layers.0.mlp.up_proj.base_layer.weight"
    fresh = config.build()
    fresh.load_pretrained()
    assert torch.equal(policy.model.backbone.get_parameter(weight), fresh.get_parameter(weight))  # frozen beneath the adapters
    longer = replace(run, steps=5)
    assert not train(longer, tmp_path / "run", resume=True, allow_changed=True, data_root=root, near=root).stopped
    frozen = replace(run, name="tuned", init=str(tmp_path / "run"), model=None, freeze=("backbone",))
    assert not train(frozen, tmp_path / "tuned", data_root=root, near=root).stopped
