"""Configurations and weights from a hub id or a local folder. No code of theirs runs: native classes, JSON and safetensors alone."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vla.backbones.images import Pixels
from vla.backbones.library import LibraryBackbone, LibraryConfig, Origin
from vla.backbones.prompts import pack_tokenizer
from vla.errors import SchemaError, UnknownName, UserError

FAMILIES = {
    "paligemma": "vla.backbones.paligemma:PaliGemma",
    "qwen2_5_vl": "vla.backbones.qwen_vl:Qwen25VL",
    "qwen3_vl": "vla.backbones.qwen_vl:Qwen3VL",
    "smolvlm": "vla.backbones.smolvlm:SmolVLM",
    "prismatic": "vla.backbones.prismatic:Prismatic",
    "openvla": "vla.backbones.prismatic:Prismatic",
}
"""What `model_type` in a config.json says -> the family."""

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, as preprocessor_config.json has them


def from_pretrained(source: str, revision: str = "", **changes: Any) -> LibraryConfig:
    """The configuration of any supported model. `source`: a hub id, whose `revision` must be a commit, or a local folder."""
    return read_config(source, revision, LibraryConfig, **changes)


def read_config(source: str, revision: str, cls: type, **changes: Any) -> LibraryConfig:
    """See `LibraryConfig.from_pretrained`; `cls` is the family that is asked for, or `LibraryConfig` for any."""
    origin = Origin(source, revision)
    data = _json(origin, "config.json")
    model_type = str(data.get("model_type", ""))
    if model_type not in FAMILIES:
        raise UnknownName("backbone family", model_type, FAMILIES, f"That is what {source} says it is (config.json, model_type).")
    module, name = FAMILIES[model_type].split(":")
    family = getattr(importlib.import_module(module), name)
    if not issubclass(family, cls):
        raise UserError(f"{source} is a '{model_type}' model: load it by {family.__name__}.from_pretrained, not {cls.__name__}'s")
    settings = {"library": family.library_of(data), "tokenizer": _tokenizer(origin), "origin": origin}
    settings |= family.pixels_of(_json(origin, "preprocessor_config.json"))
    return family(**{**settings, **changes})


def read_weights(backbone: LibraryBackbone, origin: Origin) -> list[str]:
    """Fills the backbone from safetensors. Raises UserError naming tensors that are missing, left over or of another shape."""
    theirs = backbone.published_weights(origin)
    mine = backbone.state_dict()
    added = ("film.", "ego3d.")  # beside a published model, unless it was published with them
    fresh = {name for name in mine if ".lora_" in name or (name.startswith(added) and name not in theirs)}
    plain = {name: name.replace(".base_layer.", ".") for name in mine if name not in fresh}
    missing = sorted(name for name in plain.values() if name not in theirs)
    extra = sorted(set(theirs) - set(plain.values()))
    wrong = [name for name, key in plain.items() if key in theirs and theirs[key].shape != mine[name].shape]
    if wrong:
        shapes = f"{tuple(theirs[plain[wrong[0]]].shape)}, not {tuple(mine[wrong[0]].shape)}"
        raise SchemaError(f"{origin.source}: '{wrong[0]}' has the shape {shapes}; these are not the weights of this configuration")
    if missing or extra:
        raise SchemaError(f"{origin.source}: weights of another model. Missing: {missing[:3]}; left over: {extra[:3]}")
    values = {name: theirs[key].to(mine[name].dtype) for name, key in plain.items()}
    backbone.load_state_dict(values, strict=False, assign=any(tensor.is_meta for tensor in mine.values()))
    return [f"backbone from {origin.source}{f' at {origin.revision[:8]}' if origin.revision else ''}: {len(values)} tensors"]


def fetch(origin: Origin, name: str) -> Path:
    """A file of a local folder or of the hub (cached). Raises UserError: no such model, gated, not pinned, no network."""
    folder = Path(origin.source)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; files there: {', '.join(sorted(path.name for path in folder.iterdir())[:8])}")
        return folder / name
    check_hub(origin)
    from huggingface_hub import hf_hub_download

    return Path(ask_hub(origin, lambda: hf_hub_download(origin.source, name, revision=origin.revision)))


def check_hub(origin: Origin) -> None:
    """Raises UserError unless it is a hub id at a commit."""
    if not HUB_ID.fullmatch(origin.source):
        raise UserError(f"'{origin.source}' is neither a folder here nor a hub id (owner/name)")
    if not COMMIT.fullmatch(origin.revision):
        fix = "name the commit it was tested with: revision='<40 hexadecimal digits>' (on the model's page: Files, History)"
        raise UserError(f"{origin.source}: a hub id without a pinned revision may change under you; {fix}")


def ask_hub(origin: Origin, ask: Callable[[], Any]) -> Any:
    """`ask()`, with what the hub may answer as one line and the fix."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return ask()
    except GatedRepoError as error:
        fix = f"accept its licence at https://huggingface.co/{origin.source}, then `hf auth login` (or HF_TOKEN)"
        raise UserError(f"{origin.source} is gated: {fix}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"no model '{origin.source}' on the hub, or it is private: check the name, or `hf auth login`") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{origin.source} is not in the cache, and the hub cannot be reached: download it, or give a local folder"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{origin.source} at {origin.revision[:8]} lacks a file: {str(error).splitlines()[-1]}") from error


def _json(origin: Origin, name: str) -> Mapping[str, Any]:
    path = fetch(origin, name)
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise SchemaError(f"{origin.source}: {name} is not readable ({error})") from error
    if not isinstance(data, dict):
        raise SchemaError(f"{origin.source}: {name} is no JSON object")
    return data


def _tokenizer(origin: Origin) -> str:
    return pack_tokenizer(fetch(origin, "tokenizer.json").read_text())


def pixels_of(data: Mapping[str, Any], default: Pixels) -> Pixels:
    """What preprocessor_config.json says beside a family's defaults."""
    size = data.get("size") or {}
    changes: dict[str, Any] = {name: tuple(data[f"image_{name}"]) for name in ("mean", "std") if f"image_{name}" in data}
    if data.get("resample") in FILTERS:
        changes["filter"] = FILTERS[data["resample"]]
    if default.longest and "longest_edge" in size:
        changes["longest"] = size["longest_edge"]
    if default.most_pixels:  # newer files say shortest_edge and longest_edge, and mean areas
        least, most = data.get("min_pixels", size.get("shortest_edge")), data.get("max_pixels", size.get("longest_edge"))
        changes |= {"least_pixels": least} if least else {}
        changes |= {"most_pixels": most} if most else {}
    return replace(default, **changes)


def library_weights(backbone: Any, origin: Origin) -> dict[str, Tensor]:
    """By the library's own loader, which knows older names."""
    folder = weights_folder(origin)
    import transformers

    from vla.backbones.parse import library_config

    with_head = backbone.head is not None
    # Whose loader knows more names than that of the model without a head.
    name = backbone.config.library_class.replace("Model", "ForConditionalGeneration")
    settings = {"config": library_config(backbone.config.library), "use_safetensors": True, "dtype": "auto"}
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # it would raise without naming the shapes
    whole, info = getattr(transformers, name).from_pretrained(folder, **settings, **told)
    if info["mismatched_keys"]:
        key, theirs, mine = sorted(info["mismatched_keys"])[0]
        shapes = f"{tuple(theirs)}, not {tuple(mine)}"
        raise SchemaError(f"{origin.source}: '{key}' has the shape {shapes}; these are not the weights of this configuration")
    missing = sorted(key for key in info["missing_keys"] if with_head or not key.startswith("lm_head."))
    if missing:
        raise SchemaError(f"{origin.source}: weights of another model. Missing: {missing[:3]}")
    found = {f"{part}.{key}": t for part, at in backbone.library_parts.items() for key, t in getattr(whole.model, at).state_dict().items()}
    return {**found, "head.weight": whole.lm_head.weight.detach()} if with_head else found


def weights_folder(origin: Origin) -> Path:
    """A folder with safetensors and JSON: the given one, or the hub's in the cache."""
    folder = Path(origin.source)
    if not folder.is_dir():
        check_hub(origin)
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.json"]
        folder = Path(ask_hub(origin, lambda: snapshot_download(origin.source, revision=origin.revision, allow_patterns=patterns)))
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{origin.source} has no *.safetensors; weights in other formats (pickles can run code) are not read")
    return folder
