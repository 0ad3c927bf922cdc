"""Configurations as frozen dataclasses that know their kind, and their way to JSON and back.

A part that a checkpoint can hold is a frozen dataclass with a class variable `kind` and a method `build(...)`. The JSON records the
kind and never causes an import by itself: known kinds are the table below and what `--plugin` brought in.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.errors import SchemaError, UnknownName, UserError

KINDS = {
    "model.vla": "vla.model:Model",
    "backbone.tiny": "vla.backbones.tiny:Tiny",
    "backbone.paligemma": "vla.backbones.paligemma:PaliGemma",
    "backbone.prismatic": "vla.backbones.prismatic:Prismatic",
    "backbone.qwen2_5_vl": "vla.backbones.qwen_vl:Qwen25VL",
    "backbone.qwen3_vl": "vla.backbones.qwen_vl:Qwen3VL",
    "backbone.smolvlm": "vla.backbones.smolvlm:SmolVLM",
    "prompt": "vla.backbones.prompts:Prompt",
    "pixels": "vla.backbones.images:Pixels",
    "lora": "vla.backbones.adapters:LoRA",
    "origin": "vla.backbones.library:Origin",
    "codec.bins": "vla.codecs.bins:Bins",
    "codec.fast": "vla.codecs.fast:FAST",
    "codec.grid": "vla.codecs.grid:Grid",
    "codec.vq": "vla.codecs.vq:VQCodes",
    "ego3d": "vla.backbones.ego3d:Ego3D",
    "align.contrastive": "vla.alignment:Align",
    "film": "vla.backbones.film:FiLM",
    "stem.resnet18": "vla.backbones.stems:ResNet18",
    "state.tokens": "vla.state:StateTokens",
    "state.words": "vla.state:StateWords",
    "state.none": "vla.state:NoState",
    "head.linear": "vla.decoders.heads:Linear",
    "head.resnet": "vla.decoders.heads:ResNet",
    "decoder.classes": "vla.decoders.classes:ParallelClasses",
    "decoder.tokens": "vla.decoders.tokens:AutoregressiveTokens",
    "decoder.parallel": "vla.decoders.parallel:Parallel",
    "decoder.masked": "vla.decoders.masked:MaskedDiffusion",
    "decoder.dit": "vla.decoders.dit:DiT",
    "decoder.latent": "vla.decoders.latent:LatentActions",
    "decoder.latent_flow": "vla.decoders.latent_flow:LatentFlow",
    "decoder.latent_words": "vla.decoders.latent_words:LatentWords",
    "decoder.joint": "vla.decoders.joint:Joint",
    "decoder.joint.part": "vla.decoders.joint:Part",
    "decoder.one_step": "vla.decoders.one_step:OneStep",
    "decoder.reason_then_act": "vla.decoders.reasoning:ReasonThenAct",
    "path.ddpm": "vla.diffusion.ddpm:DDPM",
    "path.flow": "vla.diffusion.flow:Flow",
    "conditioning.cross": "vla.decoders.conditioning:CrossAttention",
    "conditioning.pooled": "vla.decoders.conditioning:Pooled",
    "conditioning.layer_keys_values": "vla.decoders.conditioning:LayerKeysValues",
    "conditioning.in_context": "vla.decoders.conditioning:InContext",
    "latent_action.model": "vla.latent_action.model:LatentActionConfig",
    "latent_action.features.pixels": "vla.latent_action.features:Pixels",
    "latent_action.features.tiny_conv": "vla.latent_action.features:TinyConv",
    "latent_action.features.timm": "vla.latent_action.frozen:TimmTower",
    "latent_action.features.transformers": "vla.latent_action.frozen:TransformersTower",
    "latent_action.features.policy": "vla.latent_action.frozen:PolicyVision",
    "latent_action.encoder.patch_difference": "vla.latent_action.encoder:PatchDifference",
    "latent_action.encoder.window": "vla.latent_action.encoder:WindowTransformer",
    "latent_action.language.words": "vla.latent_action.language:Words",
    "latent_action.proprio": "vla.latent_action.proprio:Proprio",
    "latent_action.encoder.state_difference": "vla.latent_action.encoder:StateDifference",
    "latent_action.encoder.spatio_temporal": "vla.latent_action.encoder:SpatioTemporal",
    "latent_action.quantizer.residual_vq": "vla.codecs.quantizer:ResidualVQ",
    "latent_action.quantizer.vq": "vla.codecs.quantizer:VQ",
    "latent_action.quantizer.nsvq": "vla.codecs.quantizer:NSVQ",
    "latent_action.quantizer.fsq": "vla.codecs.quantizer:FSQ",
    "latent_action.decoder.conv": "vla.latent_action.decoder:ForwardConv",
    "latent_action.decoder.transformer": "vla.latent_action.decoder:ForwardTransformer",
}
"""kind -> where it lives. One line per part; third parties add theirs by `load_plugin`, not here."""

_PLUGINS: dict[str, type] = {}
MOST_SHOWN = 60
"""Characters of a mistyped value in a message; of a longer one its type alone."""


def to_json(config: Any) -> Any:
    """A (nested) configuration -> plain JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        rows = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"kind": config.kind, **rows} if hasattr(config, "kind") else rows
    if isinstance(config, (list, tuple)):
        return [to_json(item) for item in config]
    if isinstance(config, Mapping):
        return {str(key): to_json(item) for key, item in config.items()}
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise SchemaError(f"a configuration cannot hold a {type(config).__name__}")


