"""Back to OpenVLA's Hugging Face layout. The last block of each tower, which nothing reads and we do not keep, is written as zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vla.backbones.prismatic import IMAGENET_MEAN, IMAGENET_STD, TOWER_NAMES, TOWERS, Prismatic
from vla.checkpoint import Contents
from vla.codecs.bins import Bins
from vla.decoders.tokens import AutoregressiveTokens
from vla.errors import UserError
from vla.interop.export import Exported, require_zero
from vla.interop.openvla import EMBEDDING, EMPTY_PIECE, HEAD
from vla.interop.plan import Make, Rule, Take
from vla.interop.prismatic import HUGGING_FACE
from vla.interop.tensors import Stored
from vla.normalize import Normalizer
from vla.state import NoState
from vla.torchvision_cpu import prepare_torchvision

PADDING = 64


def plan(contents: Contents, weights: Mapping[str, Stored]) -> Exported:
    """UserError unless it is an OpenVLA, with one step a chunk and every parameter in a place that theirs has too."""
    backbone, decoder = contents.model.backbone, contents.model.decoder
    codec = getattr(decoder, "codec", None)
    fits = isinstance(backbone, Prismatic) and isinstance(decoder, AutoregressiveTokens) and isinstance(contents.model.state, NoState)
    if not fits or codec != Bins(edges=getattr(codec, "edges", 0), top=True) or backbone.film is not None or backbone.lora is not None:
        raise UserError("this is no OpenVLA: it needs Prismatic with its head, codes of bins one by one, and no state")
    if not backbone.head or any(robot.horizon != 1 for robot in contents.embodiments):
        raise UserError("OpenVLA has a head of words, and chunks of one step")
    require_zero(weights, ("decoder.codes.slot_ND", "decoder.codes.head.bias"), "OpenVLA's layout")
    rules: dict[str, Rule] = {}
    for name in weights:
        for ours, theirs in HUGGING_FACE.items():
            if name.startswith(ours):
                rules[name.replace(ours, theirs, 1).replace(".gamma", ".scale_factor")] = Take(name)
    words, codes = backbone.library["text_config"]["vocab_size"] - PADDING, codec.edges
    code_in, head = "decoder.codes.code_in.weight", "decoder.codes.head.weight"

    def spoken(table: Tensor, code: Tensor) -> Tensor:
        return torch.cat([table[: words - codes], code[:codes].flip(0).to(table.dtype), table[words:]])

    def begun(table: Tensor, code: Tensor) -> Tensor:
        table = spoken(table, code)
        return torch.cat([table[:EMPTY_PIECE], code[codes:].to(table.dtype), table[EMPTY_PIECE + 1 :]])

    rules[EMBEDDING] = Make(("backbone.language.embed_tokens.weight", code_in), begun)
    rules[HEAD] = Make(("backbone.head.weight", head), spoken)
    rules |= _unread(backbone, rules)
    statistics = {robot.name: {"action": bounds(contents.normalizers[robot.name].action)} for robot in contents.embodiments}
    notes = (
        "the modelling code is not included: copy the *.py files of openvla/openvla-7b beside it",
        "statistics: q01, q99 and mask alone",
    )
    return Exported(
        rules, {"config.json": _config(backbone, codec, statistics), "preprocessor_config.json": _pixels(backbone)}, notes=notes
    )


def bounds(normalizer: Normalizer) -> dict[str, list[Any]]:
    """What their un-normalisation reads. Numbers that are left alone have no mask."""
    pairs = list(zip(normalizer.offset, normalizer.scale, strict=True))
    low, high = [offset - scale for offset, scale in pairs], [offset + scale for offset, scale in pairs]
    mask = [pair != (0.0, 1.0) for pair in pairs]
    return {"q01": low, "q99": high, "min": low, "max": high, "mask": mask}


def _unread(backbone: Prismatic, rules: Mapping[str, Rule]) -> dict[str, Tensor]:
    """Zeros for what whole towers have beyond ours."""
    prepare_torchvision()
    import timm

    found = {}
    library = backbone.library
    overrides = library.get("timm_overrides") or [{}] * len(library["timm_model_ids"])
    for attribute, name, side, more in zip(TOWER_NAMES, library["timm_model_ids"], library["image_sizes"], overrides, strict=False):
        with torch.device("meta"):
            tower = timm.create_model(name, pretrained=False, num_classes=0, img_size=side, **more)
        for key, tensor in tower.state_dict().items():
            theirs = f"vision_backbone.{attribute}.{key.replace('.gamma', '.scale_factor')}"
            if theirs not in rules:
                found[theirs] = torch.zeros(tensor.shape, dtype=torch.bfloat16)
    return found


def _config(backbone: Prismatic, codec: Bins, statistics: dict[str, Any]) -> dict[str, Any]:
    library = backbone.library
    names = tuple(library["timm_model_ids"])
    known = [key for key, towers in TOWERS.items() if towers == names]
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        **({"vision_backbone_id": known[0]} if known else {}),
        "llm_backbone_id": "llama2-7b-pure",
        "image_resize_strategy": "resize-naive",
        "timm_model_ids": list(names),
        "image_sizes": list(library["image_sizes"]),
        **({"timm_overrides": library["timm_overrides"]} if "timm_overrides" in library else {}),
        "text_config": dict(library["text_config"]),
        "pad_to_multiple_of": PADDING,
        "n_action_bins": codec.edges,
        "norm_stats": statistics,
    }


def _pixels(backbone: Prismatic) -> dict[str, Any]:
    pixels = [(p.mean, p.std) for p in backbone.tower_pixels] or [(IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)]
    means, stds = ([list(each[i]) for each in pixels] for i in (0, 1))
    return {"image_resize_strategy": "resize-naive", "means": means, "stds": stds, "use_fused_vision_backbone": len(pixels) == 2}
