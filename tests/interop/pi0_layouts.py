"""pi0, pi0.5 and pi0-FAST in openpi's PyTorch layout and lerobot's, at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.backbones.families import VOCABULARY, tokenizer_json
from tests.interop.layouts import randomise
from vla.torchvision_cpu import prepare_torchvision

T, PADDED, SIDE = 6, 12, 16
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "model_type": "gemma"}
VISION = {"hidden_size": 72, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": SIDE, "patch_size": 8}
VISION |= {"model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 32}
VLM = {"model_type": "paligemma", "text_config": TEXT, "vision_config": VISION, "projection_dim": 32, "hidden_size": 32}
VLM |= {"image_token_index": 285, "vocab_size": VOCABULARY}
EXPERT = {**TEXT, "hidden_size": 24, "intermediate_size": 56, "hidden_activation": "gelu_pytorch_tanh"}
NAMES = {
    "model.vlm.vision_tower.": "paligemma_with_expert.paligemma.model.vision_tower.vision_model.",
    "model.vlm.multi_modal_projector.": "paligemma_with_expert.paligemma.model.multi_modal_projector.",
    "model.vlm.language_model.": "paligemma_with_expert.paligemma.model.language_model.",
    "model.dit.": "paligemma_with_expert.gemma_expert.model.",
    "embed_action_time.": "",
}
"""Of transformers' PI0ForConditionalGeneration -> openpi's."""
EMBEDDING = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
HEAD = "paligemma_with_expert.paligemma.lm_head.weight"


def library_pi0(seed: int = 0):
    """transformers' own pi0, which has every tensor of openpi's but the heads."""
    prepare_torchvision()
    from transformers import PI0Config, PI0ForConditionalGeneration

    config = PI0Config(vlm_config=dict(VLM), dit_config=dict(EXPERT), chunk_size=T, max_action_dim=PADDED, max_state_dim=PADDED)
    model = PI0ForConditionalGeneration(config).eval()
    values = randomise(dict(model.state_dict()), seed)
    model.load_state_dict({name: t - (1 if "norm" in name and t.dim() == 1 and "vision" not in name else 0) for name, t in values.items()})
    return model


def openpi_names(model) -> dict[str, Tensor]:
    """Its tensors as openpi calls them."""
    found = {}
    for name, tensor in model.state_dict().items():
        if name in ("lm_head.weight",) or name.startswith("model.dit.embed_tokens"):
            continue
        for theirs, openpi in NAMES.items():
            if name.startswith(theirs):
                name = openpi + name.removeprefix(theirs)
                break
        found[name] = tensor
    return found


def openpi(
    folder: Path, tensors: dict[str, Tensor], width: int, state: int, horizon: int = T, extra: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """`convert_jax_model_to_pytorch.py`: config.json, model.safetensors (the tied words under the head's name) and assets."""
    folder.mkdir()
    tensors = {HEAD if name == EMBEDDING else name: t for name, t in tensors.items()}
    tensors |= {"paligemma_with_expert.gemma_expert.lm_head.weight": torch.randn(VOCABULARY, EXPERT["hidden_size"]), **(extra or {})}
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    config = {"action_dim": PADDED, "action_horizon": horizon, "paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m"}
    (folder / "config.json").write_text(json.dumps({**config, "precision": "float32"}))
    (folder / "assets" / "arm").mkdir(parents=True)
    numbers = {"state": statistics(state, 1), "actions": statistics(width, 2)}
    (folder / "assets" / "arm" / "norm_stats.json").write_text(json.dumps({"norm_stats": numbers}))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return tensors


def lerobot(
    folder: Path, kind: str, tensors: dict[str, Tensor], width: int, state: int, relative: bool = False, modes: str = "MEAN_STD", **more
) -> None:
    """`save_pretrained` of a policy with its processors."""
    folder.mkdir()
    save_file({f"model.{name}": t.contiguous().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    images = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, SIDE, SIDE]} for name in ("top", "wrist", "empty_camera_0")}
    config = {
        "type": kind,
        "chunk_size": T,
        "max_action_dim": PADDED,
        "max_state_dim": PADDED,
        "num_inference_steps": 5,
        "input_features": {**images, "observation.state": {"type": "STATE", "shape": [state]}},
        "output_features": {"action": {"type": "ACTION", "shape": [width]}},
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))
    file = "policy_preprocessor_step_5_normalizer_processor.safetensors"
    numbers = {"observation.state": statistics(state, 1), "action": statistics(width, 2)}
    flat = {f"{feature}.{kind}": torch.tensor(values) for feature, row in numbers.items() for kind, values in row.items()}
    save_file(flat, folder / file)
    norm_map = {"VISUAL": "IDENTITY", "STATE": modes, "ACTION": modes}
    steps = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {
            "registry_name": "relative_actions_processor",
            "config": {"enabled": relative, "exclude_joints": ["gripper"], "action_names": None},
        },
        {"registry_name": "normalizer_processor", "config": {"eps": 1e-8, "norm_map": norm_map}, "state_file": file},
    ]
    (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))


def statistics(size: int, seed: int) -> dict[str, list[float]]:
    draw = torch.Generator().manual_seed(seed)
    low, spread = torch.randn(size, generator=draw) * 0.2, torch.rand(size, generator=draw) + 0.2
    found = {"mean": low + spread / 2, "std": spread / 4, "q01": low, "q99": low + spread, "min": low - 0.1, "max": low + spread + 0.1}
    return {name: values.double().tolist() for name, values in found.items()}
