"""Real shards of two robots of different widths and of video without actions, and a tiny model, for the tests of training."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import simplejpeg

from vla.backbones.tiny import Tiny
from vla.data.mixture import Mixture
from vla.data.shard import DatasetInfo, ShardWriter
from vla.decoders.parallel import Parallel
from vla.embodiment import Embodiment, Field, Space
from vla.model import Model
from vla.train.optim import AdamW, Cosine
from vla.train.run import Run
from vla.types import Episode, Frames, Span


def robot(name: str, width: int, horizon: int) -> Embodiment:
    space = Space((Field("position", width, "m"),))
    return Embodiment(name, ("front",), space, space, space, Fraction(10), horizon, ((-9.0, 9.0),) * width)


NARROW, WIDE = robot("narrow", 2, 3), robot("wide", 5, 4)
MODEL = Model(Tiny(width=32, depth=1, heads=2, image_size=16, channels=4, keypoints=4, words=64, max_words=4), Parallel())
MIXTURE = """
name: toy
why: two robots and video, for tests
val_fraction: 0.2
sources:
  - {path: a, weight: 1, why: narrow}
  - {path: b, weight: 1, why: wide}
  - {path: c, weight: 1, why: video of the wide robot}
"""


def write_shards(root: Path) -> Path:
    """Datasets a, b, c and toy.yaml under `root`."""
    for name, one, supervision in (("a", NARROW, "actions"), ("b", WIDE, "actions"), ("c", WIDE, "none")):
        info = DatasetInfo(name=name, embodiment=one.to_json(), supervision=supervision)
        with ShardWriter(root / name, info) as writer:
            for number in range(12):
                writer.add(episode(f"{name}{number}", one, supervision, number))
    (root / "toy.yaml").write_text(MIXTURE)
    return root


def mixture(root: Path) -> Mixture:
    return Mixture.load(root / "toy.yaml", root)


def toy_run(**changes) -> Run:
    settings = {"name": "toy", "mixture": "toy.yaml", "embodiments": (NARROW, WIDE), "steps": 6, "batch_size": 8, "model": MODEL}
    settings |= {"optim": AdamW(lr=3e-3), "schedule": Cosine(warmup_steps=2), "ema_decay": 0.9, "log_every": 1, "val_batches": 1}
    return Run(**{**settings, **changes})


def episode(name: str, one: Embodiment, supervision: str, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    steps = 10
    images = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(steps)]
    target = np.array([[np.tanh(image.mean() / 64 - 2 + column) for column in range(one.action.size)] for image in images])
    labelled = supervision == "actions"
    return Episode(
        id=name,
        embodiment=one.name,
        rate_hz=one.rate_hz,
        supervision=supervision,
        instructions=(Span("push it" if labelled else "watch", 0, steps),),
        time_s=np.arange(steps) / 10,
        frames={"front": Frames(np.arange(steps), tuple(simplejpeg.encode_jpeg(image) for image in images))},
        state=rng.normal(size=(steps, one.state.size)) if labelled else None,
        action=target if labelled else None,
    )
