"""What is said before the first step: enough to see that it is not the run that was meant."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from vla.noise import Noise
from vla.train.checkpoint import Progress
from vla.train.clock import Pace
from vla.train.engine import Engine
from vla.train.flops import backward_share, counted, measured_peak
from vla.train.job import Job, show_tree
from vla.train.memory import estimate, parameters_by_part
from vla.train.run import Run


def describe(run: Run, job: Job, world: int) -> list[str]:
    """Facts that need no forward pass."""
    per_rank, micro = run.batch_size // world, run.microbatches(world)
    zero = f"DeepSpeed ZeRO-{run.zero.stage}" if run.zero else "plain torch"
    return [
        show_tree(job, run.steps * run.batch_size),
        *job.notes,
        f"batch: {run.batch_size} = {world} ranks x {micro} micro-batches x {per_rank // micro}; {zero}, {run.precision}",
        *describe_parameters(job.model, job.robots),
    ]


def describe_parameters(model: nn.Module, robots: Sequence[str]) -> list[str]:
    """What is trained and what is frozen, in all and by part."""
    trained, frozen = count_parameters(model)
    kinds = {part: dict(zip(("trained", "frozen"), pair, strict=True)) for part, pair in parameters_by_part(model).items()}
    parts = [f"{part} {', '.join(f'{size:,} {kind}' for kind, size in pair.items() if size)}" for part, pair in kinds.items()]
    return [f"parameters: {trained:,} trained, {frozen:,} frozen; robots: {', '.join(robots)}", f"  {'; '.join(parts)}"]


def announce(run: Run, job: Job, engine: Engine, start: Progress, out: Path, say: Callable[[str], None]) -> Pace:
    """Collective: says the facts and the time that the run will take, from one timed forward pass, whose operations are counted."""
    world, device = engine.ranks.world, engine.ranks.device
    for line in (*describe(run, job, world), f"device: {_described(device)}"):
        say(line)
    micro = run.microbatches(world)
    size = run.batch_size // world // micro
    first = min(start.step, run.steps - 1) * run.batch_size
    batch = job.training_batch(range(first, first + size)).to(device)
    with counted() as operations:  # the first pass warms up
        engine.forward(batch, Noise(batch.position_B, run.seed))
    began = time.perf_counter()
    engine.forward(batch, Noise(batch.position_B, run.seed))
    seconds = time.perf_counter() - began
    flops = operations() * (1 + backward_share(job.model)) / size
    peak = measured_peak(device, run.precision) if device.type == "cuda" else None
    most = f"; a matrix product here does {peak / 1e12:.0f} TFLOP/s" if peak else ""
    say(f"operations: {flops / 1e9:.3g} GFLOP a sample, {flops * run.batch_size / 1e12:.3g} TFLOP a step{most}")
    memory = estimate(job.model, run.precision, run.ema_decay is not None, run.zero, world, moment_bits=run.optim.moment_bits)
    say(f"memory: {memory.line()}; activations come on top")
    total = 3 * seconds * micro * (run.steps - start.step)  # backward costs about twice the forward
    begins = f"goes on at step {start.step} of" if start.step else "starts;"
    say(f"{out}: {begins} {run.steps} steps, about {duration(total)} (from one forward pass)")
    needed, free = _bytes_of_saves(run, job.model), shutil.disk_usage(out).free
    if free < needed:
        say(f"warning: checkpoints here will take about {needed / 1e9:.2f} GB; {free / 1e9:.2f} GB are free in {out}")
    return Pace(run.batch_size, flops, peak, engine.waits)


def _described(device: torch.device) -> str:
    """What each rank computes on, and why no GPU where it is none."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads; torch {torch.__version__} sees no GPU"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trained, frozen)."""
    parts = parameters_by_part(model).values()
    return sum(trained for trained, _ in parts), sum(frozen for _, frozen in parts)


def _bytes_of_saves(run: Run, model: nn.Module) -> int:
    trained, frozen = count_parameters(model)
    copies = 4 + (run.ema_decay is not None)  # the acting weights, the masters, two moments, the EMA
    return 4 * (copies * trained + 2 * frozen) * (run.keep_last + run.keep_best + 1)
