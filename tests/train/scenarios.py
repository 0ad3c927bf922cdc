"""What the processes of `processes` do. Each function is one rank of a job and returns its exit code."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.train.toy import MODEL, toy_run
from vla.cli import main
from vla.decoders.latent import LatentActions
from vla.errors import UserError
from vla.model import Model
from vla.noise import Noise
from vla.train.engine import make_engine
from vla.train.features import Features
from vla.train.job import assemble
from vla.train.log import Watch
from vla.train.loop import train
from vla.train.optim import AdamW, Zero
from vla.train.progress import Bar
from vla.train.ranks import Ranks


def elsewhere(module: str, name: str, **args) -> int | None:
    """A scenario that stands in another area's tests; imported where it runs, so that others need not pay for what it imports."""
    return getattr(importlib.import_module(module), name)(**args)


def run_and_die(root: str, out: str, zero: int = 0, kill_at: int = 0, resume: bool = False, **changes) -> int:
    """Trains the toy run; kills itself (as rank 1, if there are two) after `kill_at` steps."""
    run = toy_run(zero=Zero(zero) if zero else None, **changes)
    dies = kill_at and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    result = train(run, Path(out), resume=resume, data_root=Path(root), near=Path(root), watch=_Killer(kill_at) if dies else None)
    return 0 if not result.stopped else 75


def run_until_step(root: str, out: str, until: int, zero: int = 0, resume: bool = False, **changes) -> int:
    """Trains the toy run; asks itself to stop (SIGTERM, on the last rank alone) after step `until`."""
    run = toy_run(zero=Zero(zero) if zero else None, **changes)
    asks = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    watch = _Killer(until, signal.SIGTERM) if asks else None
    return 75 if train(run, Path(out), resume=resume, data_root=Path(root), near=Path(root), watch=watch).stopped else 0


def with_features(root: str, out: str, folder: str) -> int:
    """Trains the toy run on a frozen backbone, whose features lie in `folder` ('': without)."""
    run = toy_run(freeze=("backbone",), validate_every=0, features=Features(folder) if folder else None)
    return 75 if train(run, Path(out), data_root=Path(root), near=Path(root)).stopped else 0


def command(words: list[str], said: str) -> int:
    """The `vla` command, as one rank of a launcher's job; what all ranks say goes to the file `said`."""
    with open(said, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        return main(words)


def gradients(root: str, out: str, stages: list[int | str]) -> None:
    """Losses, gradients, weights and averaged weights of three steps, with each ZeRO stage (0: plain; or a file's name), as files in `out`.

    Two halves of each batch: one per rank with two, one per micro-batch with a single process. In the second case the second half
    is video alone, so that its rank has no label at all.
    """
    ranks = Ranks.join()
    latent = Model(MODEL.backbone, LatentActions(codes=2, vocabulary=4, heads=2, readout_depth=1))
    for case, model in (("mixed", MODEL), ("unlabelled", latent)):
        for stage in stages:
            optim = AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, grad_clip=0.0)
            run = toy_run(model=model, microbatch=4, optim=optim, zero=_zero(stage))
            job = assemble(run, Path(root), Path(root))
            video = [place[1] == job.train.sources["c"] for place in job.train.look_up(range(200))]
            half = np.array([p for p in range(200) if not video[p]]), np.array([p for p in range(200) if video[p]])
            engine = make_engine(run, job.model, ranks)
            losses = []
            for step in range(3):
                every = np.arange(8 * step, 8 * step + 8).reshape(2, 4)
                halves = every if case == "mixed" else [part[4 * step : 4 * step + 4] for part in half]
                batches = [job.batch(job.train.samples(positions)) for positions in halves]
                noises = [Noise(batch.position_B, 0) for batch in batches]
                rows = [job.model.weights(batch, noise) for batch, noise in zip(batches, noises, strict=True)]
                weights = {name: sum(row[name] for row in rows) for name in rows[0]}
                mine = [(batches[ranks.rank], noises[ranks.rank])] if ranks.world > 1 else list(zip(batches, noises, strict=True))
                for number, (batch, noise) in enumerate(mine):
                    engine.forward_backward(batch, noise, weights, last=number == len(mine) - 1)
                update = engine.step(1e-3)
                losses.append([update.loss, update.grad_norm])
                if step == 0:
                    moments = {name: tensor.clone() for name, tensor in engine.state().items()}
            last = engine.state()
            averaged = engine.acting(last)
            if ranks.first:
                found = {name: tensor * 10 for name, tensor in moments.items() if name.startswith("exp_avg/")}  # 1 / (1 - 0.9)
                found |= {name: tensor for name, tensor in last.items() if name.startswith("weight/")}
                found |= {f"averaged/{name}": tensor for name, tensor in averaged.items()}
                save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{out}/{case}-{stage}-{ranks.world}.safetensors")
                Path(f"{out}/{case}-{stage}-{ranks.world}.json").write_text(json.dumps(losses))


