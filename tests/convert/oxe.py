"""Miniatures of the Open X-Embodiment datasets: their true feature structure (`oxe_features.yaml`), a few random steps.

Numbers are random, except where a card says that they are a rotation or a gripper: there stand what such numbers can be, and
`planted` keeps the rotations, so that a test can look for them in the shards.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from scipy.spatial.transform import Rotation

from vla.convert.card import Card
from vla.convert.raw import Encoded, Feature, RawEpisode, Reader, Size
from vla.convert.vocabulary import FieldMap

STEPS = 5
EPISODES = 2
INSTRUCTION = "put the carrot into the pot"
FLAGS = ("is_first", "is_last", "is_terminal")
FEATURES = yaml.safe_load((Path(__file__).parent / "oxe_features.yaml").read_text(encoding="utf-8"))


def features(name: str) -> dict[str, str]:
    """Features of a step, groups filled in: {name: spec}."""
    own = dict(FEATURES["datasets"][name])
    groups = [FEATURES["groups"][group] for group in own.pop("with", [])]
    own.pop("episode", None)
    return {key: spec for part in (*groups, own) for key, spec in part.items()}


def facts(name: str) -> dict[str, str]:
    return dict(FEATURES["datasets"][name].get("episode", {}))


def kind_of(spec: str) -> tuple[str, str, tuple[int, ...]]:
    """`float32 4x4` -> (column, float32, (4, 4)); `image 8x8x3` -> (pictures, uint8, (8, 8, 3)); `text`."""
    dtype, _, shape = spec.partition(" ")
    size = tuple(int(number) for number in shape.split("x")) if shape else ()
    if dtype in ("image", "depth"):
        return "pictures", "uint8" if dtype == "image" else "uint16", size
    return ("text", "string", ()) if dtype == "text" else ("column", dtype, size)


class Miniature(Reader):
    """Gives `EPISODES` episodes of a dataset as a reader of its format would."""

    def __init__(self, name: str) -> None:
        self.name, self.card = name, Card.find(name)

    def features(self) -> Sequence[Feature]:
        return [Feature(key, *kind_of(spec)) for key, spec in features(self.name).items()]

    def size(self) -> Size:
        return Size(bytes=0, episodes=EPISODES)

    def parts(self) -> Sequence[str]:
        return ["all"]

    def episodes(self, part: str) -> Iterator[RawEpisode]:
        for number in range(EPISODES):
            yield self.episode(number)[0]

    def episode(self, number: int) -> tuple[RawEpisode, dict[str, Rotation]]:
        """The episode, and the rotations that stand in it: {`state/rotation`: STEPS rotations}."""
        rng = np.random.default_rng([number, *self.name.encode()])
        columns, texts, pictures = {}, {}, {}
        for key, spec in features(self.name).items():
            kind, dtype, shape = kind_of(spec)
            if kind == "column":
                columns[key] = _numbers(key, dtype, (STEPS, *shape), rng)
            elif kind == "text":
                texts[key] = [INSTRUCTION] * STEPS
            else:
                pictures[key] = Encoded(np.arange(STEPS), [picture(shape, number)] * STEPS)
        planted = _plant(self.card, columns, rng)
        if self.card.instruction.codes:
            row = np.zeros(columns[self.card.instruction.column].shape[1], np.int32)
            row[: len(INSTRUCTION)] = [ord(letter) for letter in INSTRUCTION]
            columns[self.card.instruction.column] = np.tile(row, (STEPS, 1))
        known = {key: True if spec == "bool" else f"{key} {number}" for key, spec in facts(self.name).items()}
        return RawEpisode(f"train-{number}", STEPS, columns, texts, pictures, facts=known), planted


@cache
def picture(shape: tuple[int, ...], number: int) -> bytes:
    """A JPEG of that size, red at the top left, so that swapped colours and turned pictures show."""
    pixels = np.full((*shape[:2], 3), 60 + 10 * number, np.uint8)
    pixels[: shape[0] // 2, : shape[1] // 2] = (220, 30, 30)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _numbers(key: str, dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if key in FLAGS:
        return np.arange(shape[0]) == (0 if key == "is_first" else shape[0] - 1)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if np.issubdtype(np.dtype(dtype), np.integer):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.uniform(-0.5, 0.5, shape).astype(dtype)


def _plant(card: Card, columns: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, Rotation]:
    """Writes rotations and gripper values where the card says that they stand."""
    planted = {}
    for kind in ("state", "action"):
        for name, how in getattr(card, kind).items():
            if how.rotation:
                turns = Rotation.from_rotvec(rng.uniform(-0.8, 0.8, (STEPS, 3)))
                factor = how.scale[0] if how.scale else 1.0
                _write(columns, how, written(turns, how.rotation) / factor)
                planted[f"{kind}/{name}"] = turns
            elif how.gripper:
                _write(columns, how, rng.choice([how.gripper.open, how.gripper.closed], (STEPS, 1)))
    return planted


def written(turns: Rotation, convention: str) -> np.ndarray:
    """Rotations as a source writes them, (n, width): scipy's own words for each convention."""
    if convention.startswith("euler"):
        _, axes, about = convention.split("_")
        return turns.as_euler(axes if about == "extrinsic" else axes.upper())
    quat_xyzw = turns.as_quat()
    return {
        "quat_xyzw": quat_xyzw,
        "quat_wxyz": np.roll(quat_xyzw, 1, axis=1),
        "axis_angle": turns.as_rotvec(),
        "matrix": turns.as_matrix().reshape(-1, 9),
    }[convention]


def _write(columns: dict[str, np.ndarray], how: FieldMap, values: np.ndarray) -> None:
    (name,) = how.columns
    flat = columns[name].reshape(STEPS, -1).copy()
    where = list(how.index) if how.index else list(range(flat.shape[1]))[slice(*(how.slice or (None, None)))]
    flat[:, where] = values
    columns[name] = flat.reshape(columns[name].shape)
