"""A model's call, captured once for each shape of batch and replayed: on a GPU, one launch instead of thousands (CUDA graphs).

A capture repeats what the GPU did, on whatever stands in the same memory now. So nothing on the way may look at a number on the GPU, nor
bring one there: the first call of a shape is watched, and one that does either is left as it is, with the reason. Each capture is
compared with the plain call before it serves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vla.kept import MAKING
from vla.model import VLA
from vla.noise import Noise
from vla.types import Batch, map_tensors

MOST = 16
"""Captures that are kept: each holds the memory of its inputs and of its output; all share the memory of their work."""
WARM = 3
"""Plain calls before a capture: libraries choose their kernels and take their workspaces in the first ones."""
CLOSE = 0.999
"""The least cosine between a capture's answer and the plain call's, where some kernel adds in no fixed order."""

_LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "unique_consecutive", "equal", "is_nonzero", "item", "bincount")
_BRINGS = ("lift_fresh", "lift_fresh_copy", "lift")
_MOVES = ("_to_copy", "copy_", "to")

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""A call -> what replays it."""


class Captured:
    """`sample` of a model, from captures where that can be. `refused`: why it could not, for each shape that came."""

    def __init__(self, model: VLA, capture: Capture | None = None) -> None:
        self.model = model
        self._capture = capture or cuda_graph
        self._kept: OrderedDict[Hashable, _Replayed | str] = OrderedDict()

    @property
    def refused(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(reason for reason in self._kept.values() if isinstance(reason, str)))

    @torch.inference_mode()
    def sample(self, batch: Batch, noise: Noise) -> Tensor:
        """As `VLA.sample`: all of it from a capture, or what follows the look at the images, or nothing."""
        found = self._replay("sample", lambda b, n: self.model.sample(b, n), (batch, noise))
        if found is not None:
            return found
        prefix, decoder = self.model.prefix(batch), self.model.decoder
        given = (prefix, batch.spec, noise)
        found = self._replay("decode", lambda p, s, n: decoder.sample(self.model.backbone, p, s, n), given)
        return decoder.sample(self.model.backbone, *given) if found is None else found

    def _replay(self, name: str, call: Callable[..., Tensor], given: tuple) -> Tensor | None:
        """None where there is no capture, and the call has not run."""
        key = (name, _shape(given))
        if key not in self._kept:
            kept, found = self._make(call, given)
            self._kept[key] = kept
            if len(self._kept) > MOST:
                self._kept.popitem(last=False)
            return found
        self._kept.move_to_end(key)
        kept = self._kept[key]
        return None if isinstance(kept, str) else kept(given)

    def _make(self, call: Callable[..., Tensor], given: tuple) -> tuple[_Replayed | str, Tensor]:
        """A capture, or why there is none; and the answer of a plain call, which is made just once: decoders count what they meet."""
        held = map_tensors(given, lambda x: x.clone())
        with Watch(next(self.model.parameters()).device.type) as watch:
            plain = call(*held)
        if watch.found:
            return f"it {', '.join(sorted(watch.found))}", plain
        try:
            replayed = _Replayed(held, self._capture(lambda: call(*held)))
        except RuntimeError as error:
            return f"capture failed: {str(error).splitlines()[0]}", plain
        likeness = float(torch.cosine_similarity(replayed(given).double().flatten(), plain.double().flatten(), dim=0))
        if not likeness > CLOSE and not torch.equal(replayed(given), plain):
            return f"the capture gives other numbers (cosine {likeness:.4f})", plain
        return replayed, plain


@dataclass(frozen=True)
class _Replayed:
    """A capture and the tensors that it reads."""

    held: tuple
    again: Callable[[], Tensor]

    def __call__(self, given: tuple) -> Tensor:
        for mine, new in zip(_tensors(self.held), _tensors(given), strict=True):
            mine.copy_(new, non_blocking=True)
        return self.again().clone()  # the next replay writes where this one did


class Watch(TorchDispatchMode):
    """Sees whether a call looks at numbers on a kind of device, or brings some there. `found`: what it did, in words."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if MAKING.get():
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _LOOKS and any(isinstance(x, Tensor) and x.device.type == self.device for x in args):
            self.found.add(f"looks at a number ({name})")
        elif name in _BRINGS and args[0].device.type == "cpu":
            self.found.add("brings a number along (torch.tensor)")
        elif name.startswith("index") and any(_is_mask(index) for index in _indices(args)):
            self.found.add("chooses by a mask")
        out = func(*args, **(kwargs or {}))
        if name in _MOVES and isinstance(out, Tensor) and any(isinstance(x, Tensor) and x.device.type != out.device.type for x in args):
            self.found.add(f"moves a tensor to the {out.device.type}")
        return out


def cuda_graph(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Captures a call on the current GPU. RuntimeError where it cannot be."""
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        out = call()

    def again() -> Tensor:
        graph.replay()
        return out

    return again


def _pool() -> Any:
    """Memory that all captures of this process share: they are never replayed at the same time."""
    global _POOL
    if _POOL is None:
        _POOL = torch.cuda.graph_pool_handle()
    return _POOL


_POOL: Any = None


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(value, lambda x: found.append(x) or x)  # type: ignore[func-returns-value]
    return found


def _shape(given: Any) -> Hashable:
    """What two calls must have in common to share a capture."""
    if isinstance(given, Tensor):
        return (tuple(given.shape), given.dtype, given.device)
    if isinstance(given, Mapping):
        return tuple((name, _shape(item)) for name, item in given.items())
    if isinstance(given, tuple):
        return tuple(_shape(item) for item in given)
    if is_dataclass(given) and not isinstance(given, type):
        return (type(given).__name__, *(_shape(getattr(given, f.name)) for f in fields(given)))
    return given


def _indices(args: Any) -> tuple:
    return tuple(args[1]) if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