def from_json(data: Any) -> Any:
    """The inverse of `to_json` for dataclasses with a kind; unknown kinds and keys are errors that list the choices.

    A class says in `older_files` what a setting is in files from before there was one."""
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, Mapping) or "kind" not in data:
        return data
    cls = find_kind(str(data["kind"]))
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    extra = set(data) - known - {"kind"}
    if extra:
        raise UnknownName(f"setting of {data['kind']}", sorted(extra)[0], known)
    given = {key: from_json(value) for key, value in data.items() if key != "kind"}
    return cls(**{**getattr(cls, "older_files", {}), **given})


def find_kind(kind: str) -> type:
    """The configuration class of a kind; built in, or from a plug-in that the user named."""
    if kind in _PLUGINS:
        return _PLUGINS[kind]
    if kind not in KINDS:
        raise UnknownName("kind", kind, [*KINDS, *_PLUGINS], "If it comes from a plug-in, name it with --plugin module_or_file.")
    module, name = KINDS[kind].split(":")
    return getattr(importlib.import_module(module), name)


def load_plugin(module_or_file: str) -> list[str]:
    """Imports a module or .py file that the user named, and makes its kinds known. Returns them.

    Every dataclass in it with its own `kind` counts. A kind that exists already is refused: a checkpoint must mean one thing. What is
    loaded afterwards, a recipe say, may import a file by its name: `from my_decoder import MyDecoder`.
    """
    if module_or_file.endswith(".py"):
        path = Path(module_or_file)
        if not path.is_file():
            raise UserError(f"no plug-in file {path}")
        spec = importlib.util.spec_from_file_location(f"vla_plugin_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up by name.
        import sys

        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        if path.stem.isidentifier() and path.stem not in sys.modules:
            other = importlib.util.find_spec(path.stem)
            if other is None or (other.origin is not None and Path(other.origin).resolve() == path.resolve()):
                sys.modules[path.stem] = module
    else:
        try:
            module = importlib.import_module(module_or_file)
        except ModuleNotFoundError as error:
            raise UserError(f"no plug-in module '{module_or_file}' ({error})") from error
    return register(module)


def register(module: types.ModuleType) -> list[str]:
    """Makes the kinds that a loaded module defines known. Returns them."""
    found = []
    for value in vars(module).values():
        kind = getattr(value, "kind", None)
        own = isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
        if not own or not isinstance(kind, str):
            continue
        if kind in KINDS:
            raise UserError(f"plug-in kind '{kind}' is already taken by {KINDS[kind]}; give it another name")
        _PLUGINS[kind] = value
        found.append(kind)
    if not found:
        raise UserError(f"{module.__name__} defines no dataclass with a `kind`")
    return found


def check_types(config: Any) -> None:
    """Raises SchemaError where a setting is of another type than its annotation says (a mistyped recipe).

    A list passes for a tuple. Annotations of other forms than those that settings have here (Literal, say) are not looked into.
    """
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not _is(value, hints[f.name]):
            shown = repr(value) if len(repr(value)) < MOST_SHOWN else f"a {type(value).__name__}"
            raise SchemaError(f"{type(config).__name__}.{f.name} must be {f.type}, not {shown}")


def _is(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint in (int, float):  # True is an int to Python, and in a recipe a mistake
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if origin in (types.UnionType, typing.Union):
        return any(_is(value, choice) for choice in inner)
    if origin is tuple:
        wants = [inner[0]] * len(value) if isinstance(value, (tuple, list)) and inner[1:] == (...,) else inner
        return isinstance(value, (tuple, list)) and len(value) == len(wants) and all(map(_is, value, wants))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_is(key, inner[0]) and _is(item, inner[1]) for key, item in value.items())
    return origin is not None or not isinstance(hint, type) or isinstance(value, hint)
