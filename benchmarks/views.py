"""Batches of robots with different numbers of cameras: what it saves that views and tokens which a robot lacks are not run.

A batch has robots of one, one and three cameras in turn (WidowX, Google's robot, DROID's Franka). Both sides are forward and backward of
a training step in which all weights are trained. `filled_up` runs as many views and tokens of each sample as the widest has; `views`
leaves empty views out of the tower; `views_and_tokens`, which is what training does, also runs rows of much different lengths in passes
of their own. `images`, `tokens`: run, a sample, by side (of the prefix; `there` are the valid ones). `speedup`: over `filled_up`;
medians of interleaved rounds. `loss_difference`: the most between sides.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.command import parser_of, show, usable
from benchmarks.features import paligemma
from benchmarks.published import SIDE
from benchmarks.train_loop import ROBOT
from vla.backbones import library, tiny
from vla.backbones.base import by_length
from vla.backbones.images import Shown
from vla.backbones.tiny import Tiny
from vla.checkpoint import Contents
from vla.decoders.base import total_loss
from vla.decoders.parallel import Parallel
from vla.model import Model
from vla.noise import Noise
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.types import Batch, Observation, Sample

CAMERAS = (("third_person",), ("third_person",), ("third_person", "third_person_2", "wrist"))
SIDES = ("filled_up", "views", "views_and_tokens")
MODELS = {"paligemma": (paligemma(), SIDE), "tiny": (Tiny(), 64)}


@contextmanager
def every_view() -> Iterator[None]:
    """Inside, empty views run like others."""

    class All(Shown):
        @staticmethod
        def of(inputs: Any, few_sizes: bool = False) -> Shown:
            return Shown(inputs, None, tuple(inputs["image_BVFHW3"].shape[:2]))

    kept = library.Shown, tiny.Shown
    library.Shown = tiny.Shown = All
    try:
        yield
    finally:
        library.Shown, tiny.Shown = kept


def batch_of(contents: Contents, model: Any, size: int, side: int) -> Batch:
    """`size` samples of the robots in turn, pictures of `side` pixels."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(size):
        robot = contents.embodiments[number % len(contents.embodiments)]
        images = {role: rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8) for role in robot.cameras}
        seen = Observation(images, rng.uniform(-1, 1, (1, robot.state.size)), "do it", robot.name)
        action = rng.uniform(-1, 1, (robot.horizon, robot.action.size))
        samples.append(Sample(number, "bench", f"e{number}", 0, seen, action, np.ones(robot.horizon, bool)))
    return contents.collate(model).samples(samples, {"bench": 0})


def measure(backbone: Any, side: int, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of a training step, images and tokens a sample, by side; interleaved."""
    robots = tuple(replace(ROBOT, name=f"robot{number}", cameras=cameras) for number, cameras in enumerate(CAMERAS))
    plain = Normalizer.identity(ROBOT.action.size, "random numbers in -1..1")
    contents = Contents(Model(backbone, Parallel()), robots, {r.name: RobotNormalizer(StatsKey.of(r), plain, plain) for r in robots})
    torch.manual_seed(0)
    model = contents.build()
    batch = batch_of(contents, model, size, side)
    noise = Noise(batch.position_B, 0)

    def step(apart: bool) -> tuple[float, float]:
        model.apart = apart
        began = time.perf_counter()
        loss = total_loss(model(batch, noise))
        loss.backward()
        model.zero_grad()
        return time.perf_counter() - began, loss.item()

    rows = []
    for _ in range(rounds + 1):  # the first warms up
        with every_view():
            filled = step(False)
        rows.append((filled, step(False), step(True)))
    with torch.no_grad():
        prefix = model.prefix(batch)
    run = sum(len(rows) * length for rows, length in by_length(prefix.valid_BS))
    images = len(Shown.of(batch.inputs).inputs["image_BVFHW3"]) / size
    views = batch.inputs["image_BVFHW3"].shape[1]
    timed = [[seconds for seconds, _ in each] for each in rows[1:]]
    return {
        "speedup": {side: statistics.median(each[0] / each[place] for each in timed) for place, side in enumerate(SIDES)},
        "step_s": {side: statistics.median(each[place] for each in timed) for place, side in enumerate(SIDES)},
        "images": dict(zip(SIDES, (views, images, images), strict=True)),
        "tokens": {**dict(zip(SIDES, (len(prefix), len(prefix), run / size), strict=True)), "there": prefix.valid_BS.sum().item() / size},
        "loss_difference": max(abs(loss - each[0][1]) for each in rows for _, loss in each),
        "rounds_s": timed,
    }


def main() -> int:
    """Prints a line for each figure, or one JSON object."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {**usable(), "batch_size": args.batch_size}
    found |= {name: measure(*model, args.batch_size, args.rounds) for name, model in MODELS.items()}
    show(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
