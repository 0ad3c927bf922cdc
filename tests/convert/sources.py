"""A small source in memory, a robot, and its card: what the tests of mapping and engine convert."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import simplejpeg

from vla.convert.card import Card
from vla.convert.raw import Encoded, Feature, RawEpisode, Reader, Size, Unreadable
from vla.embodiment import Embodiment, Field, Space
from vla.errors import Damaged

COMMAND = Space((Field("hand", 3, "m", "step"), Field("gripper", 1, "open01")))
ROBOT = Embodiment("arm", ("front",), Space((Field("hand", 3, "m"),)), COMMAND, COMMAND, Fraction(10), 4, None)

CARD = {
    "name": "toy",
    "title": "Toy",
    "homepage": "https://example.org",
    "licence": "CC0-1.0",
    "citation": "none",
    "facts": ["made here"],
    "format": "toy",
    "source": {"name": "toy"},
    "embodiment": "arm",
    "rate_hz": 10,
    "supervision": "actions",
    "cameras": {"front": {"from": "image"}},
    "state": {"hand": {"from": "state"}},
    "action": {
        "hand": {"from": "action", "slice": [0, 3]},
        "gripper": {"from": "action", "index": 3, "gripper": {"open": 1, "closed": 0}},
    },
    "instruction": {"from": "task"},
}


def card(**changes) -> Card:
    return Card.from_json({**CARD, **changes}, robot=ROBOT)


def picture(step: int, episode: int = 0, size: int = 24) -> np.ndarray:
    image = np.zeros((size, size + 8, 3), np.uint8)
    image[...] = 9 * step % 256, 11 * episode % 256, 100
    image[:4, :4] = 250, 250, 250  # top left
    return image


def jpeg(image: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=95, colorsubsampling="444")


def episode(number: int = 0, steps: int = 6, **changes) -> RawEpisode:
    rng = np.random.default_rng([5, number])
    action = np.concatenate([rng.normal(size=(steps, 3)), rng.integers(0, 2, (steps, 1))], axis=1)
    columns = {"state": rng.normal(size=(steps, 3)), "action": action, "is_last": np.arange(steps) == steps - 1}
    pictures = {"image": Encoded(np.arange(steps), [jpeg(picture(i, number)) for i in range(steps)])}
    base = {
        "id": f"e{number:04d}",
        "steps": steps,
        "columns": columns,
        "texts": {"task": [f"do {number}"]},
        "pictures": pictures,
        "facts": {"success": number % 3 != 0},
    }
    return RawEpisode(**{**base, **changes})


class Toy(Reader):
    """`parts` parts of `per_part` episodes. Episodes in `bad` hold NaN, those in `broken` cannot be read, and `cut` parts end early.
    At episode `kill` the reading process kills itself, unless the file `spare` exists."""

    def __init__(
        self, parts: int = 3, per_part: int = 4, bad=(), broken=(), cut=(), steps: int = 6, kill: int = -1, spare: str = ""
    ) -> None:
        self.count, self.per_part, self.bad, self.broken, self.cut = parts, per_part, set(bad), set(broken), set(cut)
        self.steps, self.kill, self.spare = steps, kill, spare

    def features(self) -> Sequence[Feature]:
        return [
            Feature("state", "column", "float64", (3,)),
            Feature("action", "column", "float64", (4,)),
            Feature("is_last", "column", "bool", ()),
            Feature("task", "text"),
            Feature("image", "pictures", "uint8", (24, 32, 3)),
        ]

    def size(self) -> Size:
        return Size(1000, self.count * self.per_part)

    def parts(self) -> Sequence[str]:
        return [f"part-{number}" for number in range(self.count)]

    def episodes(self, part: str) -> Iterator[RawEpisode | Unreadable]:
        first = int(part.split("-")[1]) * self.per_part
        for number in range(first, first + self.per_part):
            if number == self.kill and not Path(self.spare).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if number in self.broken:
                yield Unreadable(f"e{number:04d}", "its checksum fails")
                continue
            raw = episode(number, self.steps + number % 3)
            if number in self.bad:
                raw.columns["state"][1] = np.nan
            yield raw
            if number in self.cut:
                raise Damaged(f"{part} is cut off after episode {number}")
