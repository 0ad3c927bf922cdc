"""Mistakes as converters make them, put into clean data; and the table of docs/data-doctor.md:

python -m tests.data.mutants [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.data.robots import CLEAN, Made, make
from vla.data.check import check_dataset
from vla.data.shard import Dataset
from vla.data.statistics import dataset_stats, save_stats
from vla.types import Episode

SOME = (1, 4, 5, 9)
"""Episodes that a mistake is put into where it is not in all."""


@dataclass(frozen=True)
class Mutant:
    """`change(made)` gives the data with the mistake, or None where they have nothing to get wrong. `kinds`: findings that name it.

    `spoil(folder)`: instead, a mistake in what lies beside the data. `seen`: False where the data cannot tell (docs/data-doctor.md).
    """

    name: str
    variant: str
    kinds: tuple[str, ...]
    change: Callable[[Made], Made | None] = lambda made: made
    spoil: Callable[[Path], None] | None = None
    seen: bool = True


def transposed(rows: np.ndarray) -> np.ndarray:
    """rot6d of columns -> the first two rows of the same matrices."""
    a, b = rows[:, :3], rows[:, 3:]
    matrix = np.stack([a, b, np.cross(a, b)], axis=-1)
    return np.concatenate([matrix[:, 0], matrix[:, 1]], axis=-1)


def field_change(kind: str, unit: tuple[str, ...], change, some: bool = False, name: str = "") -> Callable[[Made], Made | None]:
    """A mutation of all fields of some units (whose name holds `name`) in `state`, `action` or `both`."""

    def apply(made: Made) -> Made | None:
        touched = False
        for side in ("state", "action") if kind == "both" else (kind,):
            space = made.info.recorded_state if side == "state" else made.info.recorded_action
            assert space is not None
            for field in space.fields:
                if field.unit in unit and name in field.name:
                    made = made.rows(side, field.name, change, SOME if some else None)
                    touched = True
        return made if touched else None

    return apply


def swap_arms(both: bool) -> Callable[[Made], Made | None]:
    def apply(made: Made) -> Made | None:
        space = made.info.recorded_action
        assert space is not None and made.info.recorded_state is not None
        if not any(f.name.startswith("left_") for f in space.fields):
            return None

        def exchange(values: np.ndarray) -> np.ndarray:
            half = values.shape[1] // 2  # the arms have the same fields
            return np.concatenate([values[:, half:], values[:, :half]], axis=1)

        def each(episode: Episode) -> Episode:
            assert episode.state is not None and episode.action is not None
            changed = replace(episode, action=exchange(episode.action))
            return replace(changed, state=exchange(episode.state)) if both else changed

        return made.each(each)

    return apply


def other_frame(frame: str) -> Callable[[Made], Made | None]:
    """Values in the other frame than `frame`, which stays declared."""

    def apply(made: Made) -> Made | None:
        space, states = made.info.recorded_action, made.info.recorded_state
        assert space is not None and states is not None
        found = [f for f in space.fields if f.unit in ("m", "rad") and f.frame == frame and f.name in states.slices()]
        if not found:
            return None

        def each(episode: Episode) -> Episode:
            action = np.array(episode.action)
            for field in found:
                state = episode.state[:, states.slices()[field.name]]
                action[:, space.slices()[field.name]] += -state if frame == "absolute" else state
            return replace(episode, action=action)

        return made.each(each)

    return apply


def swap_cameras(some: bool) -> Callable[[Made], Made | None]:
    def apply(made: Made) -> Made | None:
        cameras = sorted(made.episodes[0].frames)
        if not some and not any(c.startswith("wrist") for c in cameras):
            return None  # two fixed cameras, exchanged everywhere, are two fixed cameras
        first = "third_person"
        second = next(c for c in cameras if c != first)

        def each(number: int, episode: Episode) -> Episode:
            if some and number not in SOME:
                return episode
            frames = dict(episode.frames)
            frames[first], frames[second] = frames[second], frames[first]
            return replace(episode, frames=frames)

        return replace(made, episodes=tuple(each(i, e) for i, e in enumerate(made.episodes)))

    return apply


def shift(how: str) -> Callable[[Made], Made | None]:
    def each(episode: Episode) -> Episode:
        a = np.array(episode.action)
        if how == "rolled late":
            return replace(episode, action=np.roll(a, 1, axis=0))
        if how == "rolled early":
            return replace(episode, action=np.roll(a, -1, axis=0))
        if how == "cut late":  # the first observation had no action, and lost its row
            n, frames = episode.steps - 1, {}
            for camera, f in episode.frames.items():
                keep = f.step >= 1
                frames[camera] = replace(f, step=f.step[keep] - 1, jpeg=tuple(j for j, k in zip(f.jpeg, keep, strict=True) if k))
            spans = tuple(replace(s, start=0, stop=n) for s in episode.instructions)
            return replace(episode, state=episode.state[1:], action=a[:-1], time_s=episode.time_s[1:], frames=frames, instructions=spans)
        late = how == "repeated late"
        return replace(episode, action=np.concatenate([a[:1], a[:-1]] if late else [a[1:], a[-1:]]))

    return lambda made: made.each(each)


def wrong_rate(factor: int) -> Callable[[Made], Made]:
    def apply(made: Made) -> Made:
        robot = made.embodiment()
        declared = replace(robot, rate_hz=robot.rate_hz * factor)
        info = replace(made.info, embodiment=declared.to_json())
        return replace(made, info=info).each(lambda episode: replace(episode, rate_hz=declared.rate_hz))

    return apply


def stale(digest_fits: bool) -> Callable[[Path], None]:
    """Statistics of the same robot, with other numbers; under this dataset's name, and even its digest."""

    def spoil(folder: Path) -> None:
        dataset = Dataset.open(folder)
        robot = dataset.info.robot
        assert robot is not None
        stats = dataset_stats(dataset, robot)
        other = type(stats)(stats.key, _moved(stats.state), _moved(stats.action))
        path = save_stats(dataset, robot, 0.02, other)
        if not digest_fits:
            record = json.loads(path.read_text())
            path.write_text(json.dumps({**record, "dataset": "0" * 64}))

    return spoil


