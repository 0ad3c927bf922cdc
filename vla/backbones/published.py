"""Configurations of published backbones by value, as in their `config.json`: to build them empty, count them, and plan before downloading.

With the weights at hand, `Family.from_pretrained(source)` reads the same from the source itself, with tokenizer and prompt. Fields that are
the library's own defaults are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla.backbones.library import LibraryConfig
from vla.backbones.paligemma import PaliGemma
from vla.backbones.prismatic import TOWERS, Prismatic
from vla.backbones.qwen_vl import Qwen3VL, Qwen25VL
from vla.backbones.smolvlm import SmolVLM
from vla.errors import UnknownName

_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "vision_use_head": False,
}


def _prismatic(**changes: Any) -> Prismatic:
    """openvla/openvla-7b: DINOv2-L and SigLIP-so400m at 224 px, Llama-2-7B with 32,064 words."""
    towers = list(TOWERS["dinosiglip-vit-so-224px"])
    library = {"model_type": "openvla", "timm_model_ids": towers, "image_sizes": [224, 224], "text_config": {"vocab_size": 32064}}
    return Prismatic(library, **changes)


def _paligemma(**changes: Any) -> PaliGemma:
    """google/paligemma-3b-pt-224: SigLIP-so400m and Gemma 2B."""
    text = {
        "model_type": "gemma",
        "hidden_size": 2048,
        "num_hidden_layers": 18,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 257216,
    }
    return PaliGemma({"model_type": "paligemma", "text_config": text, "vision_config": _SO400M, "projection_dim": 2048}, **changes)


def _paligemma2(**changes: Any) -> PaliGemma:
    """google/paligemma2-3b-pt-224: SigLIP-so400m and Gemma 2 2B."""
    text = {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 257216,
    }
    return PaliGemma({"model_type": "paligemma", "text_config": text, "vision_config": _SO400M, "projection_dim": 2304}, **changes)


def _qwen25_vl_3b(**changes: Any) -> Qwen25VL:
    """Qwen/Qwen2.5-VL-3B-Instruct."""
    text = {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    }
    tower = {
        "model_type": "qwen2_5_vl_vision",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
    }
    return Qwen25VL({"model_type": "qwen2_5_vl", "text_config": text, "vision_config": tower}, **changes)


def _qwen3_vl_2b(**changes: Any) -> Qwen3VL:
    """Qwen/Qwen3-VL-2B-Instruct; the base of GR00T N1.7's vision-language model (Cosmos-Reason2-2B)."""
    text = {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    tower = {
        "model_type": "qwen3_vl",
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return Qwen3VL({"model_type": "qwen3_vl", "text_config": text, "vision_config": tower, "tie_word_embeddings": True}, **changes)


def _smolvlm2(**changes: Any) -> SmolVLM:
    """HuggingFaceTB/SmolVLM2-500M-Video-Instruct: SigLIP-B at 512 px, SmolLM2-360M."""
    text = {
        "model_type": "llama",
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "vocab_size": 49280,
    }
    tower = {
        "model_type": "smolvlm_vision",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
        "image_size": 512,
    }
    return SmolVLM({"model_type": "smolvlm", "text_config": text, "vision_config": tower, "scale_factor": 4}, **changes)


ZOEDEPTH: dict[str, Any] = {
    "model_type": "zoedepth",
    "backbone_config": {
        "model_type": "beit",
        "image_size": 384,
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "use_relative_position_bias": True,
        "reshape_hidden_states": False,
        "out_features": ["stage6", "stage12", "stage18", "stage24"],
    },
    "neck_hidden_sizes": [256, 512, 1024, 1024],
    "bin_configurations": [
        {"name": "nyu", "n_bins": 64, "min_depth": 1e-3, "max_depth": 10.0},
        {"name": "kitti", "n_bins": 64, "min_depth": 1e-3, "max_depth": 80.0},
    ],
    "num_patch_transformer_layers": 4,
    "patch_transformer_hidden_size": 128,
    "patch_transformer_intermediate_size": 1024,
    "patch_transformer_num_attention_heads": 4,
}
"""Intel/zoedepth-nyu-kitti, SpatialVLA's estimator of depth: BEiT-L with heads for indoors and outdoors."""


PUBLISHED: dict[str, Callable[..., LibraryConfig]] = {
    "openvla/openvla-7b": _prismatic,
    "google/paligemma-3b-pt-224": _paligemma,
    "google/paligemma2-3b-pt-224": _paligemma2,
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen25_vl_3b,
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl_2b,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": _smolvlm2,
}
"""Hub id -> its configuration, without tokenizer."""


def published(source: str, **changes: Any) -> LibraryConfig:
    """The configuration of a published backbone by its hub id; UnknownName lists those known. `changes`: further settings."""
    if source not in PUBLISHED:
        raise UnknownName("published backbone", source, PUBLISHED, "Others are read by from_pretrained.")
    return PUBLISHED[source](**changes)
