"""Training, top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.errors import UserError
from vla.noise import Noise
from vla.train import checkpoint
from vla.train.agreement import Agreement
from vla.train.checkpoint import Progress
from vla.train.clock import Clock, Pace
from vla.train.engine import Engine, Update, make_engine
from vla.train.features import remember
from vla.train.job import Job, assemble, augmented, step_batches
from vla.train.log import Books, Log, Watch, memory_mb
from vla.train.moments import MOMENTS
from vla.train.picture import save_picture
from vla.train.ranks import Ranks
from vla.train.report import announce
from vla.train.run import Run
from vla.train.saver import Saver
from vla.train.spikes import limits
from vla.train.stop import Stop, stop_signals
from vla.train.together import alive, together
from vla.train.validate import validate


class Diverged(UserError):
    """Too many updates in a row were skipped."""

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

    Raises UserError before the first step for every mistake in the run, and `Diverged` after `max_skips` skipped updates in a row.
    """
    ranks = Ranks.join(run.timeout_s)
    watch = watch or Watch()
    run.check(ranks.world)
    if run.threads:
        torch.set_num_threads(run.threads)
    with ExitStack() as stack:
        stack.enter_context(together(ranks, run.timeout_s))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        ranks.first_does(lambda: stack.enter_context(checkpoint.lock(out)))  # first: another job may be removing what is found
        found = Path(ranks.first_does(lambda: _found(out, resume, watch)))
        resumed, verify = (found / checkpoint.MODEL if found.name else None), ("full" if ranks.first else "size")
        job = job or ranks.all_do(lambda: assemble(run, data_root, near, verify, resumed))
        facts = {**run.to_json(), **job.facts}
        ranks.first_does(lambda: checkpoint.record_run(out, facts, not found.name, allow_changed, watch.say))
        engine = make_engine(run, job.model, ranks)
        start = _restore(engine, job, found, run, watch) if found.name else Progress(0, 0, run.batch_size, run.seed)
        log = ranks.all_do(lambda: Log(out, ranks, start.step, run, watch))
        stack.callback(log.close)
        if ranks.first and not found.name:
            save_picture(out / "first_batch.png", job, job.train.samples(range(min(run.batch_size, 8))))
        if run.features is not None:
            job.memory = remember(run, job, ranks, start.step, watch.say if ranks.first else lambda line: None)
        pace = announce(run, job, engine, start, out, watch.say if ranks.first else lambda line: None)
        clock = Clock(engine.phases, start.seconds, start.step, job.model.backbone, ranks)
        stack.callback(clock.close)
        saver = stack.enter_context(Saver(run, job, engine, out, log, saved=start.step if found.name else -1))
        stop = stack.enter_context(stop_signals())
        return _steps(run, job, engine, start, log, saver, stop, watch, clock, pace)


def _steps(
    run: Run, job: Job, engine: Engine, start: Progress, log: Log, saver: Saver, stop: Stop, watch: Watch, clock: Clock, pace: Pace
) -> Result:
    ranks, books = engine.ranks, Books(job.sources, job.robots, engine.ranks)
    done, validation = start, None
    agreement = Agreement(engine, job, stop)
    with closing(step_batches(run, job, ranks, done.step)) as batches_of_step:
        for batches in agreement.told(saver.checked(clock.waiting(batches_of_step))):
            alive(ranks, run.timeout_s)
            batches = [batch.to(ranks.device, non_blocking=True) for batch in batches]
            noises = [Noise(batch.position_B, run.seed) for batch in batches]
            if run.augment is not None:
                batches = [augmented(run.augment, job, batch, noise) for batch, noise in zip(batches, noises, strict=True)]
            weights, asked = agreement.sum_weights(batches, noises)
            if asked:  # on any rank; then all leave here
                break
            # For dropout: a function of the step.
            torch.manual_seed(((run.seed * 1_000_003 + done.step) * 65_537 + ranks.rank) % 2**63)
            losses = [
                engine.forward_backward(batch, noise, weights, last=batch is batches[-1])
                for batch, noise in zip(batches, noises, strict=True)
            ]
            lr = run.optim.lr * run.schedule.factor(done.step, run.steps)
            limit = limits(done.recent, run.spike_sigmas)
            update = engine.step(lr, limit)
            books.count(update, list(zip(batches, losses, strict=True)))
            done = done.after(update, limit)
            watch.step(done.step, run.steps)
            if not update.applied:
                log.write("skip", done.step, **_skipped(run, done, update))
            if done.skipped_in_row >= run.max_skips:
                raise _diverged(run, done, update, saver.save(replace(done, seconds=clock.total), last=True))
            saving = _due(done.step, run.save_every) and done.step < run.steps
            if _due(done.step, run.log_every) or saving or done.step == run.steps:
                norms = {"lr": lr, "grad_norm": update.grad_norm, "grad_norms": engine.grad_norms()}
                row = {**books.close(), **norms, **clock.lap(done.step, run.steps, pace), **memory_mb(ranks.device)}
                log.write("train", done.step, **row)
            if _due(done.step, run.validate_every) or done.step == run.steps:
                with engine.phases("validation"):
                    validation = validate(run, job, engine, done.step - 1)
                if validation:
                    log.write("validation", done.step, **validation)
                    done = replace(done, val_loss=validation["loss"])
            if saving:
                saver.save(replace(done, seconds=clock.total))
    stopped = "" if done.step == run.steps else stop.requested or "another rank"
    if stopped and ranks.first:
        watch.say(f"stopped at step {done.step} by {stopped}; go on with --resume")
    folder = saver.save(replace(done, seconds=clock.total), last=True)
    return Result(folder, done.step, stopped, clock.total, validation)