def _moved(stats):
    """As after the data had been collected again a hand's breadth away."""
    changed = type(stats)(stats.width)
    rows = np.concatenate(stats._levels)
    changed.update(rows + 0.5 * rows.std(0))
    return changed


DEGREES = 180 / math.pi
MUTANTS: tuple[Mutant, ...] = (
    Mutant("rotation layout", "state", ("rotation_layout",), field_change("state", ("rot6d",), transposed)),
    Mutant("rotation layout", "action", ("rotation_layout",), field_change("action", ("rot6d",), transposed)),
    Mutant("rotation layout", "action, some episodes", ("rotation_layout",), field_change("action", ("rot6d",), transposed, some=True)),
    Mutant("rotation layout", "state and action", ("rotation_layout",), field_change("both", ("rot6d",), transposed), seen=False),
    Mutant("quaternion order", "state", ("quaternion_order",), field_change("state", ("quat_xyzw",), lambda q: np.roll(q, 1, axis=1))),
    Mutant("quaternion order", "action", ("quaternion_order",), field_change("action", ("quat_xyzw",), lambda q: np.roll(q, 1, axis=1))),
    Mutant(
        "quaternion order", "state and action", ("quaternion_order",), field_change("both", ("quat_xyzw",), lambda q: np.roll(q, 1, axis=1))
    ),
    Mutant("inverted gripper", "action", ("inverted_gripper",), field_change("action", ("open01",), lambda g: 1 - g)),
    Mutant(
        "inverted gripper", "action, some episodes", ("inverted_gripper",), field_change("action", ("open01",), lambda g: 1 - g, some=True)
    ),
    Mutant("inverted gripper", "state and action", ("inverted_gripper",), field_change("both", ("open01",), lambda g: 1 - g)),
    Mutant("degrees for radians", "action", ("degrees_for_radians",), field_change("action", ("rad", "axis_angle"), lambda a: a * DEGREES)),
    Mutant("degrees for radians", "state", ("degrees_for_radians",), field_change("state", ("rad", "axis_angle"), lambda a: a * DEGREES)),
    Mutant(
        "degrees for radians",
        "state and action",
        ("degrees_for_radians",),
        field_change("both", ("rad", "axis_angle"), lambda a: a * DEGREES),
    ),
    Mutant("swapped arms", "action", ("swapped_arms",), swap_arms(both=False)),
    Mutant("swapped arms", "state and action", ("swapped_arms",), swap_arms(both=True)),
    Mutant("delta for absolute", "declared absolute", ("wrong_frame",), other_frame("absolute")),
    Mutant("delta for absolute", "declared step", ("wrong_frame",), other_frame("step")),
    Mutant("swapped cameras", "all episodes", ("swapped_cameras",), swap_cameras(some=False)),
    Mutant("swapped cameras", "some episodes", ("swapped_cameras",), swap_cameras(some=True)),
    Mutant("wrong rate", "declared double", ("wrong_rate",), wrong_rate(2)),
    Mutant("stale statistics", "of another version", ("stale_statistics",), spoil=stale(digest_fits=False)),
    Mutant("stale statistics", "wrong numbers under the right digest", ("stale_statistics",), spoil=stale(digest_fits=True)),
    Mutant("actions shifted", "one row late, first repeated", ("actions_shifted",), shift("repeated late")),
    Mutant("actions shifted", "one row late, rolled", ("actions_shifted",), shift("rolled late")),
    Mutant("actions shifted", "one row late, cut clean", ("actions_shifted",), shift("cut late")),
    Mutant("actions shifted", "one row early, last repeated", ("actions_shifted",), shift("repeated early")),
    Mutant("actions shifted", "one row early, rolled", ("actions_shifted",), shift("rolled early")),
)


