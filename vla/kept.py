"""Tensors that sizes alone decide, made once for each device and kept: what a captured call (vla/capture.py) reads and could not make."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable
from contextvars import ContextVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

MAKING: ContextVar[bool] = ContextVar("making", default=False)
"""Whether such tensors are on their way to a device: they come once, so that whoever watches a call need not mind."""


class Kept:
    """Not part of a model's state, and never forgotten: a captured call may read one at any time."""

    def __init__(self) -> None:
        self._made: dict[Hashable, dict[str, torch.Tensor]] = {}

    def on(
        self, device: torch.device, key: Hashable, make: Callable[[], dict[str, torch.Tensor]], here: Container[str] = ()
    ) -> dict[str, torch.Tensor]:
        """What `make` makes on the CPU, by name, on the device; what is named `here` stays, so that its numbers may be looked at."""
        at = (device, key)
        if at not in self._made:
            with _disable_current_modes(), torch.inference_mode(False):  # these serve training too
                made = make()
            begun = MAKING.set(True)
            try:
                with torch.inference_mode(False):
                    self._made[at] = {name: x if name in here else x.to(device) for name, x in made.items()}
            finally:
                MAKING.reset(begun)
        return self._made[at]
