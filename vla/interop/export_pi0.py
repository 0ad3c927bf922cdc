"""pi0 and pi0.5 in lerobot's layout: `config.json`, `model.safetensors`, and the two processors with their statistics.

Any affine normaliser is a mean and a deviation to lerobot, whatever it was fitted as; its own epsilon of 1e-8 comes in forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vla.backbones.paligemma import PaliGemma
from vla.checkpoint import Contents
from vla.decoders.conditioning import LayerKeysValues
from vla.decoders.dit import DiT
from vla.embodiment import Embodiment
from vla.errors import UserError
from vla.interop.export import Exported, require_zero
from vla.interop.paligemma import EMBEDDING, EXPERT, HEAD, OURS, TIME_MLPS, VISION, WHOLE
from vla.interop.plan import Make, Rule, Take
from vla.interop.tensors import Stored
from vla.normalize import Normalizer

TOKENIZER = "google/paligemma-3b-pt-224"
STATE_FILES = {
    "policy_preprocessor": "policy_preprocessor_step_5_normalizer_processor.safetensors",
    "policy_postprocessor": "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
}


def plan(contents: Contents, weights: Mapping[str, Stored]) -> Exported:
    """UserError unless it is a pi0 or pi0.5 of one robot, with every parameter in a place that theirs has too."""
    backbone, decoder, robots = contents.model.backbone, contents.model.decoder, contents.embodiments
    fits = isinstance(backbone, PaliGemma) and isinstance(decoder, DiT) and isinstance(decoder.conditioning, LayerKeysValues)
    if not fits or not decoder.padded_width or decoder.time_features != "periods" or backbone.lora is not None:
        raise UserError("this is no pi0 or pi0.5: it needs PaliGemma and an expert on its layers that denoises padded actions")
    if len(robots) != 1:
        raise UserError(f"lerobot's policies are for one robot; this one is for {', '.join(robot.name for robot in robots)}")
    require_zero(weights, ("decoder.step_TD",), "lerobot's layout")
    kind = "pi05" if decoder.time == "adaptive" else "pi0"
    rules = {f"model.{name}": rule for name, rule in (_backbone(weights) | _expert(weights) | _projections(decoder, kind)).items()}
    robot, normalizers = robots[0], contents.normalizers[robots[0].name]
    for normalizer in (normalizers.state, normalizers.action):
        if normalizer.clip_in or normalizer.clip_out or normalizer.binary:
            raise UserError("lerobot's normalisation neither clips nor rounds, as this checkpoint's does")
    config = _config(robot, decoder, kind)
    relative = _relative(robot)
    texts = {"config.json": config, **_processors(config, kind, relative)}
    table = {f"observation.state.{n}": t for n, t in _moments(normalizers.state).items()} | {
        f"action.{n}": t for n, t in _moments(normalizers.action).items()
    }
    return Exported(rules, texts, dict.fromkeys(STATE_FILES.values(), table), (f"images of {', '.join(robot.cameras)}, in this order",))


def _backbone(weights: Mapping[str, Stored]) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for name in weights:
        for ours, theirs in OURS.items():
            if name.startswith(ours):
                found[name.replace(ours, f"{VISION}vision_model." if theirs == VISION else theirs, 1)] = Take(name)
    found[HEAD] = found[EMBEDDING]  # tied; theirs reads the embedding from here
    return found


def _expert(weights: Mapping[str, Stored]) -> dict[str, Rule]:
    prefix = "decoder.conditioning.expert."
    found: dict[str, Rule] = {}
    minus_one = lambda weight: weight - 1  # noqa: E731
    gated = lambda tensor: torch.cat([tensor, tensor.new_zeros(len(tensor) // 2, *tensor.shape[1:])])  # noqa: E731
    for name in weights:
        if not name.startswith(prefix):
            continue
        part = name.removeprefix(prefix)
        stem, _, inner = part.partition(".") if part.startswith("norm") else ("", "", part.split(".", 2)[2])
        layer = EXPERT if stem else f"{EXPERT}layers.{part.split('.')[1]}."
        norm = {"norm": "norm", "norm1": "input_layernorm", "norm2": "post_attention_layernorm"}.get(stem or inner.split(".")[0], "")
        if norm and name.endswith("weight_D"):
            found[f"{layer}{norm}.weight"] = Make((name,), minus_one)
        elif norm:
            kind = name.rpartition(".")[2]
            found[f"{layer}{norm}.dense.{kind}"] = Make((name,), gated) if stem else Take(name)
        elif inner == "kv.weight":
            for index, each in enumerate(("k_proj", "v_proj")):
                found[f"{layer}self_attn.{each}.weight"] = Make((name,), lambda kv, i=index: kv.chunk(2)[i])
        elif inner == "mlp.up.weight":
            for index, each in enumerate(("gate_proj", "up_proj")):
                found[f"{layer}mlp.{each}.weight"] = Make((name,), lambda up, i=index: up.chunk(2)[i])
        else:
            theirs = {"q.weight": "self_attn.q_proj", "out.weight": "self_attn.o_proj", "mlp.down.weight": "mlp.down_proj"}[inner]
            found[f"{layer}{theirs}.weight"] = Take(name)
    width, words = weights[f"{prefix}blocks.0.q.weight"].shape[1], weights["backbone.language.embed_tokens.weight"].shape[0]
    found[f"{WHOLE}gemma_expert.lm_head.weight"] = torch.zeros(words, width, dtype=torch.bfloat16)  # theirs wants one, and never uses it
    return found


def _projections(decoder: DiT, kind: str) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for ours, theirs in (("action_in", "action_in_proj"), ("out", "action_out_proj")):
        found[f"{theirs}.weight"] = Make((f"decoder.{ours}.weight_EIO",), lambda weight: weight[0].T)
        found[f"{theirs}.bias"] = Make((f"decoder.{ours}.bias_EO",), lambda bias: bias[0])
    mlp, time = TIME_MLPS[kind]
    for index, end in ((0, "in"), (2, "out")):
        for each in ("weight", "bias"):
            found[f"{time}_{end}.{each}"] = Take(f"{mlp}.{index}.{each}")
    if kind == "pi0":

        def wide(weight: Tensor) -> Tensor:
            return torch.nn.functional.pad(weight[0].T, (0, decoder.padded_width - weight.shape[1]))

        found["state_proj.weight"] = Make(("decoder.state_in.weight_EIO",), wide)
        found["state_proj.bias"] = Make(("decoder.state_in.bias_EO",), lambda bias: bias[0])
    return found


def _moments(normalizer: Normalizer) -> dict[str, Tensor]:
    return {"mean": torch.tensor(normalizer.offset, dtype=torch.float32), "std": torch.tensor(normalizer.scale, dtype=torch.float32)}


def _relative(robot: Embodiment) -> dict[str, Any]:
    """Which numbers are relative to the state, in lerobot's words: all but those whose name holds an excluded one."""
    frames = {field.name: field.frame for field in robot.action.fields}
    if "step" in frames.values() and "from_state" in frames.values():
        raise UserError(f"'{robot.name}' mixes step and from_state, for which lerobot has no word")
    enabled = "from_state" in frames.values()
    names = [f"{field.name}_{i}" for field in robot.action.fields for i in range(field.size)]
    kept = [f"{name}_" for name, frame in frames.items() if frame != "from_state"]
    return {"enabled": enabled, "exclude_joints": kept if enabled else [], "action_names": names if enabled else None}


