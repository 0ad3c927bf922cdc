"""What processes of `processes` do when something happens to them. Run by the scenario `elsewhere`."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import vla.checkpoint
import vla.tensor_file
from tests.train.toy import toy_run
from vla.errors import UserError
from vla.noise import Noise
from vla.train import checkpoint
from vla.train.engine import Limits, LocalEngine, make_engine
from vla.train.job import assemble
from vla.train.log import Watch
from vla.train.loop import train
from vla.train.optim import Zero
from vla.train.ranks import Ranks
from vla.train.stop import EXIT_STOPPED


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def last_rank() -> bool:
    return int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1


@dataclass
class At(Watch):
    """Does something after a step."""

    step_: int
    act: Callable[[], object]

    def step(self, done: int, steps: int) -> None:
        if done == self.step_:
            self.act()


def trains(root: str, out: str, zero: int = 0, die: tuple[str, int] = ("", 0), resume: bool = False, ledger: str = "", **changes) -> int:
    """The toy run with a ledger; dies at the n-th `step`, `microbatch` or `validation` pass, or is asked to stop after the n-th step.

    `("soon", n)`: dies at a random moment after a random step, both by the seed n.
    """
    run, data = toy_run(zero=Zero(zero) if zero else None, **changes), Path(root)
    where, count = die if last_rank() else ("", 0)
    watch = None
    if where in ("step", "stop"):
        watch = At(count, dies if where == "step" else lambda: os.kill(os.getpid(), signal.SIGTERM))
    elif where == "soon":
        rng = random.Random(count)
        delay_s = rng.uniform(0, 0.03)
        watch = At(rng.randrange(1, run.steps - 8), lambda: threading.Timer(delay_s, dies).start())
    elif where == "microbatch":
        _dies_in(LocalEngine, "forward_backward", count)
    elif where == "validation":
        _dies_in(LocalEngine, "averaged", count)
    job = assemble(run, data, data)
    if ledger:
        first = checkpoint.newest(Path(out), lambda line: None) if resume else None
        file = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if os.environ["RANK"] == "0":  # before the ranks meet, and so before any of them takes a sample
            os.write(file, f"from {int(first.name) if first else 0}\n".encode())
        job.train.ledger = lambda *row: os.write(file, (" ".join(map(str, row)) + "\n").encode())
    result = train(run, Path(out), resume=resume, data_root=data, near=data, watch=watch, job=job)
    return EXIT_STOPPED if result.stopped else 0


def _dies_in(engine: type, name: str, count: int) -> None:
    real, calls = getattr(engine, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            dies()
        return real(*args, **kwargs)

    setattr(engine, name, counted)


def dies_at_an_operation(root: str, out: str, at: int, **changes) -> int:
    """Goes on with the toy run and dies before the `at`-th operation on files of its checkpoints; exit code 0 once there are fewer."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count == at:
            dies()

    def audited(event: str, args: tuple) -> None:
        if event in OPERATIONS and "checkpoints" in str(args[0]):
            counted()

    flush, flush_open, write = vla.checkpoint._flush, vla.tensor_file._flush, vla.tensor_file._write
    vla.checkpoint._flush = lambda path: (counted(), flush(path))[1]
    vla.tensor_file._flush = lambda handle: (counted(), flush_open(handle))[1]
    vla.tensor_file._write = lambda handle, data: (counted(), write(handle, data))[1]
    sys.addaudithook(audited)
    train(toy_run(**changes), Path(out), resume=True, data_root=Path(root), near=Path(root))
    return 0


OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.symlink", "shutil.rmtree", "os.chmod", "os.truncate")


def interrupted(root: str, out: str, notes: str) -> int:
    """A save that takes a minute, and in the next step, which does too, SIGINT twice. What it lived to see goes to `notes`."""

    def note(line: str) -> None:
        with open(notes, "a") as file:
            file.write(f"{line}\n")

    def slow(path: Path) -> None:
        time.sleep(60)
        note("saved")

    def twice() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        note("interrupted twice")
        os.kill(os.getpid(), signal.SIGINT)

    def step() -> None:
        threading.Thread(target=twice, daemon=True).start()
        time.sleep(60)
        note("stepped")

    vla.checkpoint._flush = slow
    try:
        train(toy_run(steps=9, save_every=2), Path(out), data_root=Path(root), near=Path(root), watch=At(3, step))
    except KeyboardInterrupt:
        return 130
    return 0


