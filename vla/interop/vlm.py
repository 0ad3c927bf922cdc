"""A vision-language model of a supported family (Prismatic, PaliGemma 1 and 2, Qwen2.5-VL, Qwen3-VL, SmolVLM2) as it was published, into
a checkpoint to fine-tune: its weights, and a decoder that has learned nothing.

What its tensors are called is known to each family (`LibraryBackbone.published`). Such a checkpoint is marked as untrained: no policy acts
with it, and the normalisers of a run that starts from it are those of the run's data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vla.backbones.empty import build_empty
from vla.backbones.pretrained import FAMILIES, from_pretrained
from vla.checkpoint import Contents
from vla.errors import UnknownName
from vla.interop.openvla import ROTARY
from vla.interop.plan import Plan, Rule, Take
from vla.interop.source import Source
from vla.model import VLA, Model
from vla.normalize import RobotNormalizer
from vla.presets import PRESETS, preset

HEADS = ("lm_head.", "language_model.lm_head.")
HEAD, CUT = "a head of words, which acting does not use", "what a policy never reads of it"
SEED = 0


def plan(source: Source, variant: str = "vlm") -> Plan:
    """Raises UserError or SchemaError for a model of another family, or a decoder that does not fit the robot."""
    model_type = str(source.json("config.json").get("model_type", ""))
    if model_type not in FAMILIES:
        fix = "A policy has a format of its own (`vla import --help`)."
        raise UnknownName("family of vision-language models", model_type, FAMILIES, fix)
    if source.preset not in PRESETS:
        raise UnknownName("preset", source.preset, PRESETS, "It says which decoder the model gets: --preset NAME.")
    chosen = preset(source.preset)
    cameras = source.cameras or source.robot.cameras
    robot = replace(source.robot, cameras=cameras)
    backbone = from_pretrained(str(source.folder), origin=None, cameras=cameras)
    model = Model(backbone, chosen.decoder, state=chosen.state)
    facts = {"format": "vlm", "family": model_type, "preset": source.preset}
    contents = Contents(model, (robot,), {robot.name: RobotNormalizer.not_yet(robot)}, {"imported": facts, "untrained": True})
    empty = build_empty(model, contents.roster)
    stored = source.stored
    rules: dict[str, Rule] = {}
    for name in empty.backbone.state_dict():
        called = empty.backbone.published_names(name)
        rules[f"backbone.{name}"] = Take(next((each for each in called if each in stored), called[0]))
    rules |= _fresh(model, empty)
    left = dict.fromkeys(HEADS, HEAD) | ROTARY
    left |= {start: CUT for name in empty.backbone.cut() for start in empty.backbone.published_names(name)}
    notes = [f"the decoder is '{source.preset}'s, fresh (seed {SEED}): fine-tune it before it acts, vla train RECIPE.py --init OUT"]
    notes += [f"of '{source.preset}' its backbone's own settings are not taken: {', '.join(chosen.settings)}"] if chosen.settings else []
    return Plan(contents, rules, left, notes)


def _fresh(model: Model, empty: VLA) -> dict[str, Rule]:
    """Everything but the backbone, as a new run begins with it; the backbone itself stays without memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        state_in = model.state.build(empty.backbone.width, empty.roster)
        decoder = model.decoder.build(empty.backbone.width, empty.roster)
        decoder.bind(empty.backbone)
    parts: dict[str, Any] = {"decoder": decoder} | ({} if empty.state_in is None else {"state_in": state_in})
    tensors: dict[str, Tensor] = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    return dict(tensors)
