"""Vision-language models under the names that their published files have -> checkpoints to fine-tune, tensor for tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.backbones.families import FAMILIES, tokenizer_json
from tests.backbones.test_pretrained import PROCESSORS, published_prismatic
from tests.interop import layouts
from tests.parts import observation
from vla.backbones.parse import library_config
from vla.checkpoint import load_model
from vla.errors import SchemaError, UnknownName, UserError
from vla.interop.formats import import_checkpoint, plan_import
from vla.interop.plan import check
from vla.interop.source import Source
from vla.policy import Policy
from vla.torchvision_cpu import prepare_torchvision

ROBOT = layouts.robot(("third_person", "wrist"))
WHOLE = {
    "paligemma": "PaliGemmaForConditionalGeneration",
    "paligemma2": "PaliGemmaForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}
GEMMA = {"model.vision_tower.": "vision_tower.vision_model.", "model.multi_modal_projector.": "multi_modal_projector."}
GEMMA |= {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
OLDER = {"paligemma": GEMMA, "paligemma2": GEMMA, "qwen2_5_vl": {"model.visual.": "visual.", "model.language_model.": "model."}}
"""Names in the library today -> those of the files on the hub, where these are older."""


def published(name: str, folder: Path, older: bool = True) -> Path:
    """As on the hub: the whole model with its head, tokenizer and image processor."""
    if name == "prismatic":
        return published_prismatic(folder)
    prepare_torchvision()
    import transformers

    torch.manual_seed(0)
    folder.mkdir()
    config = FAMILIES[name]
    whole = getattr(transformers, WHOLE[name])(library_config(config.library))
    tensors = {}
    for key, tensor in whole.state_dict().items():
        start = next((each for each in OLDER.get(name, {}) if older and key.startswith(each)), "")
        tensors[OLDER[name][start] + key.removeprefix(start) if start else key] = tensor.contiguous().clone()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(config.library)))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    return folder


CASES = [pytest.param(name, True, marks=pytest.mark.thorough if name == "qwen2_5_vl" else pytest.mark.slow) for name in FAMILIES]
CASES += [pytest.param(name, False, marks=pytest.mark.slow) for name in ("paligemma", "paligemma2")]


@torch.no_grad()
@pytest.mark.parametrize("name, older", CASES)
def test_its_tensors_are_those_that_the_librarys_own_loader_finds(name, older, tmp_path):
    folder = published(name, tmp_path / "published", older)
    report = import_checkpoint("vlm", Source(folder, ROBOT, preset="openvla"), tmp_path / "ours")
    assert report.taken + sum(report.left.values()) == len(Source(folder, ROBOT).stored)
    contents, model = load_model(tmp_path / "ours")
    oracle = contents.model.backbone.from_pretrained(str(folder)).build()
    oracle.load_pretrained()
    theirs, ours = oracle.state_dict(), model.backbone.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())
    assert contents.untrained and contents.embodiments == (ROBOT,)
    with pytest.raises(UserError, match="has learned no actions yet. First"):
        Policy.load(tmp_path / "ours")


@torch.no_grad()
@pytest.mark.slow
def test_it_runs_and_its_decoder_is_that_of_a_new_run(tmp_path):
    folder = published("smolvlm", tmp_path / "published")
    contents = plan_import("vlm", Source(folder, ROBOT, ("wrist",), preset="gr00t_n1")).contents
    assert contents.embodiments[0].cameras == ("wrist",) and contents.model.backbone.cameras == ("wrist",)
    made = []
    for out in ("one", "two"):
        import_checkpoint("vlm", Source(folder, ROBOT, preset="vq_bet"), tmp_path / out)
        made.append((tmp_path / out / "model.safetensors").read_bytes())
    assert made[0] == made[1]  # a seed, not a chance
    import_checkpoint("vlm", Source(folder, ROBOT, preset="openvla"), tmp_path / "ours")
    policy = Policy(*load_model(tmp_path / "ours"))  # by hand: `Policy.load` refuses
    seen = observation(ROBOT, np.random.default_rng(0))
    chunk = policy.act(type(seen)({k: v[-1:] for k, v in seen.images.items()}, seen.state[-1:], seen.instruction, ROBOT.name))
    assert chunk.action_TA.shape == (ROBOT.horizon, 7)


def test_what_is_missing_or_unknown_is_named(tmp_path):
    folder = published("smolvlm", tmp_path / "published")
    with pytest.raises(UnknownName, match=r"unknown preset ''\. It says which decoder the model gets: --preset NAME\. Choices: .*pi0"):
        plan_import("vlm", Source(folder, ROBOT))
    source = Source(folder, ROBOT, preset="openvla")
    plan, gone = plan_import("vlm", source), "model.text_model.layers.1.mlp.up_proj.weight"
    with pytest.raises(SchemaError, match=f"'{gone}' missing"):
        check(plan, {name: each for name, each in source.stored.items() if name != gone}, "smolvlm")
    (folder / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UnknownName, match="unknown family of vision-language models 'llava'"):
        plan_import("vlm", source)
