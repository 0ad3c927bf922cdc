"""Names and sizes of PaliGemma and its expert in openpi's PyTorch files (`models_pytorch/`) and lerobot's (`policies/pi0*`).

lerobot's stand under `model.`; some versions of transformers have a `vision_model.` more. The word embeddings are tied to the head in
openpi's, and may be stored under the name of either. No file states sizes: they follow from the shapes, given one head of keys and the
72 numbers of a head of SigLIP-so400m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from vla.backbones.images import Pixels
from vla.backbones.paligemma import PaliGemma
from vla.backbones.prompts import Prompt
from vla.errors import SchemaError
from vla.interop.plan import Make, Rule, Take
from vla.interop.tensors import Stored

WHOLE = "paligemma_with_expert."
VISION, PROJECTOR = f"{WHOLE}paligemma.model.vision_tower.", f"{WHOLE}paligemma.model.multi_modal_projector."
LANGUAGE, EXPERT = f"{WHOLE}paligemma.model.language_model.", f"{WHOLE}gemma_expert.model."
EMBEDDING, HEAD = f"{LANGUAGE}embed_tokens.weight", f"{WHOLE}paligemma.lm_head.weight"
SIGLIP_HEAD = 72
PIXELS = Pixels(filter="bilinear", fit="pad")
OURS = {"backbone.vision.": VISION, "backbone.projector.": PROJECTOR, "backbone.language.": LANGUAGE}
TIME_MLPS = {"pi0": ("decoder.time_mix", "action_time_mlp"), "pi05": ("decoder.time_in.mlp", "time_mlp")}
"""Variant -> what two linear maps tell the expert the time by: our name, theirs."""


@dataclass(frozen=True)
class Names:
    """Their tensors under openpi's names, whatever the file calls them."""

    stored: Mapping[str, Stored]
    source: str

    @cached_property
    def actual(self) -> dict[str, str]:
        """openpi's name -> the file's."""
        return {name.removeprefix("model.").replace(".vision_tower.vision_model.", ".vision_tower."): name for name in self.stored}

    def __contains__(self, name: str) -> bool:
        return name in self.actual

    def of(self, name: str) -> str:
        """What the file calls it; where it has no such tensor, the name itself, for the message."""
        if name == EMBEDDING and name not in self:
            return self.of(HEAD) if HEAD in self else name
        return self.actual.get(name, name)

    def shape(self, name: str) -> tuple[int, ...]:
        """SchemaError where there is no such tensor."""
        actual = self.of(name)
        if actual not in self.stored:
            raise SchemaError(f"{self.source} has no '{name}'; it is no pi0 of openpi or lerobot")
        return self.stored[actual].shape

    def count(self, prefix: str) -> int:
        """Layers of a stack."""
        found = [int(name.removeprefix(prefix).split(".")[0]) for name in self.actual if name.startswith(prefix)]
        if not found:
            raise SchemaError(f"{self.source} has no '{prefix}0...'; it is no pi0 of openpi or lerobot")
        return 1 + max(found)

    def backbone(self, tokenizer: str, prompt: Prompt) -> PaliGemma:
        """PaliGemma by value, at the sizes of the file."""
        layer = f"{LANGUAGE}layers.0."
        head = self.shape(f"{layer}self_attn.k_proj.weight")[0]
        words, width = self.shape(EMBEDDING)
        text = {
            "model_type": "gemma",
            "hidden_size": width,
            "num_hidden_layers": self.count(f"{LANGUAGE}layers."),
            "intermediate_size": self.shape(f"{layer}mlp.up_proj.weight")[0],
            "num_attention_heads": self.shape(f"{layer}self_attn.q_proj.weight")[0] // head,
            "num_key_value_heads": 1,
            "head_dim": head,
            "vocab_size": words,
        }
        vision_width, _, patch, _ = self.shape(f"{VISION}embeddings.patch_embedding.weight")
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": vision_width,
            "intermediate_size": self.shape(f"{VISION}encoder.layers.0.mlp.fc1.weight")[0],
            "num_hidden_layers": self.count(f"{VISION}encoder.layers."),
            "num_attention_heads": max(1, vision_width // SIGLIP_HEAD),
            "patch_size": patch,
            "image_size": patch * round(self.shape(f"{VISION}embeddings.position_embedding.weight")[0] ** 0.5),
            "vision_use_head": False,
        }
        library: dict[str, Any] = {"model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": width}
        return PaliGemma(library, tokenizer=tokenizer, prompt=prompt, pixels=PIXELS)

    def backbone_rules(self, targets: Mapping[str, Any]) -> dict[str, Rule]:
        """Of `backbone.`: every tensor as it is."""
        pairs = ((name, name.replace(ours, theirs, 1)) for name in targets for ours, theirs in OURS.items() if name.startswith(ours))
        return {name: Take(self.of(theirs)) for name, theirs in pairs}

    def expert_rules(self, targets: Mapping[str, Any]) -> dict[str, Rule]:
        """Of `decoder.conditioning.expert.`: Gemma's norms multiply by 1 + weight; queries, keys and values are one or two maps here."""
        found: dict[str, Rule] = {}
        prefix = "decoder.conditioning.expert."
        for name in targets:
            if not name.startswith(prefix):
                continue
            part = name.removeprefix(prefix)
            if part.startswith("blocks."):
                _, index, inner = part.split(".", 2)
                parts, how = _BLOCK[inner]
                found[name] = self._make([f"{EXPERT}layers.{index}.{each}" for each in parts], how)
            else:
                parts, how = _LAST[part]
                found[name] = self._make([f"{EXPERT}{each}" for each in parts], how)
        return found

    def _make(self, names: list[str], how: Any) -> Rule:
        actual = tuple(self.of(name) for name in names)
        return Take(actual[0]) if how is None else Make(actual, how)


def _joined(*parts: Tensor) -> Tensor:
    import torch

    return torch.cat(parts)


def _plus_one(weight: Tensor) -> Tensor:
    return weight.float() + 1


def _without_gate(tensor: Tensor) -> Tensor:
    """Scale and shift of three: nothing is gated by the last norm."""
    return tensor[: len(tensor) // 3 * 2]


_BLOCK: dict[str, tuple[tuple[str, ...], Any]] = {
    "norm1.weight_D": (("input_layernorm.weight",), _plus_one),
    "norm2.weight_D": (("post_attention_layernorm.weight",), _plus_one),
    "norm1.modulate.weight": (("input_layernorm.dense.weight",), None),
    "norm1.modulate.bias": (("input_layernorm.dense.bias",), None),
    "norm2.modulate.weight": (("post_attention_layernorm.dense.weight",), None),
    "norm2.modulate.bias": (("post_attention_layernorm.dense.bias",), None),
    "q.weight": (("self_attn.q_proj.weight",), None),
    "kv.weight": (("self_attn.k_proj.weight", "self_attn.v_proj.weight"), _joined),
    "out.weight": (("self_attn.o_proj.weight",), None),
    "mlp.up.weight": (("mlp.gate_proj.weight", "mlp.up_proj.weight"), _joined),
    "mlp.down.weight": (("mlp.down_proj.weight",), None),
}
_LAST: dict[str, tuple[tuple[str, ...], Any]] = {
    "norm.weight_D": (("norm.weight",), _plus_one),
    "norm.modulate.weight": (("norm.dense.weight",), _without_gate),
    "norm.modulate.bias": (("norm.dense.bias",), _without_gate),
}
