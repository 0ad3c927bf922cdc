"""SpatialVLA (SpatialVLA/SpatialVLA, `model/modeling_spatialvla.py`, `processing_spatialvla.py`): a Hugging Face folder.

PaliGemma 2 with the positions of patches in space, ZoeDepth among the tensors, and three words a step: cells of adaptive grids, which
`processor_config.json` has, with statistics and intrinsics by dataset. A code's embedding is `spatial_embed_tokens`', and so is the head's
row: theirs ties the head to the words, and puts these into them after loading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.backbones.ego3d import Ego3D
from vla.backbones.empty import build_empty
from vla.backbones.images import Pixels
from vla.backbones.paligemma import PaliGemma
from vla.backbones.pretrained import FILTERS
from vla.backbones.prompts import Prompt
from vla.checkpoint import Contents
from vla.codecs.grid import Grid
from vla.decoders.tokens import AutoregressiveTokens
from vla.errors import SchemaError, UserError
from vla.interop import stats
from vla.interop.plan import Make, Plan, Rows, Rule, Take
from vla.interop.source import Source, require, robot_notes
from vla.interop.tensors import Stored
from vla.model import Model
from vla.roster import Roster
from vla.state import NoState

EMBEDDING, HEAD, SPATIAL = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight", "spatial_embed_tokens.weight"
PROMPT = Prompt("{images}<bos>{instruction}\n", lower=True)
"""As `data/dataset.py` trains it; the README's example says more ("What action should the robot take to ...?")."""
NAMES = {
    "backbone.vision.": "vision_tower.",
    "backbone.projector.": "multi_modal_projector.",
    "backbone.language.": "language_model.model.",
    "backbone.ego3d.estimator.": "vision_zoe_model.",
    "backbone.ego3d.head.": "position_embedding_3d.position_embedding_head.",
}
AXES = {"translation": ("theta", "phi", "r"), "rotation": ("roll", "pitch", "yaw")}
LEFT = {
    HEAD: "a head of words, which acting does not use",
    "vision_tower.vision_model.head.": "the tower's pooling, which a policy does not use",
    "vision_tower.head.": "the tower's pooling, which a policy does not use",
}
NOTES = (
    "its images' depth is estimated by ZoeDepth as theirs is, unless an observation has depth of its own, which then comes first",
    "instructions stand alone in the prompt, in lower case, as in training; its README asks 'What action should the robot take to ...?'",
    "codes are chosen among those that stand for what comes next (translation, rotation, gripper); theirs may say any word",
)


def plan(source: Source, variant: str = "spatialvla") -> Plan:
    """Raises UserError or SchemaError for another model, statistics or robot."""
    config = source.json("config.json")
    if config.get("model_type") != "spatialvla":
        raise UserError(f"{source.name} is a '{config.get('model_type')}', not SpatialVLA (model_type 'spatialvla')")
    processor, stored = source.json("processor_config.json"), source.stored
    numbers, policy, actions, steps = require(
        processor, ("statistics", "bin_policy", "action_config", "action_chunk_size"), f"{source.name}/processor_config.json"
    )
    if int(processor.get("num_obs_steps", 1)) != 1 or not actions.get("use_spherical", True):
        raise SchemaError(f"{source.name} shows several frames, or cuts x, y and z; what is known is one frame and spherical coordinates")
    key, found = source.choose(numbers)
    action = stats.openvla(found["action"], f"the action statistics of '{key}'")
    robot = source.robot_of(horizon=int(steps), least=1, most=3, width=action.width)
    grid = _grid(actions["num_bins"])
    made = grid.build(Roster.of((robot,)))
    _fill(made, policy, source)
    first, count = _codes(source, config, made.vocabulary)
    ego3d, camera = _positions(config, processor, key)
    backbone = _backbone(source, config, stored, ego3d)
    model = Model(backbone, AutoregressiveTokens(codec=grid, from_prefix=True), state=NoState())
    facts = {"format": "spatialvla", "statistics": key, "intrinsics": camera}
    contents = Contents(model, (robot,), {robot.name: stats.robot_normalizer(robot, None, action)}, {"imported": facts})
    targets = build_empty(model, contents.roster).state_dict()
    rules = _backbone_rules(targets, stored) | {f"decoder.codes.codec.{name}": buffer for name, buffer in made.state_dict().items()}
    slots = targets["decoder.codes.slot_ND"].shape
    rules |= {**_code_rules(stored, config, first, count), "decoder.codes.slot_ND": torch.zeros(slots)}
    notes = [*NOTES, f"cameras that say no intrinsics are taken for {camera}'s", *robot_notes(robot)] if camera else [*robot_notes(robot)]
    return Plan(contents, rules, LEFT, notes)


def _grid(bins: Mapping[str, Any]) -> Grid:
    """Sizes of the published kind: seven numbers, a gripper of two."""
    sizes = {group: tuple(int(bins[group][f"{axis}_bins"]) for axis in axes) for group, axes in AXES.items()}
    if int(bins.get("gripper", 2)) != 2:
        raise SchemaError(f"a gripper of {bins['gripper']} bins; what is known is open and shut")
    return Grid(translation_bins=sizes["translation"], rotation_bins=sizes["rotation"], values="middle")


