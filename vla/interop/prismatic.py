"""Names of Prismatic backbones: the Hugging Face layout of OpenVLA, OFT and UniVLA, and the `.pt` of the native code (CogACT)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vla.errors import SchemaError, UnknownName
from vla.interop.plan import Rule, Take
from vla.interop.tensors import Stored

CUT = "the last block of a vision tower and what comes after it: features are those of the block before"
HUGGING_FACE = {
    "backbone.vision.": "vision_backbone.",
    "backbone.projector.": "projector.",
    "backbone.language.": "language_model.model.",
    "backbone.head.": "language_model.lm_head.",
}
NATIVE = {
    "backbone.vision.featurizer.": "vision_backbone.dino_featurizer.",
    "backbone.vision.fused_featurizer.": "vision_backbone.siglip_featurizer.",
    "backbone.projector.fc1.": "projector.projector.0.",
    "backbone.projector.fc2.": "projector.projector.2.",
    "backbone.projector.fc3.": "projector.projector.4.",
    "backbone.language.": "llm_backbone.llm.model.",
    "backbone.head.": "llm_backbone.llm.lm_head.",
}
TOWERS = {
    "dinov2": ("vit_large_patch14_reg4_dinov2.lvd142m", 64, (1024, 24, 4096, 14)),
    "siglip": ("vit_so400m_patch14_siglip_224", 72, (1152, 27, 4304, 14)),
}
"""timm's name, width of a head, and its (width, depth, width of the MLP, patch)."""


def rules(targets: Iterable[str], layout: Mapping[str, str]) -> dict[str, Rule]:
    """For the backbone's own tensors, all of which have another name and the same value."""
    found: dict[str, Rule] = {}
    for name in targets:
        for ours, theirs in layout.items():
            if name.startswith(ours):
                renamed = name.replace(ours, theirs, 1)
                found[name] = Take(renamed.replace(".gamma", ".scale_factor") if layout is HUGGING_FACE else renamed)
    return found


def left(backbone: Any, layout: Mapping[str, str]) -> dict[str, str]:
    """Beginnings of the names of what is cut away here."""
    found: dict[str, str] = {}
    for name in backbone.cut():
        prefix = f"backbone.{name}"
        for ours, theirs in layout.items():
            prefix = prefix.replace(ours, theirs, 1) if prefix.startswith(ours) else prefix
        found[prefix] = CUT
    return found


def native_library(stored: Mapping[str, Stored], source: str) -> dict[str, Any]:
    """Sizes from the shapes of a native checkpoint, which states none. Llama-2's own settings (its config.json) are theirs."""
    names, overrides = [], []
    for key, kind in (("dino_featurizer", "dinov2"), ("siglip_featurizer", "siglip")):
        prefix = f"vision_backbone.{key}."
        if f"{prefix}patch_embed.proj.weight" not in stored:
            raise SchemaError(f"{source} has no '{prefix}patch_embed.proj.weight'; it needs both towers (DINOv2 and SigLIP)")
        name, head, published = TOWERS[kind]
        width, _, patch, _ = stored[f"{prefix}patch_embed.proj.weight"].shape
        depth, mlp = count(stored, f"{prefix}blocks."), stored[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0]
        # timm rounds the product down.
        size = {"embed_dim": width, "depth": depth, "num_heads": width // head, "mlp_ratio": (mlp + 0.5) / width, "patch_size": patch}
        names.append((name, patch * round(stored[f"{prefix}pos_embed"].shape[1] ** 0.5)))
        overrides.append({} if (width, depth, mlp, patch) == published else size)
    if any(side != names[0][1] for _, side in names):
        raise UnknownName("pair of image sizes", [side for _, side in names], ["equal ones"])
    words, width = stored["llm_backbone.llm.model.embed_tokens.weight"].shape
    text = {
        "model_type": "llama",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": stored["llm_backbone.llm.model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": count(stored, "llm_backbone.llm.model.layers."),
        "num_attention_heads": max(1, width // 128),
        "num_key_value_heads": max(1, stored["llm_backbone.llm.model.layers.0.self_attn.k_proj.weight"].shape[0] // 128),
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "pad_token_id": 32000,
    }
    library = {"model_type": "prismatic", "timm_model_ids": [name for name, _ in names], "image_sizes": [side for _, side in names]}
    library |= {"timm_overrides": overrides} if any(overrides) else {}
    return {**library, "text_config": text}


def count(stored: Mapping[str, Stored], prefix: str) -> int:
    """Layers of a stack."""
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in stored if name.startswith(prefix))
