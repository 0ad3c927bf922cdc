"""Backbones without weights, for counting, for loading without a detour through random numbers, and for spreading over devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vla.errors import UserError


def build_empty(config: Any, *args: Any) -> Any:
    """`config.build(*args)` with every parameter on the meta device: a 7B model in a second, without memory.

    Buffers are real: rotary frequencies and Gemma's embedding scale are not in any checkpoint, and would be garbage after `to_empty`.
    """
    accelerate = _accelerate()
    with accelerate.init_empty_weights(include_buffers=False):
        return config.build(*args)


def count_parameters(module: nn.Module) -> int:
    """Numbers in parameters, each once."""
    return sum(p.numel() for p in module.parameters())


def spread(
    module: nn.Module,
    checkpoint: Path | None,
    devices: Mapping[Any, Any] | str = "auto",
    *,
    max_memory: Mapping[Any, Any] | None = None,
    offload_folder: str | None = None,
    dtype: Any = None,
) -> nn.Module:
    """Puts a module over GPUs, memory and disk, by accelerate: with the weights of `checkpoint` (safetensors, or its folder) where it was
    built empty, or with its own (None).

    `devices`: a map of module names, or "auto": as many whole layers as `max_memory` allows on each, the rest in `offload_folder`.
    """
    accelerate = _accelerate()
    if devices == "auto":
        whole = {name for each in module.modules() for name in (getattr(each, "_no_split_modules", None) or ())}
        devices = accelerate.infer_auto_device_map(module, max_memory=max_memory, no_split_module_classes=sorted(whole), dtype=dtype)
    assert isinstance(devices, Mapping)
    if "disk" in devices.values() and not offload_folder:
        raise UserError("the devices do not hold this model: give offload_folder, a folder on disk for the rest")
    if checkpoint is not None:
        accelerate.load_checkpoint_in_model(module, str(checkpoint), device_map=dict(devices), dtype=dtype, offload_folder=offload_folder)
    main = next((each for each in devices.values() if each not in ("cpu", "disk")), "cpu")  # accelerate looks for a GPU
    return accelerate.dispatch_model(module, device_map=dict(devices), offload_dir=offload_folder, main_device=main)


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise UserError("models without weights, or spread over devices, need accelerate: pip install 'vla[train]'") from error
    return accelerate
