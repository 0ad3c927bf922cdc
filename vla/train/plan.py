"""What a run would take, said without a device: counted on the meta device, where tensors have shapes and no numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla.backbones.empty import build_empty
from vla.errors import UserError
from vla.model import VLA
from vla.noise import Noise
from vla.train.engine import freeze
from vla.train.features import refuse
from vla.train.flops import count_on_meta
from vla.train.job import Job, assemble
from vla.train.memory import activation_bytes, estimate, parameters_by_part
from vla.train.optim import Zero
from vla.train.report import describe, duration
from vla.train.run import Run
from vla.types import Batch

MOST_BUILT = 500_000_000
"""Parameters of the largest model that a dry run builds, with its starting weights; of larger ones the shapes alone."""
DEVICES_GB = (24, 48, 80, 141)
"""RTX 4090 or L4; L40S; A100 or H100; H200."""
USABLE = 0.92
"""Of a device's memory: the driver, the kernels' own space and what lies between tensors take the rest."""
SMALL = 1e9
"""Bytes of training state below which there is no choice of methods to make."""
PACE = 100e12
"""Operations per second that a device really does, for hours before anything was measured."""


def dry_run(run: Run, data_root: Path | None, near: Path, world: int) -> list[str]:
    """Checks everything that `run` names, for `world` ranks; returns what to say. Raises UserError for every mistake in the run."""
    run.check(world)
    job = assemble(run, data_root, near, most_parameters=MOST_BUILT)
    freeze(job.model, run.freeze)
    if run.features is not None:
        refuse(run, job.model)
    return [*describe(run, job, world), *forecast(run, job, world)]


@dataclass(frozen=True)
class Pass:
    """Of one sample: operations forward and backward, bytes kept between the two."""

    forward: float
    backward: float
    activations: float


def forecast(run: Run, job: Job, world: int) -> list[str]:
    """Operations, memory and hours of the run, and what would fit where; where the model cannot be counted, the reason."""
    one, reason = None, ""
    try:
        batch = job.batch(job.train.samples(range(1)))
        one = measure(job.model, batch, run.precision)
    except (UserError, RuntimeError) as error:  # no tokenizer in a configuration; a value that decides the model's next step
        reason = str(error).splitlines()[0]
    size = run.batch_size // world // run.microbatches(world)
    activations = one.activations * size if one else 0.0
    memory = estimate(job.model, run.precision, run.ema_decay is not None, run.zero, world, activations, run.optim.moment_bits)
    if one is None:
        return [f"memory: {memory.line()}; activations come on top", f"operations and activations are not known: {reason}"]
    sample = one.forward + one.backward
    step = sample * run.batch_size
    hours = duration(step * run.steps / (PACE * world))
    return [
        f"operations: {sample / 1e9:.3g} GFLOP a sample ({one.forward / 1e9:.3g} forward), {step / 1e12:.3g} TFLOP a step; "
        f"{hours} in all where each of {world} devices does {PACE / 1e12:.0f} TFLOP/s",
        f"memory: {memory.line()}",
        *what_fits(run, job, batch, one, world),
    ]


def measure(model: nn.Module, batch: Batch, precision: str, operations: bool = True) -> Pass:
    """Counted on a copy of the model that holds no numbers. Raises RuntimeError where the model must know one to go on.

    With gradient checkpointing a layer's own activations come back in the backward pass, one layer at a time: an average one is added.
    """
    rows = len(batch.source_B)
    empty, moved = on_meta(model), _moved(batch)
    noise = Noise(moved.position_B, 0)
    forward, backward = count_on_meta(empty, moved, noise) if operations else (0.0, 0.0)
    kept = activation_bytes(empty, lambda: empty(moved, noise))
    layers = checkpointed_layers(empty)
    if layers:
        empty.get_submodule("backbone").set_gradient_checkpointing(False)
        kept += max(activation_bytes(empty, lambda: empty(moved, noise)) - kept, 0.0) / layers
    return Pass(forward / rows, backward / rows, kept / rows * (0.5 if precision == "bf16" else 1.0))


def what_fits(run: Run, job: Job, batch: Batch, one: Pass, world: int) -> list[str]:
    """A table: the most samples of a micro-batch on devices of each size, by what is trained and how it is spread over `world` ranks."""
    ema = run.ema_decay is not None
    whole = estimate(job.model, run.precision, ema, None, world, moment_bits=run.optim.moment_bits)
    if whole.total < SMALL:
        return [
            f"what fits: anything; {_samples(DEVICES_GB[0], whole.total, one).strip()} samples at once on a device of {DEVICES_GB[0]} GB"
        ]
    lines = [f"what fits, {run.precision}, {world} ranks: most samples at once on a device (-: not one)"]
    lines.append(" " * 60 + "".join(f"{size:>7} GB" for size in DEVICES_GB))
    for method, model in methods(run, job):
        each = one if model is job.model else measure(model, batch, run.precision, operations=False)
        for zero in (None, Zero(1), Zero(2), Zero(3)):
            fixed = estimate(model, run.precision, ema, zero, world, moment_bits=run.optim.moment_bits).total
            name = f"{method}, {f'ZeRO-{zero.stage}' if zero else 'plain torch'}"
            sizes = f"{fixed / 1e9:.1f} GB + {each.activations / 1e9:.2g} a sample"
            lines.append(f"  {name:34}{sizes:>24}" + "".join(_samples(size, fixed, each) for size in DEVICES_GB))
    return lines


def _samples(device_gb: float, fixed: float, one: Pass) -> str:
    count = int((USABLE * device_gb * 1e9 - fixed) // max(one.activations, 1))
    return f"{'-' if count < 1 else str(count) if count < 1000 else '1000+':>10}"


def methods(run: Run, job: Job) -> Iterator[tuple[str, VLA]]:
    """The run's own model, and the ways to fine-tune it: empty models, with what they train. One that is the run's own stands once."""
    contents, config = job.contents, job.contents.model.backbone
    plain = {name: value for name, value in (("freeze", ()), ("lora", None), ("four_bit", False)) if hasattr(config, name)}
    full = build_empty(replace(contents.model, backbone=replace(config, **plain)), contents.roster)
    if parameters_by_part(full) == parameters_by_part(job.model):
        yield "full (the run's own)", job.model
    else:
        yield "the run's own", job.model
        yield "full", full
    if hasattr(config, "lora"):
        from vla.backbones.adapters import LoRA

        adapted = replace(config, **{**plain, "lora": LoRA()})
        yield "LoRA", build_empty(replace(contents.model, backbone=adapted), contents.roster)
    freeze(full, ("backbone",))
    yield "frozen backbone", full


def on_meta(model: nn.Module) -> Any:
    """A copy without numbers: of the structure, with parameters and buffers on the meta device."""
    tensors: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    tensors |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, tensors)


def _moved(batch: Batch) -> Batch:
    """Onto the meta device; the images' sizes stay, for they decide shapes."""
    sizes = {name: tensor for name, tensor in batch.inputs.items() if name == "image_size_BV2"}
    moved = batch.to("meta")
    return replace(moved, inputs={**moved.inputs, **sizes})


def checkpointed_layers(model: nn.Module) -> int:
    """Modules that are computed again in the backward pass: the innermost of those that say so."""
    on = {module for module in model.modules() if getattr(module, "gradient_checkpointing", False)}
    return sum(on.isdisjoint(inner for inner in module.modules() if inner is not module) for module in on)