def _found(out: Path, resume: bool, watch: Watch) -> str:
    """The folder of the step to go on from, or ''."""
    folder = checkpoint.newest(out, watch.say)
    if folder and not resume:
        raise UserError(f"{out} holds a run at step {int(folder.name)}. Add --resume to go on, or choose another --out.")
    return str(folder or "")


def _restore(engine: Engine, job: Job, folder: Path, run: Run, watch: Watch) -> Progress:
    state, progress = checkpoint.load_state(folder)
    shapes = {f"weight/{name}": tuple(getattr(p, "ds_shape", p.shape)) for name, p in job.model.named_parameters()}
    wrong = [name for name, shape in shapes.items() if name not in state or tuple(state[name].shape) != shape]
    if wrong:
        raise UserError(f"{folder} holds another model: {', '.join(wrong[:3])}. Choose another --out, and start from it with --init.")
    if progress.step > run.steps:
        raise UserError(f"{folder} is at step {progress.step}; the run has only {run.steps} steps")
    if progress.batch_size != run.batch_size and engine.ranks.first:
        before, now = progress.step * progress.batch_size, progress.step * run.batch_size
        watch.say(
            f"note: step {progress.step} lies elsewhere in the order for batches of {run.batch_size} instead of {progress.batch_size}: "
            f"positions {min(before, now)} to {max(before, now) - 1} are {'never seen' if now > before else 'seen again'}"
        )
    trained = [name for name, p in job.model.named_parameters() if p.requires_grad]
    engine.load_state(_with_what_lacks(state, trained), progress.updates)
    engine.ranks.first_does(lambda: checkpoint.point(folder.parents[1], "last", folder))
    return replace(progress, batch_size=run.batch_size, seed=run.seed)


def _with_what_lacks(state: Mapping[str, Tensor], trained: Sequence[str]) -> dict[str, Tensor]:
    """A run may be changed as it resumes: what has not been averaged yet is averaged from here on, and what stood still has no moments."""
    found = dict(state)
    for name in trained:
        weight = found[f"weight/{name}"]
        found.setdefault(f"ema/{name}", weight)
        for moment in MOMENTS:
            found.setdefault(f"{moment}/{name}", torch.zeros_like(weight))
    return found


def _skipped(run: Run, done: Progress, update: Update) -> dict[str, Any]:
    """Where to look for what was wrong. As text: JSON has no infinity."""
    first = (done.step - 1) * run.batch_size
    facts = {"why": update.skipped, "loss": str(update.loss), "grad_norm": str(update.grad_norm)}
    return {**facts, "positions": [first, first + run.batch_size]}


def _diverged(run: Run, done: Progress, update: Update, folder: Path) -> Diverged:
    return Diverged(
        f"{run.max_skips} updates in a row were skipped, the last at step {done.step} (loss {update.loss}, gradient norm "
        f"{update.grad_norm}: {update.skipped}). Saved {folder}. Lower the learning rate, or look at the positions in log.jsonl."
    )


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
