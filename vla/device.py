"""Which device a name means on this machine."""

from __future__ import annotations

import torch

from vla.errors import UserError


def device_here(name: str | torch.device) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`: a device that holds numbers here. UserError otherwise, which says what there is."""
    count = torch.cuda.device_count()
    there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"'{name}' is no device; there are {there}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device '{name}' is a GPU, and torch {torch.__version__} sees none here; take cpu, or a build of torch for your GPU"
        )
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"there is no device '{name}'; there are {there}")
    if device.type == "meta":
        raise UserError(f"device 'meta' holds no numbers, so nothing acts on it; there are {there}")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"device '{name}' cannot be used here ({str(error).splitlines()[0][:120]}); there are {there}") from error
    return device
