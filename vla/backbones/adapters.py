"""LoRA (Hu et al. 2021) by peft, injected into a backbone's own modules, and merged only where the outputs stay the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.config import check_types
from vla.errors import UserError
from vla.torchvision_cpu import prepare_torchvision

MERGE_TOLERANCE = 1e-3
"""Largest change of outputs, as a share of their largest, that a merge in fp32 may make. Seen: 3e-6; in bf16 it would be 0.02."""


@dataclass(frozen=True)
class LoRA:
    """Adapters on every linear map of `parts` (OpenVLA's recipe: all of them, rank 32, no dropout). What they stand on is frozen."""

    kind: ClassVar[str] = "lora"
    rank: int = 32
    alpha: float = 16.0
    dropout: float = 0.0
    parts: tuple[str, ...] = ("vision", "projector", "language")

    def __post_init__(self) -> None:
        check_types(self)
        if self.rank < 1:
            raise UserError(f"LoRA needs a rank of at least 1, not {self.rank}")


def inject(backbone: Any, lora: LoRA) -> None:
    """Adapters into the linear maps of the parts, in place. A map keeps its name; its weight moves to `<name>.base_layer.weight`."""
    prepare_torchvision()  # peft imports transformers' models, and these torchvision
    # And bitsandbytes, which warns that a kernel for 4-bit products on a CPU is not installed, whoever asks for none.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA needs peft: pip install 'vla[train]'") from error
    for part in lora.parts:
        for module in backbone.part(part):
            if any("lora_" in name for name, _ in module.named_parameters()):
                continue  # it stands inside a part that has them already
            names = [name for name, each in module.named_modules() if isinstance(each, nn.Linear) and name]
            if isinstance(module, nn.Linear) or not names:
                raise UserError(f"LoRA finds no linear map below the part '{part}'")
            settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)  # type: ignore[arg-type]  # any number
            inject_adapter_in_model(settings, module)


def over_plain(backbone: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Plain weights under the names that they have below this backbone's adapters, which stay as they are (fresh ones change nothing)."""
    mine = backbone.state_dict()
    if not any(".lora_" in name for name in mine) or any(".lora_" in name for name in weights):
        return weights
    below = {name.replace(".base_layer.", "."): name for name in mine}
    adapters = {name: tensor for name, tensor in mine.items() if ".lora_" in name}
    return {**adapters, **{below.get(name, name): tensor for name, tensor in weights.items()}}


def merge(backbone: Any, check: Callable[[Any], Tensor]) -> Any:
    """A backbone of plain weights equal to the adapted one, whose configuration has no `lora`. The given one stays as it is.

    Merged in fp32, whatever the precision. `check(backbone)`: outputs on inputs of your choice; raises UserError if they drift.
    """
    lora = backbone.config.lora
    if lora is None:
        raise UserError("this backbone has no LoRA adapters to merge")
    dtype, training = backbone.dtype, backbone.training
    backbone.float().eval()
    with torch.no_grad():
        before = check(backbone).float()
        plain = {"lora": None, **({"four_bit": False} if hasattr(backbone.config, "four_bit") else {})}
        merged = replace(backbone.config, **plain).build().eval()
        merged.load_state_dict(_merged_weights(backbone), assign=True)
        after = check(merged).float()
    backbone.to(dtype).train(training)
    drift = float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
    if not drift <= MERGE_TOLERANCE:
        raise UserError(f"merging moved the outputs by {drift:.1e} of their size (allowed: {MERGE_TOLERANCE:.0e}); the adapters stay apart")
    return merged.to(dtype).train(training)


def _merged_weights(backbone: nn.Module) -> dict[str, Tensor]:
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: module for name, module in backbone.named_modules() if isinstance(module, LoraLayer)}
    found = {}
    for name, tensor in backbone.state_dict().items():
        owner = name.split(".lora_")[0]
        if ".lora_" in name and owner in layers:
            continue
        plain = name.replace(".base_layer.", ".")
        found[plain] = tensor.clone()
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        if layer is not None and name.endswith(".base_layer.weight"):
            for adapter in layer.active_adapters:
                found[plain] += layer.get_delta_weight(adapter)
    return found
