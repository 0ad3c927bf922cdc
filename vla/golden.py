"""Golden actions: what a checkpoint did with observations that a seed gives, kept in it and compared when it is loaded elsewhere.

A manifest says that the bytes are the same. This says that they mean the same here: another version of a library, another device or a
changed line of code that moves an action is found before a robot is.

An observation is a function of the robot, its normaliser and a seed: random pixels, and a state within what the robot's data reached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.checkpoint import Contents
from vla.embodiment import ROTATION_UNITS, Embodiment, from_rotation
from vla.errors import Damaged, UserError
from vla.types import Chunk, Observation

GOLDEN = "golden.json"
FORMAT_VERSION = 1
SEEDS = (1, 2)
TOLERANCE = 1e-3
"""Of a normalised unit (half of what q01..q99 of the data span). Devices differ by 1e-5 in fp32; a wrong statistic by 1e-1."""
SIDE = 224
"""Pixels of an observation for a backbone that takes any size."""
WORDS = ("pick up the red block", "open the drawer")

Act = Callable[[Sequence[Observation], Sequence[int]], list[Chunk]]
"""`Policy.act_batch`: observations and the keys of their noise -> chunks."""


@dataclass(frozen=True)
class Row:
    """`action_TA`: float64, physical units, as sent to the robot."""

    embodiment: str
    seed: int
    action_TA: np.ndarray


def record(contents: Contents, act: Act) -> str:
    """The text of golden.json: two chunks of every robot that may be acted as."""
    from importlib import metadata

    rows = [Row(robot.name, seed, _act(contents, act, robot, seed)) for robot in _able(contents) for seed in SEEDS]
    facts: dict[str, Any] = {"format_version": FORMAT_VERSION, "tolerance": TOLERANCE, "side": image_side(contents)}
    facts["made_with"] = {name: metadata.version(name) for name in ("torch", "numpy")}
    facts["rows"] = [{"embodiment": row.embodiment, "seed": row.seed, "action_TA": row.action_TA.tolist()} for row in rows]
    return json.dumps(facts, indent=1)


def differences(folder: Path, contents: Contents, act: Act) -> list[str]:
    """What moved, a line for each robot and seed; empty where all is as it was. UserError where nothing is stored."""
    rows, tolerance, side = read(folder)
    robots = {robot.name: robot for robot in contents.embodiments}
    found = []
    for row in rows:
        if row.embodiment not in robots:
            found.append(f"{row.embodiment}: golden actions of a robot that config.json does not name")
            continue
        robot = robots[row.embodiment]
        now_TA = _act(contents, act, robot, row.seed, side)
        if now_TA.shape != row.action_TA.shape:
            found.append(f"{robot.name}: a chunk of shape {now_TA.shape}, {row.action_TA.shape} when it was saved")
            continue
        moved = float(np.max(np.abs(now_TA - row.action_TA) / np.array(contents.normalizers[robot.name].action.scale)))
        if not moved <= tolerance:
            found.append(f"{robot.name}, seed {row.seed}: actions moved by {moved:.2g} of their range (allowed: {tolerance:.0e})")
    return found


def check(folder: Path, contents: Contents, act: Act) -> None:
    """Raises Damaged unless the checkpoint still does what it did when it was saved."""
    found = differences(folder, contents, act)
    if found:
        raise Damaged(
            f"{folder} does not act as it did when it was saved: {'; '.join(found[:3])}. Compare the versions of torch and of vla with "
            f"those in {GOLDEN} and README.md; do not run it on a robot before you know why."
        )


def read(folder: Path) -> tuple[list[Row], float, int]:
    """(rows, tolerance, side in pixels) of a folder's golden.json."""
    path = folder / GOLDEN
    if not path.is_file():
        raise UserError(f"{folder} has no golden actions to compare with; `vla export checkpoint` stores some")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format_version"] != FORMAT_VERSION:
            raise UserError(f"{path}: format {data['format_version']}; this version of vla reads {FORMAT_VERSION}. Update it.")
        rows = [Row(str(r["embodiment"]), int(r["seed"]), np.array(r["action_TA"], np.float64)) for r in data["rows"]]
        return rows, float(data["tolerance"]), int(data["side"])
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is not readable ({error}); copy the checkpoint again") from error


def observation(contents: Contents, robot: Embodiment, seed: int, side: int) -> Observation:
    """What a robot sees under a seed: uint8 (frames, side, side, 3) per camera, and a state in the range of its data."""
    draw = _Draw(seed)
    frames = len(contents.offsets_s)
    images = {role: draw.bytes(frames * side * side * 3).reshape(frames, side, side, 3) for role in robot.cameras}
    normalizer = contents.normalizers[robot.name].state
    parts = {}
    for name, where in robot.state.slices().items():
        of, unit_FP = robot.state.field(name), draw.uniform(frames * robot.state.field(name).size).reshape(frames, -1)
        parts[name] = np.array(normalizer.offset[where]) + unit_FP * np.array(normalizer.scale[where])
        if of.unit in ROTATION_UNITS:
            parts[name] = from_rotation(_rotations(draw.uniform(3 * frames).reshape(frames, 3)), of.unit)
    state_FP = robot.state.pack(parts) if parts else np.zeros((frames, 0))
    return Observation(images, state_FP, WORDS[seed % len(WORDS)], robot.name, contents.offsets_s)


def _act(contents: Contents, act: Act, robot: Embodiment, seed: int, side: int | None = None) -> np.ndarray:
    seen = observation(contents, robot, seed, image_side(contents) if side is None else side)
    return act([seen], [seed])[0].action_TA


def _able(contents: Contents) -> list[Embodiment]:
    return [robot for robot in contents.embodiments if robot.limits is not None]


def image_side(contents: Contents) -> int:
    """Pixels of an observation, square."""
    return int(getattr(contents.model.backbone, "image_size", SIDE))


def _rotations(vector_F3: np.ndarray) -> Any:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(vector_F3)


class _Draw:
    """Numbers from PCG64's raw stream, which numpy promises to keep for ever (its distributions it does not)."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def bytes(self, count: int) -> np.ndarray:
        raw = np.asarray(self._bits.random_raw(-(-count // 8)), dtype="<u8")
        return raw.view(np.uint8)[:count].copy()

    def uniform(self, count: int) -> np.ndarray:
        """float64 in -1..1."""
        raw = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
