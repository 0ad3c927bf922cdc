"""DeepSpeed's ZeRO behind the same interface. Its checkpoints are never read or written: they are pickles, tied to a world size.

Each rank holds flat fp32 tensors with a part of every parameter (its master weights), and the optimizer's moments in the same
layout; the EMA here joins them. `_Piece` says which part of which parameter lies where; all saving, loading and averaging goes
through that. Known with DeepSpeed 0.16 to 0.19, stages 1 to 3.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vla.decoders.base import total_loss
from vla.errors import UserError
from vla.noise import Noise
from vla.train.clock import Phases
from vla.train.engine import Engine, Limits, Update, detached, ema_decay, first_names
from vla.train.moments import MOMENTS
from vla.train.ranks import Ranks
from vla.train.run import Run
from vla.types import Batch, Loss


class DeepSpeedEngine(Engine):
    """ZeRO stage 1, 2 or 3 with torch's AdamW. DeepSpeed's averages over ranks and micro-batches are undone: see `engine`."""

    def __init__(self, run: Run, model: nn.Module, ranks: Ranks) -> None:
        assert run.zero is not None
        deepspeed = _import(ranks)
        self.run, self.ranks, self.phases = run, ranks, Phases(ranks.device)
        # It reduces gradients within the backward pass, and under stage 3 fetches weights within the forward pass.
        self.waits = ("communication", "backward", "optimizer", *(("forward",) if run.zero.stage == 3 else ()))
        self.objective = _Objective(model)
        scalars = [name for name, p in model.named_parameters() if p.dim() == 0]
        if scalars:
            raise UserError(f"DeepSpeed takes no parameter without a dimension: give {', '.join(scalars)} the shape (1,), or use --zero 0")
        for setting, fix in ((run.optim.moment_bits != 32, "optim.moment_bits=32"), (run.compiled, "compiled=False")):
            if setting:
                raise UserError(f"that is for plain torch alone: with DeepSpeed set {fix}, or use --zero 0")
        optimizer = run.optim.build(model.named_parameters())
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # some versions make the moments by a step at the start: it must move nothing
        self.engine, *_ = deepspeed.initialize(
            model=self.objective, optimizer=optimizer, config=settings(run, ranks.world), dist_init_required=False
        )
        if run.zero.stage == 3:
            _keep_bare_parameters(self.objective)
        self.zero, self.torch_optimizer = self.engine.optimizer, optimizer
        self.torch_optimizer.state.clear()
        self.flats, self.pieces = _layout(self.zero, run.zero.stage, model, ranks)
        self.shadow = [flat.detach().clone() for flat in self.flats] if run.ema_decay is not None else None
        self._total = torch.zeros((), device=ranks.device)
        self._loss, self._norm, self._limits, self._refused = math.nan, math.nan, Limits(), ""
        self._watch_norm("_get_norm_groups" if run.zero.stage == 3 else "scaled_global_norm")

    def forward(self, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            self.engine(batch, noise, None)
        return self.objective.take()

    def forward_backward(self, batch: Batch, noise: Noise, weights: Mapping[str, Tensor], last: bool) -> Loss:
        """Adds the gradients of one micro-batch, whose loss is divided by weights summed over ranks."""
        with self.phases("forward"):
            total = self.engine(batch, noise, weights)
        with self.phases("backward"):
            self._backward(total, last)
        return detached(self.objective.take())

    def _backward(self, total: Tensor, last: bool) -> None:
        self._total += total.detach()
        if last:
            self._loss = float(self.ranks.sum(self._total))
            # A loss that is not finite on one rank must stop the update on all: it is made to show in every gradient.
            total = total if math.isfinite(self._loss) else total * math.nan
        # DeepSpeed divides what it sums over ranks by their number. By its own account it also divides by the micro-batches.
        self.engine.backward(total * self.ranks.world, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # counts the micro-batch

    def step(self, lr: float, limits: Limits = Limits()) -> Update:  # noqa: B008  # frozen
        """One DeepSpeed update at `lr`; all ranks skip it together where a gradient is not finite or past the limits."""
        for group in self.zero.param_groups:
            group["lr"] = lr * group["scale"]
        self._limits, self._norm, self._refused = limits, math.inf, ""
        with self.phases("optimizer"):
            self.engine.step()
        overflow = bool(self.zero.overflow)  # its word for a norm that is not finite; the same on all ranks
        if self._refused and not overflow:
            raise UserError("this version of DeepSpeed does not skip a step that is asked to be: set spike_sigmas=0, or install 0.19")
        update = Update(self._loss, self._norm, (self._refused or "not finite") if overflow else "")
        if update.applied:
            self.updates += 1
            if self.shadow is not None:
                with torch.no_grad():
                    torch._foreach_lerp_(self.shadow, self.flats, 1 - ema_decay(self.run, self.updates))
        self._total.zero_()
        return update

    def _watch_norm(self, name: str) -> None:
        """DeepSpeed skips a step whose norm is not finite: so one that is to be skipped for another reason is told to be."""
        measure = getattr(self.zero, name)

        def measured() -> Any:
            found = measure()  # of all ranks: one norm, or under stage 3 one of each group
            norms = [float(norm) for norm in found] if isinstance(found, list) else [float(found)]
            # It says -1 for a norm that is not finite.
            self._norm = math.inf if min(norms) < 0 else math.hypot(*norms)
            self._refused = self._limits.refuse(self._loss, self._norm)
            if not self._refused:
                return found
            return [torch.full_like(norm, math.inf) for norm in found] if isinstance(found, list) else torch.full_like(found, math.inf)

        setattr(self.zero, name, measured)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters hold the moving average, kept in partitions like the weights."""
        if self.shadow is None:
            yield
            return
        own = [flat.detach().clone() for flat in self.flats]
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(own)

    def names(self) -> dict[str, str]:
        return first_names(self.objective.model)

    def state(self) -> dict[str, Tensor]:
        """Full fp32 weights, moments and average, gathered from their partitions (rank 0 has them)."""
        found = self._gather("weight", self.flats)
        for moment in MOMENTS:
            held = [self.torch_optimizer.state.get(flat, {}).get(moment, torch.zeros_like(flat)) for flat in self.flats]
            found |= self._gather(moment, held)
        if self.shadow is not None:
            found |= self._gather("ema", self.shadow)
        found |= {f"buffer/{name}": b for name, b in self.objective.model.named_buffers()}
        return {name: tensor.detach().float() for name, tensor in found.items()} if self.ranks.first else {}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Puts `state()` back at any world size, then refreshes the low-precision parameters."""
        self.updates = updates
        for name, b in self.objective.model.named_buffers():
            b.copy_(state[f"buffer/{name}"])
        for name, p in self.objective.model.named_parameters():
            if not p.requires_grad:
                with _whole(p, writes=True):
                    p.copy_(state[f"weight/{name}"])
        for flat in self.flats:
            step = torch.tensor(float(updates), device=flat.device)
            self.torch_optimizer.state[flat] = {"step": step, **{moment: torch.zeros_like(flat) for moment in MOMENTS}}
        targets = {moment: [self.torch_optimizer.state[flat][moment] for flat in self.flats] for moment in MOMENTS}
        targets |= {"weight": self.flats} | ({"ema": self.shadow} if self.shadow is not None else {})
        for kind, flats in targets.items():
            for piece in self.pieces:
                piece.of(flats).copy_(state[f"{kind}/{piece.name}"].flatten()[piece.start : piece.start + piece.count])
        self._refresh()

    @torch.no_grad()
    def _write(self, flats: list[Tensor]) -> None:
        torch._foreach_copy_(self.flats, flats)
        self._refresh()

    def _refresh(self) -> None:
        """The parameters that the model computes with, from the master weights: what ends each of DeepSpeed's own steps."""
        if self.run.zero and self.run.zero.stage < 3:
            self.zero.update_lp_params()
            return
        self.zero._partition_all_parameters()
        for group in range(len(self.flats)):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)

    @torch.no_grad()
    def _gather(self, kind: str, flats: list[Tensor]) -> dict[str, Tensor]:
        """Collective. Whole tensors from every rank's pieces; frozen parameters only among the weights."""
        mine = {piece.name: piece for piece in self.pieces}
        found = {}
        for name, p in self.objective.model.named_parameters():
            shape = getattr(p, "ds_shape", p.shape)
            if p.requires_grad:
                whole = torch.zeros(shape.numel(), device=self.ranks.device)
                if name in mine:
                    piece = mine[name]
                    whole[piece.start : piece.start + piece.count] = piece.of(flats)
                found[f"{kind}/{name}"] = self.ranks.sum(whole).view(shape)
            elif kind == "weight":
                with _whole(p, writes=False):
                    found[f"{kind}/{name}"] = p.detach().float().clone()
        return found if self.ranks.first else {}