def _fill(codec: Any, policy: Mapping[str, Any], source: Source) -> None:
    """Edges and middles of the cells as the folder has them; the gripper is 0 or 1."""
    for group, axes in AXES.items():
        for axis, name in enumerate(axes):
            edges = np.array(policy[group][f"{name}_bins"], float)
            buffers = (getattr(codec, f"{group}{axis}_EQ"), getattr(codec, f"{group}{axis}_EC"))
            if len(edges) != buffers[0].shape[1] or (np.diff(edges) < 0).any():
                raise SchemaError(f"{source.name}: {len(edges)} edges of '{name}' for {buffers[1].shape[1]} cells, or falling ones")
            buffers[0][0] = torch.from_numpy(edges).float()
            buffers[1][0] = torch.from_numpy((edges[1:] + edges[:-1]) / 2).float()
    codec.gripper_E2[0], codec.fitted_E[0] = torch.tensor([0.0, 1.0]), 1.0


def _codes(source: Source, config: Mapping[str, Any], vocabulary: int) -> tuple[int, int]:
    """The first code's word, and how many there are."""
    first, count = require(config, ("action_token_begin_idx", "spatial_token_num"), f"{source.name}/config.json")
    if int(count) != vocabulary:
        raise SchemaError(f"{source.name} has {count} words for actions; its grids have {vocabulary} cells")
    return int(first), int(count)


def _positions(config: Mapping[str, Any], processor: Mapping[str, Any], key: str) -> tuple[Ego3D | None, str]:
    """How patches are placed in space, and whose intrinsics are assumed."""
    if not config.get("use_vision_zoe", True):
        return None, ""
    cameras = processor.get("intrinsic_config") or {}
    name = key if key in cameras else "default"
    (row,) = require(cameras, (name,), "intrinsic_config")
    (fx, _, cx), (_, fy, cy) = row["intrinsic"][0], row["intrinsic"][1]
    assumed = (fx / row["width"], fy / row["height"], cx / row["width"], cy / row["height"])
    points, frequencies = int(config.get("ego3d_patch_reso", 4)), int(config.get("n_freqs", 8))
    return Ego3D(points, frequencies, estimator={"model_type": "zoedepth", **config["vision_zoe_config"]}, assumed=assumed), name


def _backbone(source: Source, config: Mapping[str, Any], stored: Mapping[str, Stored], ego3d: Ego3D | None) -> PaliGemma:
    if EMBEDDING not in stored:
        raise SchemaError(f"{source.name} has no '{EMBEDDING}'; it is no SpatialVLA")
    words, width = stored[EMBEDDING].shape
    text = {"model_type": "gemma2", **config["text_config"], "vocab_size": words}
    vision = {"model_type": "siglip_vision_model", **config["vision_config"], "vision_use_head": False}
    library: dict[str, Any] = {"model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": width}
    resample = source.json("preprocessor_config.json").get("resample", 3)
    if resample not in FILTERS:
        raise SchemaError(f"{source.name}: images are resized by PIL's filter {resample}; known are {', '.join(map(str, FILTERS))}")
    pixels = Pixels(filter=FILTERS[resample])
    return PaliGemma(library, tokenizer=source.packed_tokenizer(), prompt=PROMPT, pixels=pixels, ego3d=ego3d)


def _backbone_rules(targets: Mapping[str, Any], stored: Mapping[str, Stored]) -> dict[str, Rule]:
    """Older versions of the library have a `vision_model.` more in the tower's names."""
    actual = {name.replace("vision_tower.vision_model.", "vision_tower.", 1): name for name in stored}
    pairs = ((name, name.replace(ours, theirs, 1)) for name in targets for ours, theirs in NAMES.items() if name.startswith(ours))
    return {name: Take(actual.get(theirs, theirs)) for name, theirs in pairs}


def _code_rules(stored: Mapping[str, Stored], config: Mapping[str, Any], first: int, count: int) -> dict[str, Rule]:
    width = stored[EMBEDDING].shape[1]
    words = Rows(SPATIAL, 0, count) if config.get("use_spatial_token") else Rows(EMBEDDING, first, first + count)
    tied = config["text_config"].get("tie_word_embeddings", True)
    head = words if tied else Rows(HEAD, first, first + count)

    def embedded(code_CD: Tensor) -> Tensor:
        start_1D = torch.zeros(1, width, dtype=code_CD.dtype, device=code_CD.device)  # nothing starts from it
        return torch.cat([code_CD * math.sqrt(width), start_1D])  # as Gemma scales its words

    return {
        "decoder.codes.code_in.weight": Make((words,), embedded),
        "decoder.codes.head.weight": Make((head,), lambda code_CD: code_CD),
        "decoder.codes.head.bias": torch.zeros(count),
    }
