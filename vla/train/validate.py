"""Held-out losses, and what only a look beside the training tells: whether instructions matter, and which source pulls where."""

from __future__ import annotations

from typing import Any

import torch

from vla.noise import Noise
from vla.train.engine import Engine
from vla.train.job import Job
from vla.train.log import Books
from vla.train.probe import listening, probing
from vla.train.ranks import Ranks
from vla.train.run import Run
from vla.train.together import alive


def validate(run: Run, job: Job, engine: Engine, step: int = 0) -> dict[str, Any]:
    """Collective. Losses on held-out episodes with the EMA's weights: the same samples and noise every time. {} without any.

    With `run.probe` also under other instructions than the true ones (vla/train/probe.py), which takes three times as long. With
    `run.source_gradients` also each source's part in the gradient of the training batch of `step`.
    """
    ranks, split, micro = engine.ranks, job.held_out, run.microbatches(engine.ranks.world)
    count = (
        0 if split is None else min(run.val_batches, -(-sum(source.samples for source in split.order.sources) // run.batch_size)) * micro
    )
    if split is None or not count:
        return {}
    size = run.batch_size // ranks.world // micro
    books = {name: Books(job.sources, job.robots, ranks) for name in ("plain", *(("shuffled", "blank") if run.probe else ()))}
    counts = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    collate = probing(job.batch) if run.probe else job.batch
    job.model.eval()
    with engine.averaged():
        for _, made in split.batches(batch_size=size, collate=collate, count=count, rank=ranks.rank, world=ranks.world):
            alive(ranks, run.timeout_s)
            made = made.to(ranks.device)
            for name, book in books.items():
                batch = getattr(made, name) if run.probe else made
                book.add(batch, engine.forward(batch, Noise(batch.position_B, run.seed).fold(1)))
            counts += counts.new_tensor([made.changed if run.probe else 0, size])
    row = books["plain"].close()
    if run.probe:
        changed, samples = ranks.sum(counts).tolist()
        row["probe"] = listening(row["loss"], books["shuffled"].close()["loss"], books["blank"].close()["loss"], changed / samples)
    if run.source_gradients:
        row["gradients"] = source_gradients(run, job, engine, step)
    job.model.train()
    return row


def source_gradients(run: Run, job: Job, engine: Engine, step: int) -> dict[str, dict[str, float]]:
    """Collective. Each source's part in the gradient of the batch of `step`: {source: {samples, norm, share}}.

    The gradient is the sum over sources. `norm` is of a source's summand; `share` is the part of the whole that lies along it, below 0
    where it pulls against the others; shares add up to 1. Only the first micro-batch of each rank counts, without augmentation. It
    takes one backward pass for each source, and memory for two more gradients; {} with engines that cannot (DeepSpeed), and where
    nothing was labelled.
    """
    ranks = engine.ranks
    size = run.batch_size // ranks.world // run.microbatches(ranks.world)
    first = step * run.batch_size + ranks.rank * size
    samples = job.train.samples(range(first, first + size))
    batch = job.batch(samples).to(ranks.device)
    noise = Noise(batch.position_B, run.seed)
    mine = job.model.weights(batch, noise)
    weights = dict(zip(mine, ranks.sum(torch.stack(list(mine.values()))), strict=True))
    whole = engine.gradient(batch, noise, weights)
    if whole is None:
        return {}
    whole = ranks.sum(whole)
    square = float(whole.square().sum())
    found = {}
    for source in job.sources:
        part = [sample for sample in samples if sample.source == source]
        gradient = torch.zeros_like(whole)
        if part:
            batch = job.batch(part).to(ranks.device)
            made = engine.gradient(batch, Noise(batch.position_B, run.seed), weights)
            assert made is not None
            gradient = made
        gradient, count = ranks.sum(gradient), _total(ranks, len(part))
        if count and square > 0:
            share = float((gradient * whole).sum()) / square
            found[source] = {"samples": count, "norm": float(gradient.norm()), "share": share}
    return found


def _total(ranks: Ranks, count: int) -> float:
    return float(ranks.sum(torch.tensor(float(count), device=ranks.device)))