def _config(robot: Embodiment, decoder: DiT, kind: str) -> dict[str, Any]:
    images = {f"observation.images.{role}": {"type": "VISUAL", "shape": [3, 224, 224]} for role in robot.cameras}
    relative = _relative(robot)
    return {
        "type": kind,
        "n_obs_steps": 1,
        "input_features": {**images, "observation.state": {"type": "STATE", "shape": [robot.state.size]}},
        "output_features": {"action": {"type": "ACTION", "shape": [robot.action.size]}},
        "chunk_size": robot.horizon,
        "n_action_steps": robot.horizon,
        "max_state_dim": decoder.padded_width,
        "max_action_dim": decoder.padded_width,
        "num_inference_steps": decoder.evaluations,
        "use_relative_actions": relative["enabled"],
        "relative_exclude_joints": relative["exclude_joints"],
        "action_feature_names": relative["action_names"],
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    }


def _processors(config: dict[str, Any], kind: str, relative: dict[str, Any]) -> dict[str, Any]:
    """Steps under lerobot's registered names, in the order of `processor_pi0.py` and `processor_pi05.py`."""
    features = {**config["input_features"], **config["output_features"]}
    normal = {"eps": 1e-8, "features": features, "norm_map": config["normalization_mapping"]}
    length = 48 if kind == "pi0" else 200
    words = {"max_length": length, "task_key": "task", "padding_side": "right", "padding": "max_length", "truncation": True}
    step = lambda name, settings, **more: {"registry_name": name, "config": settings, **more}  # noqa: E731
    spoken = step("tokenizer_processor", {**words, "tokenizer_name": TOKENIZER})
    device = step("device_processor", {"device": "cpu", "float_dtype": None})
    towards = step("relative_actions_processor", relative)
    normalize = step("normalizer_processor", normal, state_file=STATE_FILES["policy_preprocessor"])
    begin = [step("rename_observations_processor", {"rename_map": {}}), step("to_batch_processor", {})]
    if kind == "pi0":
        before = [*begin, step("pi0_new_line_processor", {}), spoken, device, towards, normalize]
    else:
        prepared = step("pi05_prepare_state_tokenizer_processor_step", {"max_state_dim": config["max_state_dim"], "task_key": "task"})
        before = [*begin, towards, normalize, prepared, spoken, device]
    back = step("unnormalizer_processor", {**normal, "features": config["output_features"]}, state_file=STATE_FILES["policy_postprocessor"])
    after = [back, step("absolute_actions_processor", {"enabled": relative["enabled"]}), device]
    steps = {"policy_preprocessor": before, "policy_postprocessor": after}
    return {f"{name}.json": {"name": name, "steps": rows} for name, rows in steps.items()}
