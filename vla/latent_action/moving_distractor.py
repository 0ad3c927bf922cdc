"""A test set with a known answer: a small robot that obeys its instruction, before a background in which something else moves.

A hand (small, red) is moved by a true action, about what the instruction of the moment says ("go left"); a larger, brighter thing
wanders at random and changes more pixels than the hand does. A latent-action model that is told nothing spends its codes on the
wanderer; what the two stages of UniVLA are for is to leave it out.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import simplejpeg

from vla.data.shard import DatasetInfo, ShardWriter
from vla.embodiment import Embodiment, Field, Space
from vla.types import Episode, Frames, Span

SIDE, RATE_HZ, STEPS, SPAN = 32, Fraction(10), 24, 4
"""Pixels, frames per second, steps of an episode, and steps for which one instruction holds."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ROBOT = Embodiment(
    name="toy_hand",
    cameras=("third_person",),
    state=Space((Field("place", 2, "m"),)),
    command=Space((Field("move", 2, "m", "step"),)),
    action=Space((Field("move", 2, "m", "step"),)),
    rate_hz=RATE_HZ,
    horizon=4,
    limits=((-1.0, 1.0),) * 2,
)


def write_moving_distractor(folder: Path, episodes: int, seed: int, labelled: bool = False, distractor: bool = True) -> Path:
    """A dataset of `episodes`, a function of `seed` and the episode's number. Half the picture is one metre. `labelled`: with states and
    true actions; the frames are the same either way."""
    info = DatasetInfo(name=folder.name, embodiment=ROBOT.to_json(), supervision="actions" if labelled else "none")
    with ShardWriter(folder, info) as writer:
        for number in range(episodes):
            writer.add(_episode(f"{folder.name}{number}", np.random.default_rng([seed, number]), labelled, distractor))
    return folder


def _episode(name: str, rng: np.random.Generator, labelled: bool, distractor: bool) -> Episode:
    scene = rng.integers(60, 100, (SIDE, SIDE, 3))
    place, other = rng.uniform(-0.6, 0.6, 2), rng.uniform(-0.6, 0.6, 2)
    places, moves, pictures, spans = [], [], [], []
    for step in range(STEPS):
        if step % SPAN == 0:
            word = str(rng.choice([word for word, way in DIRECTIONS.items() if np.abs(place + 0.8 * np.array(way)).max() < 0.9]))
            spans.append(Span(f"go {word}", step, min(step + SPAN, STEPS)))
        move = np.array(DIRECTIONS[word]) * rng.uniform(0.12, 0.28) + rng.normal(0, 0.03, 2)
        move = np.clip(place + move, -0.9, 0.9) - place
        places.append(place), moves.append(move)
        pictures.append(_picture(scene, place, other if distractor else None))
        place = place + move
        other = np.clip(other + rng.uniform(-0.3, 0.3, 2), -0.8, 0.8)
    return Episode(
        id=name,
        embodiment=ROBOT.name,
        rate_hz=RATE_HZ,
        supervision="actions" if labelled else "none",
        instructions=tuple(spans),
        time_s=np.arange(STEPS) / float(RATE_HZ),
        frames={"third_person": Frames(np.arange(STEPS), tuple(pictures))},
        state=np.array(places) if labelled else None,
        action=np.array(moves) if labelled else None,
    )


def _picture(scene: np.ndarray, place: np.ndarray, other: np.ndarray | None) -> bytes:
    image = scene.astype(np.float64)
    things = [(place, 2.5, (250, 60, 30))] if other is None else [(other, 3.6, (60, 220, 250)), (place, 2.5, (250, 60, 30))]
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for centre, radius, colour in things:
        x, y = (centre + 1) * SIDE / 2
        glow = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))[..., None]
        image = image * (1 - glow) + np.array(colour) * glow
    return simplejpeg.encode_jpeg(image.astype(np.uint8), quality=95, colorsubsampling="444")