def _zero(stage: int | str) -> Zero | None:
    return Zero.of(str(stage) if isinstance(stage, int) else f"pretrain/{stage}.json")


def not_finite(root: str, out: str) -> None:
    """With every engine, one rank's labels are infinite in the second step: what the weights are before, after it and after a third."""
    ranks = Ranks.join()
    for stage in (0, 1, 2, 3):
        run = toy_run(zero=Zero(stage) if stage else None)
        job = assemble(run, Path(root), Path(root))
        engine = make_engine(run, job.model, ranks)
        states, applied = [], []
        for step in range(3):
            batch = job.batch(job.train.samples(range(8 * step + 4 * ranks.rank, 8 * step + 4 * ranks.rank + 4)))
            noise = Noise(batch.position_B, 0)
            weights = {name: ranks.sum(value.clone()) for name, value in job.model.weights(batch, noise).items()}
            if step == 1 and ranks.rank == ranks.world - 1:
                state_BFP = torch.full_like(batch.state_BFP, torch.inf)
                batch = replace(batch, state_BFP=state_BFP)
            engine.forward_backward(batch, noise, weights, last=True)
            applied.append(engine.step(1e-3).applied)
            states.append({name: tensor.clone() for name, tensor in engine.state().items()})
        if ranks.first:
            frozen = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
            moved = any(not torch.equal(states[1][name], states[2][name]) for name in states[0])
            Path(f"{out}/{stage}.json").write_text(json.dumps({"applied": applied, "frozen": frozen, "moved": moved}))


class _Killer(Watch):
    def __init__(self, at: int, number: int = signal.SIGKILL) -> None:
        self.at, self.number = at, number

    def step(self, done: int, steps: int) -> None:
        if done == self.at:
            os.kill(os.getpid(), self.number)


def sleeps(root: str, out: str, seconds: float) -> None:
    """Four steps of the toy run, in which the last rank sleeps a while after each; what is said goes to `said.txt` beside `out`."""
    slow = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    with open(Path(out).with_name("said.txt"), "a") as file:
        os.dup2(file.fileno(), 1)
        with _Sleeper(seconds * slow) as watch:
            train(toy_run(steps=4, log_every=4), Path(out), data_root=Path(root), near=Path(root), watch=watch)


class _Sleeper(Bar):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def step(self, done: int, steps: int) -> None:
        time.sleep(self.seconds)


def unreadable_on_one(root: str, out: str) -> int:
    """The toy run, whose last rank finds its copy of the data empty after step 2; what each rank ends with goes to `said-RANK.txt`."""
    rank, last = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1
    own = Path(out).with_name(f"data-{rank}")
    shutil.copytree(root, own)
    try:
        train(toy_run(steps=40), Path(out), data_root=own, near=own, watch=_Emptier(own, 2 if rank == last else 0))
    except UserError as error:
        Path(out).with_name(f"said-{rank}.txt").write_text(str(error))
        return error.exit_code
    return 0


class _Emptier(Watch):
    def __init__(self, data: Path, at: int) -> None:
        self.data, self.at = data, at

    def step(self, done: int, steps: int) -> None:
        if done == self.at:
            for shard in self.data.rglob("*.tar"):
                os.truncate(shard, 0)
            for columns in self.data.rglob("*.columns"):
                os.truncate(columns, 0)
