"""A library configuration, kept by value -> the library's own objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from vla.errors import UserError
from vla.torchvision_cpu import prepare_torchvision

OLDEST = "5.15"
"""Of transformers; 5.17 and 5.23 pass all tests of the backbones."""


def library_config(library: Mapping[str, Any]) -> Any:
    """The library's configuration object. Weights are made in torch's default type, whatever the one they were published in."""
    prepare_torchvision()
    from transformers import CONFIG_MAPPING, __version__
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not hasattr(GradientCheckpointingLayer, "_can_checkpoint_with_cache"):
        why = "older ones drop the cache under gradient checkpointing, and the oldest scale Gemma's embeddings elsewhere"
        raise UserError(f"backbones need transformers {OLDEST} or newer, this is {__version__}: {why}. pip install -U transformers")
    try:
        config = CONFIG_MAPPING[library["model_type"]].from_dict(_without_dtype(library))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"transformers does not take this configuration of '{library.get('model_type')}': {error}") from error
    for each in (config, *(getattr(config, name) for name in config.sub_configs)):
        each.dtype = None
    return config


def by_value(config: Any) -> dict[str, Any]:
    """Every field of a library's configuration, as JSON has them."""
    return json.loads(config.to_json_string(use_diff=False))


def library_model(config: Any) -> Any:
    """The library's model without a head, fresh. Attention: what each part of it does best (text is set apart)."""
    parsed = library_config(config.library)
    import transformers

    return getattr(transformers, config.library_class)(parsed)


def own_head(config: Any, parsed: Any) -> nn.Linear | None:
    """The vocabulary head, if it is asked for and not the embeddings themselves."""
    text = parsed.get_text_config()
    if not config.head or parsed.tie_word_embeddings:
        return None
    head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    return head


def _without_dtype(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _without_dtype(value) for key, value in data.items() if key not in ("dtype", "torch_dtype")}
    return [_without_dtype(item) for item in data] if isinstance(data, (list, tuple)) else data