def slow_save(root: str, out: str, **changes) -> int:
    """Asked to stop while a save is being written, by a disk that takes its time."""
    flush = vla.checkpoint._flush
    vla.checkpoint._flush = lambda path: (time.sleep(0.2), flush(path))[1]
    watch = At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return 75 if train(toy_run(**changes), Path(out), data_root=Path(root), near=Path(root), watch=watch).stopped else 0


def fails(root: str, out: str, how: str, who: int, timeout_s: float = 60.0, zero: int = 0) -> int:
    """The toy run, in which rank `who` hangs, crashes, is killed or raises after step 2. As the `vla` command would, each rank says
    its error in one line; all that it prints is in `said-RANK.txt` beside `out`."""
    rank = int(os.environ["RANK"])
    with open(Path(out).with_name(f"said-{rank}.txt"), "w") as file:
        os.dup2(file.fileno(), 2)

    def act() -> None:
        {"hangs": lambda: time.sleep(600), "crashes": lambda: ctypes.string_at(0), "killed": dies, "raises": _raise}[how]()

    run = toy_run(steps=40, timeout_s=timeout_s, zero=Zero(zero) if zero else None)
    try:
        train(run, Path(out), data_root=Path(root), near=Path(root), watch=At(2, act) if rank == who else None)
    except UserError as error:
        os.write(2, f"error: {error}\n".encode())
        return error.exit_code
    return 0


def _raise() -> None:
    raise ValueError("a bug of this rank")


def with_skewed_clocks(root: str, out: str) -> int:
    """The toy run, on ranks whose clocks are a day apart, and run backwards on the second."""
    now, rank = time.time, int(os.environ["RANK"])
    began = now()
    time.time = lambda: began + 86_400 * rank + (1 - 2 * rank) * (now() - began)
    train(toy_run(save_every=3), Path(out), data_root=Path(root), near=Path(root))
    return 0


def same_after_loading(root: str, out: str, zero: int, **changes) -> int:
    """Loads the newest state and gathers it again: exit code 0 where every tensor has the same bits, on whatever number of ranks."""
    ranks = Ranks.join()
    run = toy_run(zero=Zero(zero) if zero else None, **changes)
    engine = make_engine(run, assemble(run, Path(root), Path(root)).model, ranks)
    folder = checkpoint.steps_saved(Path(out))[-1]
    state, progress = checkpoint.load_state(folder)
    engine.load_state(state, progress.updates)
    again = engine.state()
    if not ranks.first:
        return 0
    return 0 if set(again) == set(state) and all(torch.equal(again[name], state[name]) for name in state) else 1


def odd_steps(root: str, out: str, stages: list[int]) -> int:
    """With every engine, after a good step: one whose gradient alone is infinite, and one that is a spike, both on the last rank alone.

    Exit code 0 where each was skipped with its reason, moved no bit on any rank, and a good step afterwards moves.
    """
    ranks = Ranks.join()
    for stage in stages:
        run = toy_run(zero=Zero(stage) if stage else None)
        job = assemble(run, Path(root), Path(root))
        engine = make_engine(run, job.model, ranks)
        factor = 1.0
        hooked = next(p for name, p in job.model.named_parameters() if name.startswith("decoder") and p.requires_grad)
        hooked.register_hook(lambda gradient: gradient * factor)  # noqa: B023  # that of now
        seen, states = [], []
        for step, kind in enumerate(("good", "gradient", "spike", "good")):
            batch = job.batch(job.train.samples(range(8 * step + 4 * ranks.rank, 8 * step + 4 * ranks.rank + 4)))
            noise = Noise(batch.position_B, 0)
            weights = {name: ranks.sum(value.clone()) for name, value in job.model.weights(batch, noise).items()}
            odd = ranks.rank == ranks.world - 1
            factor = float("inf") if odd and kind == "gradient" else 1.0
            if odd and kind == "spike":
                batch = replace(batch, target=replace(batch.target, action_BTA=batch.target.action_BTA * 1e4))
            engine.forward_backward(batch, noise, weights, last=True)
            update = engine.step(1e-3, Limits(loss=100.0, grad_norm=1e4))
            seen.append(update.skipped)
            states.append({name: tensor.clone() for name, tensor in engine.state().items()})
        assert seen == ["", "not finite", "a spike", ""], (stage, seen)
        if ranks.first:
            for before, after in ((0, 1), (1, 2)):
                assert all(torch.equal(states[before][name], states[after][name]) for name in states[0]), (stage, before)
            assert any(not torch.equal(states[2][name], states[3][name]) for name in states[0])
    return 0
