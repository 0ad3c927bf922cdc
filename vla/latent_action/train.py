"""Training of a latent-action model: one process, which may be killed and resumed; minutes on a CPU at the default sizes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.checkpoint import writing
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.decoders.base import total_loss
from vla.errors import UserError
from vla.latent_action.checkpoint import load_latent, save_latent
from vla.latent_action.health import Collapsed, Usage, check_collapse
from vla.latent_action.model import NOISE_FLOOR, LatentActionConfig, LatentActionModel
from vla.latent_action.state import Watched, load_state, restart_log, save_state
from vla.noise import Noise
from vla.types import Sample

Samples = Callable[[Sequence[int]], Sequence[Sample]]
"""Positions -> samples with a future frame; `Pipeline.samples` is one."""
Progress = Callable[[int, int, dict[str, Any]], None]
"""Called as (step, steps, row of the log)."""

CHECK_AFTER = 0.5
"""Share of the steps after which a collapse stops the run; before, codes may still be waking up."""


def train_latent(
    config: LatentActionConfig,
    samples: Samples,
    steps: int,
    batch: int = 64,
    seed: int = 0,
    out: Path | None = None,
    *,
    learning_rate: float = 3e-3,
    min_perplexity_share: float = 0.2,
    log_every: int = 25,
    device: str = "cpu",
    progress: Progress | None = None,
    first: Path | None = None,
    save_every: int = 0,
    resume: bool = False,
    data: Mapping[str, Any] | None = None,
) -> LatentActionModel:
    """Trains on positions 0 .. steps * batch - 1 and returns the model, in evaluation mode.

    With `out`, writes `out/log.jsonl` while running and the checkpoint `out/model` at the end. The same arguments give the same
    weights, bit for bit, on the same machine with the same number of threads. Raises `Collapsed`, with the diagnosis, where the
    perplexity of recent codes falls below `min_perplexity_share` of the vocabulary in the second half of the run.

    `first`: folder of the first stage's model, where the configuration has a `first_stage`. `save_every`: steps between states in
    `out/state`, from which `resume` goes on as if nothing had happened, bit for bit; without a state it starts from the beginning.
    `data`: JSON facts of what the samples are, which a resumed run must find unchanged.
    """
    if steps < 1 or batch < 2:
        raise UserError(f"{steps} steps of {batch} pairs: give at least 1 step and 2 pairs")
    if (save_every or resume) and out is None:
        raise UserError("saving states and resuming need a folder: give `out`")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.build()
    facts = {"model": model.hash(), "steps": steps, "batch": batch, "seed": seed, "learning_rate": learning_rate, "data": data}
    _start(model, config, first)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(_learned(model), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, steps))
    watch = _Watch(model, seed)
    done = load_state(out, facts, model, optimizer, schedule) if resume and out is not None else None
    if done is not None:
        watch.usage, watch.unexplained, watch.change = Usage(done.count_NK), done.unexplained, done.change
    start_s = time.monotonic() - (done.seconds if done else 0.0)
    row: dict[str, Any] = {}
    with ExitStack() as stack:
        log = stack.enter_context(restart_log(out, done.step if done else 0)) if out is not None else None
        for step in range((done.step if done else 0) + 1, steps + 1):
            row = watch.train_step(samples(range((step - 1) * batch, step * batch)), optimizer, schedule)
            last = step == steps
            if step % log_every == 0 or last:
                row = {"step": step, **row, "seconds": round(time.monotonic() - start_s, 3)}
                if log is not None:
                    with writing(Path(log.name)):
                        log.write(json.dumps(row) + "\n")
                if progress is not None:
                    progress(step, steps, row)
            if step >= CHECK_AFTER * steps and (step % log_every == 0 or last):
                watch.check(step, min_perplexity_share)
            if out is not None and save_every and (step % save_every == 0 or last):
                seconds = time.monotonic() - start_s
                state = Watched(step, watch.usage.count_NK, watch.unexplained, watch.change, seconds, row)
                save_state(out, facts, model, optimizer, state)
    row = row or (done.row if done else {})
    model.eval()
    if out is not None:
        run = {**facts, "last": row}
        save_latent(out / "model", model, run)
    return model


def _start(model: LatentActionModel, config: LatentActionConfig, first: Path | None) -> None:
    """Published weights of frozen features, and the first stage's."""
    model.features.load_pretrained()
    if (first is None) != (config.first_stage is None):
        raise UserError(
            "the second of two stages starts from the first: name its folder (`--init runs/<name of the first stage>`)"
            if first is None
            else f"{first}: this model has no `first_stage` that could start from it"
        )
    if first is not None:
        model.adopt_first(load_latent(first))


def _learned(model: LatentActionModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def frame_pairs(config: LatentActionConfig, datasets: Sequence[str | Path], seed: int = 0, val_fraction: float = 0.0) -> Pipeline:
    """A pipeline of frame pairs from dataset folders, in proportion to their size; its `samples` is what `train_latent` takes."""
    mixture = Mixture.of([Path(folder) for folder in datasets], "frame pairs", val_fraction)
    robots = [source.dataset.info.robot for source in mixture.sources]
    return Pipeline(
        mixture, {robot.name: robot for robot in robots if robot}, "train", seed, future_gap_s=config.gap_s, history_s=config.offsets_s
    )


class _Watch:
    """One update, and a slowly forgetting view of the codes it produced."""

    def __init__(self, model: LatentActionModel, seed: int) -> None:
        self.model, self.seed = model, seed
        self.usage = Usage(np.zeros((model.codes, model.vocabulary)))
        self.unexplained, self.change = 1.0, 0.0  # an untrained decoder predicts no change

    def train_step(self, samples: Sequence[Sample], optimizer: Any, schedule: Any) -> dict[str, Any]:
        """One optimizer step over the samples; returns the row that is logged."""
        pairs = self.model.collate(samples).to(next(self.model.parameters()).device)
        loss, code_BN = self.model(pairs, Noise(pairs.key_B, self.seed))
        total = total_loss(loss)
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not bool(torch.isfinite(norm)):
            raise Collapsed("the gradient is not finite; lower the learning rate")
        optimizer.step()
        schedule.step()
        # A part that no sample of the batch has (proprioception, of video alone) has no mean, and is left out of the row.
        parts = {name: float(part.sum.detach() / part.weight) for name, part in loss.parts.items() if part.weight > 0}
        self.usage = self.usage.scaled(0.98) + Usage.of(code_BN.cpu().numpy(), self.model.vocabulary)
        self.unexplained = 0.95 * self.unexplained + 0.05 * parts["prediction"]
        features = self.model.features
        numbers = len(samples) * features.target_channels * features.target_side**2
        self.change = float(loss.parts["prediction"].weight) / numbers - NOISE_FLOOR
        health = {"perplexity_share": self.usage.perplexity_share, "dead_share": float((self.usage.count_NK < 1e-2).mean())}
        return {"loss": float(total.detach()), **parts, **health, "gradient_norm": float(norm)}

    def check(self, step: int, min_share: float) -> None:
        try:
            check_collapse(self.usage, self.unexplained, self.change, NOISE_FLOOR, min_share)
        except Collapsed as error:
            raise Collapsed(f"step {step}: {error}") from None


def _cosine(step: int, steps: int, warmup: int = 20) -> float:
    return min(1.0, (step + 1) / min(warmup, steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
