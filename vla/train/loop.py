"""Training, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.data.augment import Augment
from vla.errors import UserError
from vla.noise import Noise
from vla.train import checkpoint
from vla.train.checkpoint import Progress
from vla.train.clock import Clock, Pace
from vla.train.engine import Engine, make_engine
from vla.train.job import Job, assemble, step_batches
from vla.train.log import Books, Log, Watch, memory_mb
from vla.train.picture import save_picture
from vla.train.probe import listening, probing
from vla.train.ranks import Ranks
from vla.train.report import announce
from vla.train.run import Run
from vla.train.stop import Stop, stop_signals
from vla.types import Batch


class Diverged(UserError):
    """Too many updates in a row were not finite."""

    exit_code = 1


@dataclass(frozen=True)
class Result:
    """`checkpoint`: the acting checkpoint of the last step. `stopped`: the signal that ended the run early, or ''."""

    checkpoint: Path
    step: int
    stopped: str
    seconds: float
    validation: Mapping[str, Any] | None


def train(
    run: Run,
    out: Path,
    *,
    resume: bool = False,
    allow_changed: bool = False,
    data_root: Path | None = None,
    near: Path = Path(),
    job: Job | None = None,
    watch: Watch | None = None,
) -> Result:
    """Trains `run` in the folder `out`, alone or as one rank of a job, and returns when it is done or was asked to stop.

    `resume`: go on from the newest sound checkpoint in `out`, if there is one; without it a folder that has one is refused.
    `data_root`: where datasets lie (default: $VLA_DATA, else `data`); `near`: the recipe's folder, where its relative paths are
    looked up first. `job`: already assembled. `watch`: told of every step on each rank, of all else on the first.

    Raises UserError before the first step for every mistake in the run, and `Diverged` after `max_skips` updates in a row that were
    not finite.
    """
    ranks = Ranks.join()
    watch = watch or Watch()
    run.check(ranks.world)
    if run.threads:
        torch.set_num_threads(run.threads)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        found = Path(ranks.first_does(lambda: _found(out, resume, watch)))
        resumed, verify = (found / checkpoint.MODEL if found.name else None), ("full" if ranks.first else "size")
        job = job or ranks.all_do(lambda: assemble(run, data_root, near, verify, resumed))
        facts = {**run.to_json(), **job.facts}
        ranks.first_does(lambda: stack.enter_context(checkpoint.lock(out)))
        ranks.first_does(lambda: checkpoint.record_run(out, facts, not found.name, allow_changed, watch.say))
        engine = make_engine(run, job.model, ranks)
        start = _restore(engine, job, found, run) if found.name else Progress(0, 0, run.batch_size, run.seed)
        log = ranks.all_do(lambda: Log(out, ranks, start.step, run, watch))
        stack.callback(log.close)
        if ranks.first and not found.name:
            save_picture(out / "first_batch.png", job, job.train.samples(range(min(run.batch_size, 8))))
        pace = announce(run, job, engine, start, out, watch.say if ranks.first else lambda line: None)
        clock = Clock(engine.phases, start.seconds, start.step, job.model.backbone, ranks)
        stack.callback(clock.close)
        stop = stack.enter_context(stop_signals())
        return _steps(run, job, engine, start, out, log, stop, watch, clock, pace)


def _steps(
    run: Run, job: Job, engine: Engine, start: Progress, out: Path, log: Log, stop: Stop, watch: Watch, clock: Clock, pace: Pace
) -> Result:
    ranks, books = engine.ranks, Books(job.sources, job.robots, engine.ranks)
    done, validation = start, None

    def save() -> Path:
        with engine.phases("save"):
            return _save(engine, job, out, replace(done, updates=engine.updates, seconds=clock.total), run, log)

    with closing(step_batches(run, job, ranks, done.step)) as batches_of_step:
        agreement = _Agreement(engine)
        for batches in agreement.told(clock.waiting(batches_of_step)):
            batches = [batch.to(ranks.device, non_blocking=True) for batch in batches]
            noises = [Noise(batch.position_B, run.seed) for batch in batches]
            if run.augment is not None:
                batches = [_augmented(run.augment, job, batch, noise) for batch, noise in zip(batches, noises, strict=True)]
            weights, asked = agreement.sum_weights(job, batches, noises, stop)
            if asked:  # on any rank; then all leave here
                break
            torch.manual_seed((run.seed * 1_000_003 + done.step) * 65_537 + ranks.rank)  # for dropout: a function of the step
            losses = [
                engine.forward_backward(batch, noise, weights, last=batch is batches[-1])
                for batch, noise in zip(batches, noises, strict=True)
            ]
            lr = run.optim.lr * run.schedule.factor(done.step, run.steps)
            update = engine.step(lr)
            books.count(update, list(zip(batches, losses, strict=True)))
            skips = (0, 0) if update.applied else (1, done.skipped_in_row + 1)
            done = replace(done, step=done.step + 1, skipped=done.skipped + skips[0], skipped_in_row=skips[1])
            watch.step(done.step, run.steps)
            if not update.applied:
                first = (done.step - 1) * run.batch_size
                facts = {"loss": str(update.loss), "grad_norm": str(update.grad_norm), "positions": [first, first + run.batch_size]}
                log.write("skip", done.step, **facts)
            if done.skipped_in_row >= run.max_skips:
                folder = save()
                raise Diverged(
                    f"{run.max_skips} updates in a row were not finite, the last at step {done.step} (loss {update.loss}, gradient norm "
                    f"{update.grad_norm}). Saved {folder}. Lower the learning rate, or look at the positions in {out}/log.jsonl."
                )
            saving = _due(done.step, run.save_every) and done.step < run.steps
            if _due(done.step, run.log_every) or saving or done.step == run.steps:
                norms = {"lr": lr, "grad_norm": update.grad_norm, "grad_norms": engine.grad_norms()}
                row = {**books.close(), **norms, **clock.lap(done.step, run.steps, pace), **memory_mb(ranks.device)}
                log.write("train", done.step, **row)
            if _due(done.step, run.validate_every) or done.step == run.steps:
                with engine.phases("validation"):
                    validation = validate(run, job, engine)
                if validation:
                    log.write("validation", done.step, **validation)
            if saving:
                save()
    stopped = "" if done.step == run.steps else stop.requested or "another rank"
    if stopped and ranks.first:
        watch.say(f"stopped at step {done.step} by {stopped}; go on with --resume")
    return Result(save(), done.step, stopped, clock.total, validation)


def validate(run: Run, job: Job, engine: Engine) -> dict[str, Any]:
    """Collective. Losses on held-out episodes with the EMA's weights: the same samples and noise every time. {} without any.

    With `run.probe` also under other instructions than the true ones (vla/train/probe.py), which takes three times as long.
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
            made = made.to(ranks.device)
            for name, book in books.items():
                batch = getattr(made, name) if run.probe else made
                book.add(batch, engine.forward(batch, Noise(batch.position_B, run.seed).fold(1)))
            counts += counts.new_tensor([made.changed if run.probe else 0, size])
    job.model.train()
    row = books["plain"].close()
    if run.probe:
        changed, samples = ranks.sum(counts).tolist()
        row["probe"] = listening(row["loss"], books["shuffled"].close()["loss"], books["blank"].close()["loss"], changed / samples)
    return row


