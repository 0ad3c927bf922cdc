"""Video of a bright dot that a known action moves over a still, noisy scene; as real shards."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import simplejpeg

from vla.codecs.quantizer import ResidualVQ
from vla.data.shard import DatasetInfo, ShardWriter
from vla.embodiment import Embodiment, Field, Space
from vla.latent_action.decoder import ForwardConv
from vla.latent_action.encoder import StateDifference
from vla.latent_action.features import TinyConv
from vla.latent_action.model import LatentActionConfig
from vla.types import Episode, Frames, Span

SIDE, RATE_HZ, STEPS = 32, Fraction(10), 16
ROBOT = Embodiment(
    name="dot",
    cameras=("front",),
    state=Space((Field("place", 2, "m"),)),
    command=Space((Field("move", 2, "m", "step"),)),
    action=Space((Field("move", 2, "m", "step"),)),
    rate_hz=RATE_HZ,
    horizon=4,
    limits=((-1.0, 1.0),) * 2,
)
CONFIG = LatentActionConfig(
    camera="front",
    gap_s=(0.2, 0.2),
    features=TinyConv(size=SIDE, channels=8),
    encoder=StateDifference(width=16),
    quantizer=ResidualVQ(codes=2, vocabulary=8, latent=4),
    decoder=ForwardConv(width=16),
)


def write_dots(folder: Path, episodes: int = 30, labelled: bool = True, still: bool = False, every: int = 1, steps: int = STEPS) -> Path:
    """`still`: the dot never moves. `every`: steps from frame to frame. One unit of `place` is half the picture."""
    info = DatasetInfo(name=folder.name, embodiment=ROBOT.to_json(), supervision="actions" if labelled else "none")
    with ShardWriter(folder, info) as writer:
        for number in range(episodes):
            writer.add(_episode(f"{folder.name}{number}", np.random.default_rng([number, still]), labelled, still, every, steps))
    return folder


def _episode(name: str, rng: np.random.Generator, labelled: bool, still: bool, every: int, steps: int) -> Episode:
    scene = rng.integers(60, 100, (SIDE, SIDE, 3))
    place, places, moves = rng.uniform(-0.5, 0.5, 2), [], []
    for _ in range(steps):
        move = np.zeros(2) if still else rng.uniform(-0.25, 0.25, 2)
        move = np.clip(place + move, -0.7, 0.7) - place
        places.append(place), moves.append(move)
        place = place + move
    seen = np.arange(0, steps, every)
    jpegs = tuple(simplejpeg.encode_jpeg(_picture(scene, places[step]), quality=95, colorsubsampling="444") for step in seen)
    return Episode(
        id=name,
        embodiment=ROBOT.name,
        rate_hz=RATE_HZ,
        supervision="actions" if labelled else "none",
        instructions=(Span("move the dot", 0, steps),),
        time_s=np.arange(steps) / float(RATE_HZ),
        frames={"front": Frames(seen, jpegs)},
        state=np.array(places) if labelled else None,
        action=np.array(moves) if labelled else None,
    )


def _picture(scene: np.ndarray, place: np.ndarray) -> np.ndarray:
    centre = (place + 1) * SIDE / 2
    rows, columns = np.mgrid[:SIDE, :SIDE]
    glow = np.exp(-(((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2) / (2 * 2.0**2)))[..., None]
    return (scene * (1 - glow) + np.array([250, 60, 30]) * glow).astype(np.uint8)
