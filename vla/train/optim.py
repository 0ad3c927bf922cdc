"""How weights move: the optimizer's settings, its learning-rate schedule as a function of the step, and DeepSpeed's ZeRO block."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from vla.config import check_types
from vla.errors import UnknownName, UserError
from vla.train.moments import AdamW8


@dataclass(frozen=True)
class AdamW:
    """Loshchilov and Hutter 2019. Decay spares vectors (norms, biases), as is usual. `grad_clip`: global norm, 0 for none.

    `scales`: prefix of parameter names -> factor on the rate of those (`{"backbone": 0.1}`); of several the longest holds.
    `moment_bits`: 8 keeps the moments of large tensors in a quarter of the memory (vla/train/moments.py; plain torch alone).
    """

    kind: ClassVar[str] = "optim.adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    scales: Mapping[str, float] = field(default_factory=dict)
    moment_bits: int = 32

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.lr < 10 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"AdamW needs 0 < lr < 10 and betas in [0, 1); got lr {self.lr}, betas {self.betas}")
        if not (0 < self.eps < 1 and 0 <= self.weight_decay < math.inf and 0 <= self.grad_clip < math.inf):
            values = f"eps {self.eps}, weight_decay {self.weight_decay}, grad_clip {self.grad_clip}"
            raise UserError(f"AdamW needs 0 < eps < 1, and weight_decay and grad_clip of 0 (none) or more; got {values}")
        if not all(0 < scale <= 1000 for scale in self.scales.values()):
            raise UserError(f"a module's factor on the learning rate is above 0 (to hold it still, freeze it); got {dict(self.scales)}")
        if self.moment_bits not in (8, 32):
            raise UnknownName("moment_bits", self.moment_bits, (8, 32))

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer over those that are trained; fused, one kernel for all, also on a CPU. Each group has its `scale`."""
        everything = list(named)
        for prefix in self.scales:
            if not any(f"{name}.".startswith(f"{prefix}.") for name, _ in everything):
                parts = {".".join(name.split(".")[:2]) for name, _ in everything}
                raise UnknownName("module with a learning rate of its own", prefix, parts)
        groups: dict[tuple[bool, float], dict[str, Any]] = {}
        for name, p in everything:
            if p.requires_grad:
                decays, scale = p.dim() >= 2, self.scale_of(name)
                empty: dict[str, Any] = {"params": [], "weight_decay": self.weight_decay if decays else 0.0, "scale": scale}
                groups.setdefault((not decays, scale), empty)["params"].append(p)
        ordered = [groups[key] for key in sorted(groups)]
        if self.moment_bits == 8:
            return AdamW8(ordered, lr=self.lr, betas=self.betas, eps=self.eps)
        return torch.optim.AdamW(ordered, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)

    def scale_of(self, name: str) -> float:
        """The factor on a parameter's learning rate."""
        fitting = [prefix for prefix in self.scales if f"{name}.".startswith(f"{prefix}.")]
        return self.scales[max(fitting, key=len)] if fitting else 1.0


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to `final` of the peak."""

    kind: ClassVar[str] = "schedule.cosine"
    warmup_steps: int = 100
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_schedule(self)

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak rate at `step` (from 0) of `steps`."""
        done = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        return _warm(step, self.warmup_steps, self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(max(done, 0), 1))))


@dataclass(frozen=True)
class WSD:
    """Warm-up, stable, then a linear decay over the last `decay_steps` (Hu et al. 2024, MiniCPM)."""

    kind: ClassVar[str] = "schedule.wsd"
    warmup_steps: int = 100
    decay_steps: int = 1000
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_schedule(self)

    def factor(self, step: int, steps: int) -> float:
        left = min(1.0, (steps - step) / max(self.decay_steps, 1))
        return _warm(step, self.warmup_steps, self.final + (1 - self.final) * left)


@dataclass(frozen=True)
class Constant:
    """Warm-up, then the peak rate for ever: a run whose length may change on resume."""

    kind: ClassVar[str] = "schedule.constant"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check_schedule(self)

    def factor(self, step: int, steps: int) -> float:
        return _warm(step, self.warmup_steps, 1.0)


def _check_schedule(schedule: Cosine | WSD | Constant) -> None:
    """UserError for what is no number of steps or no share. A share of the run as `warmup_steps` would be a rate above the peak."""
    check_types(schedule)
    values = {field.name: getattr(schedule, field.name) for field in fields(schedule)}
    if not (min(values["warmup_steps"], values.get("decay_steps", 0)) >= 0 and 0 <= values.get("final", 0.0) <= 1):
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        raise UserError(f"{type(schedule).__name__} needs steps of 0 or more, and a final rate of 0 to 1 of the peak; got {said}")


def _warm(step: int, warmup_steps: int, then: float) -> float:
    return (step + 1) / warmup_steps if step < warmup_steps else then


@dataclass(frozen=True)
class Zero:
    """DeepSpeed with ZeRO (Rajbhandari et al. 2020): 1 shards optimizer states, 2 also gradients, 3 also parameters.

    `settings`: further keys of DeepSpeed's `zero_optimization` block (offloading, bucket sizes), passed on as they are.
    """

    kind: ClassVar[str] = "zero"
    stage: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stage not in (1, 2, 3):
            raise UnknownName("ZeRO stage", self.stage, (1, 2, 3))
        for block in ("offload_optimizer", "offload_param"):
            if self.device_of(block) not in ("none", "cpu"):  # on an NVMe disk it is in DeepSpeed's hands, and in no training state of ours
                raise UnknownName(f"device of {block}", self.device_of(block), ("none", "cpu"))

    def device_of(self, block: str) -> str:
        """Where `offload_optimizer` or `offload_param` says that its part lies: `none` without such a block, or where it is null."""
        found = self.settings.get(block) or {}
        if not isinstance(found, Mapping):
            raise UserError(f"ZeRO's {block} must be a block such as {{'device': 'cpu'}}, not {found!r}")
        return found.get("device") or "none"

    @staticmethod
    def of(text: str) -> Zero | None:
        """`0` (none), `1`, `2`, `3`, or a JSON file with DeepSpeed's `zero_optimization` block (pretrain/zero2.json)."""
        if text in ("0", "1", "2", "3"):
            return Zero(int(text)) if text != "0" else None
        path = Path(text)
        if not path.is_file():
            raise UnknownName("ZeRO stage or file", text, ("0", "1", "2", "3", *Path("pretrain").glob("zero*.json")))
        try:
            data = json.loads(path.read_text())
            block = dict(data["zero_optimization"])
            stage = block.pop("stage")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: expected {{'zero_optimization': {{'stage': ...}}}} ({error})") from error
        if set(data) != {"zero_optimization"}:
            raise UserError(f"{path}: only 'zero_optimization' may stand here; the run sets {sorted(set(data) - {'zero_optimization'})}")
        return Zero(stage, block)