class _Objective(nn.Module):
    """What DeepSpeed wraps: returns the scalar to differentiate, and keeps the loss's parts for the books."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._loss: Loss | None = None

    def forward(self, batch: Batch, noise: Noise, weights: Mapping[str, Tensor] | None) -> Tensor:
        self._loss = self.model(batch, noise)
        return total_loss(self._loss, weights)

    def take(self) -> Loss:
        assert self._loss is not None
        loss, self._loss = self._loss, None
        return loss


@dataclass(frozen=True)
class _Piece:
    """This rank's part of parameter `name`: elements start .. start + count of it lie in flat tensor `flat` from `at` on."""

    name: str
    start: int
    count: int
    flat: int
    at: int

    def of(self, flats: list[Tensor]) -> Tensor:
        return flats[self.flat].detach()[self.at : self.at + self.count]


def settings(run: Run, world: int) -> dict[str, Any]:
    """DeepSpeed's dictionary. `train_batch_size` is left out: it follows from the others."""
    assert run.zero is not None
    micro = run.microbatches(world)
    return {
        "train_micro_batch_size_per_gpu": run.batch_size // world // micro,
        "gradient_accumulation_steps": micro,
        "gradient_clipping": run.optim.grad_clip,
        "bf16": {"enabled": run.precision == "bf16"},
        "zero_optimization": {**run.zero.settings, "stage": run.zero.stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 40,
    }


def _layout(zero: Any, stage: int, model: nn.Module, ranks: Ranks) -> tuple[list[Tensor], list[_Piece]]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    pieces = []
    if stage < 3:
        for name, p in trained:
            mapping = p._hp_mapping
            if mapping is not None:
                whole, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                pieces.append(_Piece(name, whole.start, whole.numel, mapping.param_group_index, flat.start))
        return list(zero.single_partition_of_fp32_groups), pieces
    for name, p in trained:
        group, at, padded = zero.grad_position[zero.get_param_id(p)]
        start = ranks.rank * padded
        count = min(padded, p.ds_numel - start)  # the last ranks' parts are padded
        if count > 0:
            pieces.append(_Piece(name, start, count, group, at))
    return list(zero.fp32_partitioned_groups_flat), pieces


def _keep_bare_parameters(objective: nn.Module) -> None:
    """ZeRO-3 fetches a module's parameters when the module is called, and again before its backward if tensors come out of it.

    Parameters that a composite holds beside its children (queries, mask tokens) are used in other methods too, and composites here
    return dataclasses. They are small: fetched with the whole model, they are there throughout.
    """
    import deepspeed

    for module in objective.modules():
        if next(module.children(), None) is not None:
            for p in module.parameters(recurse=False):
                deepspeed.zero.register_external_parameter(objective, p)


@contextmanager
def _whole(p: nn.Parameter, writes: bool) -> Iterator[None]:
    """Within it a frozen parameter is there whole, which under ZeRO-3 it is not."""
    if not hasattr(p, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([p], modifier_rank=0 if writes else None):
        yield


def _import(ranks: Ranks) -> Any:
    if ranks.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read by the import; without it a CPU is found only by trial and error
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it, also without a launcher
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(f"ZeRO needs deepspeed, which cannot be imported ({error}): pip install 'vla[train]', or --zero 0") from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of dataclasses between modules: `_keep_bare_parameters` sees to them
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # On a CPU it would compile, for a minute, a reduction that only its inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
    return deepspeed
