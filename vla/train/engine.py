"""Who computes: the interface between the loop and the hardware, and the plain engine. DeepSpeed's is in `zero`.

A loss is parts of (sum, weight). The loop gives every micro-batch the weights summed over all ranks and micro-batches of the step,
so gradients need to be summed, never averaged: one process and N ranks, one micro-batch and many, follow the same path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla.compiled import compile_layers
from vla.decoders.base import total_loss
from vla.errors import UnknownName, UserError
from vla.model import VLA
from vla.noise import Noise
from vla.train.clock import Phases
from vla.train.memory import part_of
from vla.train.moments import MOMENTS, moments, set_moments
from vla.train.ranks import Ranks
from vla.train.run import Run
from vla.types import Batch, Loss, WeightedSum


@dataclass(frozen=True)
class Limits:
    """The largest loss and gradient norm of a step that may move the weights (vla/train/spikes.py)."""

    loss: float = math.inf
    grad_norm: float = math.inf

    def refuse(self, loss: float, grad_norm: float) -> str:
        """Why such a step is skipped, or ''."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "not finite"
        return "a spike" if loss > self.loss or grad_norm > self.grad_norm else ""


@dataclass(frozen=True)
class Update:
    """What a step did: the loss over all ranks, the gradient's norm before clipping, and why the weights did not move ('': they did).

    They do not where loss or gradient is not finite, or far too large, on any rank: then all ranks skip, and weights stay as they
    were to the bit.
    """

    loss: float
    grad_norm: float
    skipped: str = ""

    @property
    def applied(self) -> bool:
        return not self.skipped


class Engine(ABC):
    """Computes gradients and moves weights. Methods marked *collective* must be called by every rank."""

    ranks: Ranks
    phases: Phases
    """Where the time of a step goes (vla/train/clock.py)."""
    waits: tuple[str, ...] = ("communication",)
    """Phases in which a rank may be waiting for others: their time says nothing about the rank itself."""
    updates: int = 0
    """Updates applied so far: Adam's step, and what the EMA's warm-up counts."""

    def grad_norms(self) -> dict[str, float]:
        """Norm of each part's gradient in the last step, over all ranks and before clipping; {} where the engine does not have them."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch, noise: Noise) -> Loss:
        """Collective. The loss without gradients, by the weights in use (see `averaged`)."""

    @abstractmethod
    def forward_backward(self, batch: Batch, noise: Noise, weights: Mapping[str, Tensor], last: bool) -> Loss:
        """Collective. Adds the gradient of one micro-batch; `last` of the step. `weights`: summed over ranks and micro-batches."""

    @abstractmethod
    def step(self, lr: float, limits: Limits = Limits()) -> Update:  # frozen
        """Collective. Ends the step that `forward_backward` built, without an update where it is past the limits."""

    @abstractmethod
    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Collective. Within it the model has the EMA's weights (its own, without an EMA)."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Collective. Everything that the next step depends on, complete on rank 0 ({} elsewhere): `weight/`, `exp_avg/`,
        `exp_avg_sq/`, `ema/` and `buffer/` + name. The same names and shapes whatever the engine or the number of ranks. Live
        tensors on the engine's device: good until the next step."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Collective. The inverse of `state`; every rank gives the whole of it."""

    @abstractmethod
    def names(self) -> dict[str, str]:
        """Of the model's state dict: name -> the name under which `state` has it (of tied weights there is one)."""

    def acting(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What acts, of a `state`: the model's state dict with the EMA's weights where there are any; shares memory with it."""
        found = {}
        for name, first in self.names().items():
            key = next((f"{kind}/{first}" for kind in ("ema", "weight", "buffer") if f"{kind}/{first}" in state), "")
            if key:
                found[name] = state[key].float()
        return found

    def gradient(self, batch: Batch, noise: Noise, weights: Mapping[str, Tensor]) -> Tensor | None:
        """This rank's gradient of one batch, flat; what the next step does is not changed by it. None where the engine cannot say."""
        return None


class LocalEngine(Engine):
    """Plain torch: fp32 weights, autocast for bf16, fused AdamW; with several ranks one flat all-reduce of the gradients."""

    def __init__(self, run: Run, model: nn.Module, ranks: Ranks) -> None:
        self.run, self.ranks, self.phases = run, ranks, Phases(ranks.device)
        self.module = model.to(ranks.device)
        self.named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        self.trained = [p for _, p in self.named]
        self.optimizer = run.optim.build(self.module.named_parameters())
        if isinstance(model, VLA):
            model.apart, model.backbone.all_reached = True, False  # no rank waits for another within a pass
        if run.compiled:
            compile_layers(self.module)
        self.shadow = [p.detach().clone() for p in self.trained] if run.ema_decay is not None else None
        self._total = torch.zeros((), device=ranks.device)
        self._norm_P = torch.zeros(len(self.trained), device=ranks.device)

    def forward(self, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad(), self._autocast():
            return self.module(batch, noise)

    def forward_backward(self, batch: Batch, noise: Noise, weights: Mapping[str, Tensor], last: bool) -> Loss:
        with self.phases("forward"):
            with self._autocast():
                loss = self.module(batch, noise)
            total = total_loss(loss, weights)
        with self.phases("backward"):
            total.backward()
        self._total += total.detach()
        return detached(loss)

    def step(self, lr: float, limits: Limits = Limits()) -> Update:  # frozen
        """One optimizer update at `lr` from the gathered gradients, skipped where they are not finite or past the limits."""
        for p in self.trained:
            if p.grad is None:  # ZeRO gives such a parameter a zero gradient (moments and decay go on): the same here
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in self.trained]
        if self.ranks.world > 1:
            with self.phases("communication"):
                self._sum(grads)
        with self.phases("optimizer"):
            self._norm_P = torch.stack(torch._foreach_norm(grads))
            norm = torch.linalg.vector_norm(self._norm_P)
            loss, grad_norm = torch.stack([self._total, norm]).tolist()
            update = Update(loss, grad_norm, limits.refuse(loss, grad_norm))
            if update.applied:
                self._apply(lr, norm)
            self.optimizer.zero_grad()
            self._total.zero_()
        return update

    def grad_norms(self) -> dict[str, float]:
        """By part (`memory.part_of`); read when a line is written, not at each step."""
        square: dict[str, float] = {}
        for (name, _), norm in zip(self.named, self._norm_P.tolist(), strict=True):
            square[part_of(name)] = square.get(part_of(name), 0.0) + norm**2
        return {part: math.sqrt(value) for part, value in square.items()}

    def _sum(self, grads: list[Tensor]) -> None:
        """Loss and gradients over all ranks, in place: one flat all-reduce."""
        flat = torch.cat([self._total[None], *(grad.flatten() for grad in grads)])
        total, *summed = self.ranks.sum(flat).split([1, *(grad.numel() for grad in grads)])
        self._total.copy_(total[0])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(summed, grads, strict=True)])

    def _apply(self, lr: float, norm: Tensor) -> None:
        if self.run.optim.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.trained, self.run.optim.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        self.optimizer.step()
        self.updates += 1
        if self.shadow is not None:
            torch._foreach_lerp_(self.shadow, self.trained, 1 - ema_decay(self.run, self.updates))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the module holds the moving average of the weights."""
        if self.shadow is None:
            yield
            return
        own = [p.detach().clone() for p in self.trained]
        with torch.no_grad():
            torch._foreach_copy_(self.trained, self.shadow)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.trained, own)

    def names(self) -> dict[str, str]:
        return first_names(self.module)

    def state(self) -> dict[str, Tensor]:
        if not self.ranks.first:
            return {}
        found = {f"weight/{name}": p for name, p in self.module.named_parameters()}
        found |= {f"buffer/{name}": b for name, b in self.module.named_buffers()}
        for name, p in self.named:
            found |= {f"{moment}/{name}": tensor for moment, tensor in moments(self.optimizer, p).items()}
        if self.shadow is not None:
            found |= {f"ema/{name}": tensor for (name, _), tensor in zip(self.named, self.shadow, strict=True)}
        return {name: tensor.detach() for name, tensor in found.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Puts `state()` back, bit for bit."""
        self.updates = updates
        for name, p in self.module.named_parameters():
            p.copy_(state[f"weight/{name}"])
        for name, b in self.module.named_buffers():
            b.copy_(state[f"buffer/{name}"])
        for name, p in self.named:
            set_moments(self.optimizer, p, {moment: state[f"{moment}/{name}"] for moment in MOMENTS}, updates)
        if self.shadow is not None:
            for (name, _), tensor in zip(self.named, self.shadow, strict=True):
                tensor.copy_(state[f"ema/{name}"])

    def gradient(self, batch: Batch, noise: Noise, weights: Mapping[str, Tensor]) -> Tensor:
        with self._autocast():
            total = total_loss(self.module(batch, noise), weights)
        grads = torch.autograd.grad(total, self.trained, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(self.trained, grads, strict=True)])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.run.precision == "bf16")


