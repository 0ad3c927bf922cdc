"""torch.compile where it pays: on each layer of each stack, for the sizes that it meets."""

from __future__ import annotations

from torch import nn

from vla.backbones.base import Backbone

MOST_GRAPHS = 64
"""Sizes that one kind of layer is compiled for: lengths of some octaves, in training and in validating, by themselves and after a cache."""


def compile_layers(model: nn.Module) -> None:
    """One graph serves all layers of a kind, and what lies between stays eager. Names, weights and numbers stay, up to rounding.

    Each is compiled for the sizes that it meets, of which backbones then keep few: graphs for any size are slower on a GPU, and on a CPU
    torch 2.13 makes some whose backward pass fails at the next length.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)  # past it a layer would run uncompiled, with a warning
    for module in model.modules():
        if isinstance(module, Backbone):
            module.few_sizes = True
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.compile(dynamic=False)
