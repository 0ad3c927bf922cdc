"""What is said before the first step: enough to see that it is not the run that was meant."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from vla.noise import Noise
from vla.train.checkpoint import Progress
from vla.train.engine import Engine
from vla.train.job import Job, show_tree
from vla.train.run import Run


def describe(run: Run, job: Job, world: int) -> list[str]:
    """Facts that need no forward pass."""
    trained, frozen = count_parameters(job.model)
    per_rank, micro = run.batch_size // world, run.microbatches(world)
    zero = f"DeepSpeed ZeRO-{run.zero.stage}" if run.zero else "plain torch"
    return [
        show_tree(job, run.steps * run.batch_size),
        *job.notes,
        f"batch: {run.batch_size} = {world} ranks x {micro} micro-batches x {per_rank // micro}; {zero}, {run.precision}",
        f"parameters: {trained:,} trained, {frozen:,} frozen; robots: {', '.join(job.robots)}",
    ]


def announce(run: Run, job: Job, engine: Engine, start: Progress, out: Path, say: Callable[[str], None]) -> None:
    """Collective: says the facts and the time that the run will take, from one timed forward pass."""
    for line in describe(run, job, engine.ranks.world):
        say(line)
    micro = run.microbatches(engine.ranks.world)
    size = run.batch_size // engine.ranks.world // micro
    batch = job.batch(job.train.samples(range(size))).to(engine.ranks.device)
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        engine.forward(batch, Noise(batch.position_B, run.seed))
        seconds = time.perf_counter() - began
    total = 3 * seconds * micro * (run.steps - start.step)  # backward costs about twice the forward
    begins = f"goes on at step {start.step} of" if start.step else "starts;"
    say(f"{out}: {begins} {run.steps} steps, about {duration(total)} (from one forward pass)")
    needed, free = _bytes_of_saves(run, job.model), shutil.disk_usage(out).free
    if free < needed:
        say(f"warning: checkpoints here will take about {needed / 1e9:.2f} GB; {free / 1e9:.2f} GB are free in {out}")


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trained, frozen). Under ZeRO-3 a parameter is empty between uses, and `ds_numel` is its size."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, trained in sizes if not trained)


def _bytes_of_saves(run: Run, model: nn.Module) -> int:
    trained, frozen = count_parameters(model)
    copies = 4 + (run.ema_decay is not None)  # the acting weights, the masters, two moments, the EMA
    return 4 * (copies * trained + 2 * frozen) * (run.keep_last + 1)