def detached(loss: Loss) -> Loss:
    """Numbers for the books, without the graph that made them."""
    parts = {name: WeightedSum(part.sum.detach(), part.weight.detach()) for name, part in loss.parts.items()}
    return Loss(parts, loss.scale, loss.sample_sum_B, loss.sample_weight_B)


def ema_decay(run: Run, updates: int) -> float:
    """The decay after so many updates: it warms up, so that a short run's average forgets its random start."""
    assert run.ema_decay is not None
    return min(run.ema_decay, (1 + updates) / (10 + updates))


def first_names(model: nn.Module) -> dict[str, str]:
    """Name in the state dict -> the first name of the same parameter or buffer."""
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    for name, tensor in everything:
        first.setdefault(id(tensor), name)
    of = {name: first[id(tensor)] for name, tensor in everything}
    return {name: of[name] for name in model.state_dict(keep_vars=True)}


def make_engine(run: Run, model: nn.Module, ranks: Ranks) -> Engine:
    """Freezes what the run freezes, and chooses the engine."""
    freeze(model, run.freeze)
    if run.zero is None:
        return LocalEngine(run, model, ranks)
    from vla.train.zero import DeepSpeedEngine

    return DeepSpeedEngine(run, model, ranks)


def freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """No gradient for parameters whose name starts with a prefix (whole parts: `backbone`, `backbone.stem`)."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        chosen = [name for name in names if f"{name}.".startswith(f"{prefix}.")]
        if not chosen:
            raise UnknownName("module to freeze", prefix, {".".join(name.split(".")[:2]) for name in names})
        for name in chosen:
            model.get_parameter(name).requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("every parameter is frozen; nothing is left to train")
