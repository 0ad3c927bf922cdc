"""What stands in for the library's cache: it records each layer's keys and values, and puts the prefix's before them.

The library's own caches grow with every call, also when gradients are computed again in the backward pass, and some cut to a
window. This one never grows: a layer that is run again writes the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class RecordingCache:
    """For one forward pass of a language model with `depth` layers, after `keys` and `values` (of the prefix, per layer; or none).

    `states` collects what comes out of each layer; see `watch`. `added`: to what comes out of the first layers, before the next one.
    """

    is_compileable = False
    is_initialized = True  # the prefix is there from the start

    def __init__(self, depth: int, keys: Sequence[Tensor] = (), values: Sequence[Tensor] = (), added: Sequence[Tensor] = ()) -> None:
        self._before_keys, self._before_values = tuple(keys), tuple(values)
        self.keys: list[Tensor | None] = [None] * depth
        self.values: list[Tensor | None] = [None] * depth
        self.states: list[Tensor | None] = [None] * depth
        self.added = tuple(added)
        self._open = True

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Called by every attention layer: (B, heads, S, head width) -> all that it may attend to."""
        if self._before_keys:
            key = torch.cat([self._before_keys[layer].to(key.dtype), key], dim=2)
            value = torch.cat([self._before_values[layer].to(value.dtype), value], dim=2)
        if self._open:
            self.keys[layer], self.values[layer] = key, value
        return key, value

    def close(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(states, keys, values) per layer. From now on nothing is recorded: the backward pass may run layers again."""
        self._open = False
        found = []
        for name, recorded in (("states", self.states), ("keys", self.keys), ("values", self.values)):
            missing = [index for index, tensor in enumerate(recorded) if tensor is None]
            assert not missing, f"layers {missing} recorded no {name}"
            found.append(tuple(tensor for tensor in recorded if tensor is not None))
        self.keys, self.values, self.states = [], [], []
        return found[0], found[1], found[2]

    def see(self, layer: int, state: Tensor) -> None:
        """What came out of a layer."""
        if self._open:
            self.states[layer] = state

    def get_seq_length(self, layer: int = 0) -> int:
        """Length of the prefix."""
        return self._before_keys[layer].shape[2] if self._before_keys else 0

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        """(keys in all, offset of the first)."""
        return self.get_seq_length(layer) + query_length, 0


def watch(layers: nn.ModuleList) -> None:
    """Lets a cache that is given to these layers see what comes out of each of them.

    What enters the next layer, not what leaves this one: deep visual features are added in between (`added`; the library's own addition
    chooses tokens by a mask, and waits for a GPU to say which). Hooks stand outside the library's checkpointing, so they run once.
    """

    def entering(index: int) -> Any:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            cache = kwargs.get("past_key_values")
            if not isinstance(cache, RecordingCache):
                return None
            state = args[0] if index > len(cache.added) else args[0] + cache.added[index - 1].to(args[0].dtype)
            cache.see(index - 1, state)
            return (state, *args[1:]), kwargs

        return hook

    def leaving(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, RecordingCache):
            cache.see(len(layers) - 1, output[0] if isinstance(output, tuple) else output)

    for index, layer in enumerate(layers):
        if index:
            layer.register_forward_pre_hook(entering(index), with_kwargs=True)
    layers[-1].register_forward_hook(leaving, with_kwargs=True)