def trial(made: Made, mutant: Mutant, folder: Path) -> tuple[bool, list[str]] | None:
    """(whether a finding that is no note names the mistake, other errors), or None where the data have nothing to get wrong."""
    changed = mutant.change(made)
    if changed is None:
        return None
    changed.write(folder)
    if mutant.spoil is not None:
        mutant.spoil(folder)
    found = [f for f in check_dataset(folder, full=False).findings if f.severity != "note"]
    return any(f.kind in mutant.kinds for f in found), [f.kind for f in found if f.kind not in mutant.kinds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four robots instead of twenty")
    args = parser.parse_args()
    robots = CLEAN[::5] if args.quick else CLEAN
    with tempfile.TemporaryDirectory() as scratch:
        for line in _table([make(robot) for robot in robots], Path(scratch)):
            print(line, flush=True)
    return 0


def _table(sets: list[Made], scratch: Path) -> Iterator[str]:
    alarms, warnings = 0, 0
    for made in sets:
        report = check_dataset(made.write(scratch / made.info.name), full=False)
        alarms += not report.sound
        warnings += sum(f.severity == "warning" for f in report.findings)
    yield f"{len(sets)} clean datasets: {alarms} with an alarm, {warnings} warnings."
    yield ""
    yield "| mistake | where | found |"
    yield "|---|---|---|"
    for number, mutant in enumerate(MUTANTS):
        results = [(made.info.name, trial(made, mutant, scratch / f"{made.info.name}-{number}")) for made in sets]
        tried = [(name, row[0]) for name, row in results if row is not None]
        missed = [name for name, hit in tried if not hit]
        share = f"{len(tried) - len(missed)} of {len(tried)}"
        yield f"| {mutant.name} | {mutant.variant} | {share if tried else 'none to try'} |"
        if missed and "-v" in sys.argv:
            yield f"  missed: {missed}"


if __name__ == "__main__":
    sys.exit(main())