def _found(out: Path, resume: bool, watch: Watch) -> str:
    """The folder of the step to go on from, or ''."""
    folder = checkpoint.newest(out, watch.say)
    if folder and not resume:
        raise UserError(f"{out} holds a run at step {int(folder.name)}. Add --resume to go on, or choose another --out.")
    return str(folder or "")


def _restore(engine: Engine, job: Job, folder: Path, run: Run) -> Progress:
    state, progress = checkpoint.load_state(folder)
    shapes = {f"weight/{name}": tuple(getattr(p, "ds_shape", p.shape)) for name, p in job.model.named_parameters()}
    wrong = [name for name, shape in shapes.items() if name not in state or tuple(state[name].shape) != shape]
    if wrong:
        raise UserError(f"{folder} holds another model: {', '.join(wrong[:3])}. Choose another --out, and start from it with --init.")
    if progress.step > run.steps:
        raise UserError(f"{folder} is at step {progress.step}; the run has only {run.steps} steps")
    engine.load_state(state, progress.updates)
    return progress


def _save(engine: Engine, job: Job, out: Path, progress: Progress, run: Run, log: Log) -> Path:
    """Collective: the ranks put the state together, the first writes it."""
    with engine.averaged():
        weights = engine.weights()
    state = engine.state()
    started = time.perf_counter()
    folder = engine.ranks.first_does(
        lambda: str(checkpoint.save(out, job.checkpoint(progress.step), weights, state, progress, run.keep_last))
    )
    log.write("save", progress.step, folder=Path(folder).parent.name, seconds=time.perf_counter() - started)
    return Path(folder)


class _Agreement:
    """What ranks tell each other once a step, in one sum: the weights of the loss, who was asked to stop, who cannot go on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.last: Tensor | None = None

    def sum_weights(self, job: Job, batches: Sequence[Batch], noises: Sequence[Noise], stop: Stop) -> tuple[dict[str, Tensor], bool]:
        """Collective. Weight of each part of the loss over all ranks and micro-batches; and whether any rank was asked to stop."""
        rows = [job.model.weights(batch, noise) for batch, noise in zip(batches, noises, strict=True)]
        names = sorted(rows[0])
        asked = rows[0][names[0]].new_tensor(float(bool(stop.requested)))
        self.last = torch.stack([*(sum(row[name] for row in rows) for name in names), asked])
        with self.engine.phases("communication"):
            summed = self.engine.ranks.sum(self.last)
        if not torch.isfinite(summed[-1]):
            raise UserError("another rank could not go on; its error says why")
        return dict(zip(names, summed, strict=False)), bool(summed[-1] > 0)

    def told(self, items: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The items. Where this rank cannot have the next one (its data is gone, say), it spoils the sum that the others wait in."""
        try:
            yield from items
        except UserError:
            if self.last is not None:  # before the first step nobody knows the sum's size: the launcher ends the others
                self.engine.ranks.sum(torch.full_like(self.last, math.nan))
            raise


def _augmented(augment: Augment, job: Job, batch: Batch, noise: Noise) -> Batch:
    """The batch with its images changed; each sample by its own noise, on the device."""
    images, contents = batch.inputs.get("image_BVFHW3"), job.contents
    if images is None:
        raise UserError("`augment` changes the input image_BVFHW3 (uint8), which this backbone's collate does not give; set augment=None")
    cameras = [robot.cameras for robot in contents.embodiments]
    moved_EV = augment.moved(cameras, images.shape[1], getattr(contents.model.backbone, "cameras", ())).to(images.device)
    robotless_B = ~batch.spec.mask_BTA.any((1, 2))  # video of people stands on the roster's first row, whose cameras are not its own
    moved_BV = moved_EV[batch.spec.embodiment_B] | robotless_B[:, None]
    changed = augment(images, noise, moved_BV, batch.inputs.get("image_size_BV2"))
    return replace(batch, inputs={**batch.inputs, "image_BVFHW3": changed})


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
