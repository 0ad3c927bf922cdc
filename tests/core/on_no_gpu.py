"""What calls would do on a GPU, without one: every decoder and every backbone on a device whose tensors have shapes and no numbers.

    python -m tests.core.on_no_gpu

A process of its own, for torch knows one such device in a process, and from then on. A tensor left on the CPU is an error there, as it
is on a GPU, and so is whatever would have to look at a number. Prints, by case: what `Watch` saw of `sample`, plain and fused, or the
error; and the error of a step of training, if any.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch

from tests.backbones.families import FAMILIES
from tests.parts import BACKBONES, DECODERS, SOURCES, contents, samples
from vla.capture import Watch
from vla.decoders.base import total_loss
from vla.fused import fuse
from vla.noise import Noise
from vla.types import map_tensors

DEVICE = "standin"


class Numberless(FakeTensorMode):
    """Fake tensors on the device; on the CPU real ones, which it computes with."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        real = bool(given) and not any(isinstance(x, FakeTensor) for x in given)
        where = kwargs.get("device")
        if real and where is not None and torch.device(where).type == DEVICE:
            like = {"dtype": kwargs.get("dtype") or given[0].dtype, "device": where}
            return super().dispatch(torch.ops.aten.empty.memory_format, types, (given[0].shape,), like)
        if real:
            with no_dispatch():
                return func(*args, **kwargs)
        return super().dispatch(func, types, args, kwargs)


def cases() -> dict[str, tuple[Any, Any]]:
    """Name -> decoder and backbone: every decoder on the tiny backbone, and one that reads all layers on every other."""
    on_tiny = {name: (decoder, BACKBONES["tiny"]) for name, decoder in DECODERS.items()}
    return on_tiny | {name: (DECODERS["oft"], backbone) for name, backbone in FAMILIES.items()}


def moved(model: nn.Module, dtype: torch.dtype) -> None:
    """Every weight and buffer to the device, without its numbers."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, x in held.items():
                if x is not None:
                    like = {"dtype": dtype if x.is_floating_point() else x.dtype, "device": DEVICE}
                    new = torch.empty_strided(x.shape, x.stride(), **like)
                    held[name] = nn.Parameter(new, x.requires_grad) if isinstance(x, nn.Parameter) else new


def told(work: Callable[[], object]) -> list[str]:
    """What was seen, or the error."""
    with Watch(DEVICE) as watch:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - each is a finding
            return [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
    return sorted(watch.found)


def tried(decoder: Any, backbone: Any) -> dict[str, list[str]]:
    """Of one case."""
    torch.manual_seed(0)
    holds = contents(decoder, backbone)
    model = holds.build().eval()
    if model.decoder.fits:
        model.decoder.fit(holds.collate(model).samples(samples(64), SOURCES).target)
    batch = holds.collate(model).samples(samples(3), SOURCES)
    joined = copy.deepcopy(model)
    fuse(joined)
    with Numberless(allow_non_fake_inputs=True):
        given = map_tensors(batch, lambda x: torch.empty(x.shape, dtype=x.dtype, device=DEVICE))
        noise = Noise(torch.empty(3, dtype=torch.int64, device=DEVICE))
        moved(model, torch.bfloat16)
        moved(joined, torch.bfloat16)
        found = {}
        with torch.inference_mode():
            found["sample"] = told(lambda: model.sample(given, noise))
            found["fused"] = told(lambda: joined.sample(given, noise))
        model.train()
        found["train"] = [what for what in told(lambda: total_loss(model(given, noise)).backward()) if ": " in what]
    return found


def main() -> None:
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    asked = sys.argv[1:] or list(cases())
    print(json.dumps({name: tried(*cases()[name]) for name in asked}, indent=1), flush=True)
    os._exit(0)  # threads of a device that Python made may end after it, and abort the process


if __name__ == "__main__":
    main()
