"""What the training loop costs beside the same training written by hand, what saves cost it, and how fast a large state is saved.

    python -m benchmarks.train_loop --json

`overhead`: of a step of `vla.train.loop.train` (loader process, agreement of ranks, books, log, spike limits, clock) over a bare loop
that does forward, backward, clipping, AdamW and EMA on batches that lie ready; the batch is chosen for steps of about 100 ms.
Interleaved rounds, the median of their ratios. `async_save_overhead`: the mean step with a save every 20 steps, snapshot, hashing and all,
over the mean of those among the same steps that no save touches (half a period after it, when it has long ended), so that a slow second
of the machine is in both; over all periods of all rounds. `async_save_overhead_between_runs` compares with runs without saves instead,
which a busy neighbour moves by a tenth either way. `save_gb_per_s`: `checkpoint.save` of a state of 1 GB, hashed and flushed;
`disk_gb_per_s`: as many bytes from memory into one file of the same folder and flushed, as `dd conv=fsync` does; medians, interleaved.

Wants an idle machine with two cores: one for the model, one for the loader and the thread that saves.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from benchmarks.command import parser_of, show, usable
from vla.backbones.tiny import Tiny
from vla.data.mixture import Mixture
from vla.data.shard import DatasetInfo, ShardWriter
from vla.decoders.base import total_loss
from vla.decoders.parallel import Parallel
from vla.embodiment import Embodiment, Field, Space
from vla.model import Model
from vla.noise import Noise
from vla.train import checkpoint
from vla.train.checkpoint import Progress
from vla.train.engine import ema_decay, make_engine
from vla.train.job import Job, assemble
from vla.train.log import Watch
from vla.train.loop import train
from vla.train.ranks import Ranks
from vla.train.run import Run
from vla.types import Episode, Frames, Span

SPACE = Space((Field("position", 7, "rad"),))
ROBOT = Embodiment("bench", ("front",), SPACE, SPACE, SPACE, Fraction(10), 16, ((-9.0, 9.0),) * 7)
MODEL = Model(Tiny(width=256, depth=6, heads=4), Parallel())
EVERY = 20
"""Steps between saves."""
SKIP = 5
"""First steps of a run that count for nothing."""


def write_shards(root: Path, episodes: int = 24, steps: int = 20, side: int = 64) -> Mixture:
    """A dataset of noise for the bench robot, as the loader reads it."""
    rng = np.random.default_rng(0)
    with ShardWriter(root / "bench", DatasetInfo(name="bench", embodiment=ROBOT.to_json(), supervision="actions")) as writer:
        for number in range(episodes):
            images = [simplejpeg.encode_jpeg(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(steps)]
            frames = {"front": Frames(np.arange(steps), tuple(images))}
            numbers = rng.normal(size=(2, steps, 7))
            span = (Span("do it", 0, steps),)
            writer.add(Episode(f"e{number}", "bench", Fraction(10), "actions", span, np.arange(steps) / 10, frames, numbers[0], numbers[1]))
    return Mixture.of([root / "bench"], val_fraction=0.1)


class Times(Watch):
    """When each step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def step(self, done: int, steps: int) -> None:
        self.at.append(time.perf_counter())

    @property
    def mean_s(self) -> float:
        """Seconds of a step, of all but the first few."""
        return (self.at[-1] - self.at[SKIP]) / (len(self.at) - 1 - SKIP)

    def around_saves(self) -> list[tuple[float, float]]:
        """For each save with a whole period after it: seconds of the period's steps, and of as many as untouched as those of its second
        half. A period begins two steps before its save, so that whatever holds the training up is in it."""
        rows = []
        for begin in range(EVERY - 2, len(self.at) - EVERY, EVERY):
            whole, half = self.at[begin + EVERY] - self.at[begin], self.at[begin + EVERY] - self.at[begin + EVERY // 2 + 2]
            rows.append((whole, half * EVERY / (EVERY // 2 - 2)))
        return rows


def by_hand(run: Run, job: Job, steps: int) -> float:
    """Seconds of a step."""
    engine = make_engine(run, job.model, Ranks(0, 1, torch.device("cpu")))
    trained, optimizer, shadow = engine.trained, engine.optimizer, engine.shadow
    batches = [job.batch(job.train.samples(range(run.batch_size * n, run.batch_size * (n + 1)))) for n in range(4)]
    ready = [(batch, noise, job.model.weights(batch, noise)) for batch in batches for noise in [Noise(batch.position_B, 0)]]
    began = 0.0
    for step, (batch, noise, weights) in zip(range(steps + SKIP), cycle(ready), strict=False):
        if step == SKIP:
            began = time.perf_counter()
        total_loss(job.model(batch, noise), weights).backward()
        torch.nn.utils.clip_grad_norm_(trained, run.optim.grad_clip)
        optimizer.step()
        torch._foreach_lerp_(shadow, trained, 1 - ema_decay(run, step))
        optimizer.zero_grad()
    return (time.perf_counter() - began) / steps


def steps_of(mixture: Mixture, folder: Path, step_s: float, steps: int, rounds: int) -> dict[str, Any]:
    """The loop's and the saves' share of a step, with what they are computed from."""

    def run_of(batch_size: int, **changes: Any) -> Run:
        return Run("bench", mixture, (ROBOT,), steps, batch_size, MODEL, threads=1, workers=1, probe=False, val_batches=1, **changes)

    size = 8
    for _ in range(3):  # the rate per sample falls a little with the batch
        size = max(1, round(size * step_s / by_hand(run_of(size), assemble(run_of(size)), 4)))
    run, saving = run_of(size), run_of(size, save_every=EVERY)
    rows, periods = [], []
    for number in range(rounds):
        bare_s = by_hand(run, assemble(run), steps)
        plain, saved = Times(), Times()
        train(run, folder / f"plain{number}", watch=plain)
        train(saving, folder / f"saved{number}", watch=saved)
        rows.append((bare_s, plain.mean_s, saved.mean_s))
        periods += saved.around_saves()
    log = [json.loads(line) for line in (folder / "saved0" / "log.jsonl").read_text().splitlines()]
    saves = [row for row in log if row["kind"] == "save"]
    return {
        "overhead": statistics.median(1 - bare / plain for bare, plain, _ in rows),
        "async_save_overhead": sum(whole for whole, _ in periods) / sum(clean for _, clean in periods) - 1,
        "async_save_overhead_between_runs": statistics.median(saved / plain - 1 for _, plain, saved in rows),
        "batch_size": size,
        "steps": steps,
        "rounds_ms": [[1e3 * each for each in row] for row in rows],
        "periods_s": periods,
        "saves": len(saves),
        "save_s": statistics.median(row["seconds"] for row in saves),
        "save_s_max": max(row["seconds"] for row in saves),
        "save_held_up_s": statistics.median(row["held_up_s"] for row in saves),
        "save_mb": sum(path.stat().st_size for path in (folder / "saved0" / "checkpoints" / "last").rglob("*")) / 1e6,
    }


def large_save(mixture: Mixture, folder: Path, size: float, rounds: int) -> dict[str, Any]:
    """Of a model's weights, two moments, average and acting weights, a fifth of `size` bytes each."""
    run = Run("bench", mixture, (ROBOT,), 1, 1, MODEL)
    contents = assemble(run).checkpoint(1)
    part = {f"layer{n}": torch.randn(int(size) // 5 // 4 // 50) for n in range(50)}
    state = {f"{kind}/{name}": tensor.clone() for kind in ("weight", "exp_avg", "exp_avg_sq", "ema") for name, tensor in part.items()}
    data = memoryview(torch.cat([*part.values(), *state.values()]).view(torch.uint8).numpy())
    saves, writes = [], []
    for number in range(rounds):
        began = time.perf_counter()
        checkpoint.save(folder / "large", contents, part, state, Progress(number + 1, 1, 1, 0), keep_last=1)
        saves.append(len(data) / 1e9 / (time.perf_counter() - began))
        writes.append(len(data) / 1e9 / plain_write(folder / "large" / "dd", data))
    return {"save_gb_per_s": statistics.median(saves), "disk_gb_per_s": statistics.median(writes), "saves_gb": saves, "writes_gb": writes}


def plain_write(path: Path, data: memoryview) -> float:
    """Seconds until it is on the disk."""
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for piece in pieces(data):
            file.write(piece)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def pieces(data: memoryview, size: int = 1 << 20) -> Iterator[memoryview]:
    """Views of so many bytes, one after another."""
    return (data[at : at + size] for at in range(0, len(data), size))


def main() -> int:
    """Prints a line for each figure, or one JSON object."""
    parser = parser_of(__doc__)
    parser.add_argument("--step-ms", type=float, default=100.0, help="length of a step that the batch is chosen for")
    parser.add_argument("--steps", type=int, default=105, help="of each run; saves are at each 20th")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the large state")
    parser.add_argument("--folder", type=Path, help="where runs and saves are written (default: a temporary folder)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        mixture = write_shards(folder)
        found = large_save(mixture, folder, args.gb * 1e9, args.rounds)
        found = {**steps_of(mixture, folder, args.step_ms / 1e3, args.steps, args.rounds), **found}
    found = {**usable(), **found}
    show(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
