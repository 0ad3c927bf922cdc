"""What converting an RLDS dataset costs, beside reading the same dataset with tensorflow-datasets.

    python -m benchmarks.rlds --json

A dataset of two 224 px cameras (JPEG), state, action and language, written by tensorflow-datasets. In turns, each in a process of its own
that was warmed up by a whole pass: `tfds` iterates every step with pictures decoded, as its users read it; `tfds_encoded` the same with
pictures left encoded; `read` our reader alone; `convert` reader, card, checks and shards on disk, in one process; `convert_2` with two
reading processes, their start included. Steps per second of wall time and of CPU time, medians over the rounds; `ratio` and
`ratio_cpu` compare `convert` with `tfds`.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import parser_of, show

SIZE, EPISODES, STEPS, SHARDS = 224, 24, 50, 8
KINDS = ("tfds", "tfds_encoded", "read", "convert", "convert_2")

CARD = {
    "name": "bench",
    "title": "Benchmark",
    "homepage": "none",
    "licence": "CC0-1.0",
    "citation": "none",
    "facts": ["benchmarks/rlds.py"],
    "format": "rlds",
    "source": {"name": "bench"},
    "embodiment": "bench",
    "rate_hz": 10,
    "supervision": "actions",
    "cameras": {"third_person": {"from": "observation/image"}, "wrist": {"from": "observation/wrist_image"}},
    "state": {"hand": {"from": "observation/state", "slice": [0, 3]}},
    "action": {"hand": {"from": "action", "slice": [0, 3]}, "gripper": {"from": "action", "index": 6, "gripper": {"open": 1, "closed": 0}}},
    "instruction": {"from": "language_instruction"},
}


def main() -> None:
    """Prints a line for each figure, or one JSON object."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(*args.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        _run("write", folder)
        found = measure(Path(folder), args.rounds)
    show(found, args.json)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """{kind: steps per second, ...}: a process of each kind, taking turns."""
    children = {kind: _open(kind, folder) for kind in KINDS}
    wall: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    try:
        for turn in range(rounds + 1):  # the first warms up
            for kind, child in children.items():
                assert child.stdin is not None and child.stdout is not None
                child.stdin.write("go\n")
                child.stdin.flush()
                wall_s, cpu_s = map(float, child.stdout.readline().split())
                if turn:
                    wall[kind].append(EPISODES * STEPS / wall_s)
                    cpu[kind].append(EPISODES * STEPS / cpu_s)
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    found: dict[str, Any] = {f"{kind}_steps_per_s": round(statistics.median(values), 1) for kind, values in wall.items()}
    found |= {f"{kind}_steps_per_cpu_s": round(statistics.median(values), 1) for kind, values in cpu.items()}
    found["ratio"] = round(statistics.median(a / b for a, b in zip(wall["convert"], wall["tfds"], strict=True)), 3)
    found["ratio_cpu"] = round(statistics.median(a / b for a, b in zip(cpu["convert"], cpu["tfds"], strict=True)), 3)
    return {**found, "episodes": EPISODES, "steps": EPISODES * STEPS, "rounds": rounds, "cores": os.cpu_count()}


def _open(kind: str, folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "benchmarks.rlds", "--child", kind, str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _run(kind: str, folder: str) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.rlds", "--child", kind, folder], check=True, capture_output=True)


def _child(kind: str, folder: str) -> None:
    place = Path(folder)
    if kind == "write":
        _write(place)
        return
    out = os.fdopen(os.dup(1), "w")  # TensorFlow prints what it likes
    os.dup2(2, 1)
    passes: dict[str, Callable[[], None]] = {
        "tfds": partial(_tfds, place, False),
        "tfds_encoded": partial(_tfds, place, True),
        "read": partial(_read, place),
        "convert": partial(_convert, place, 0),
        "convert_2": partial(_convert, place, 2),
    }
    for _ in sys.stdin:
        wall_s, cpu_s = time.perf_counter(), _cpu_s()
        passes[kind]()
        print(time.perf_counter() - wall_s, _cpu_s() - cpu_s, file=out, flush=True)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in used)


def _version(folder: Path) -> Path:
    return folder / "bench" / "1.0.0"


def _tfds(folder: Path, encoded: bool) -> None:
    import tensorflow_datasets as tfds

    skip = tfds.decode.SkipDecoding()
    decoders = {"steps": {"observation": {"image": skip, "wrist_image": skip}}} if encoded else None
    builder = tfds.builder_from_directory(str(_version(folder)))
    seen = 0
    for episode in tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False, decoders=decoders)):
        for _ in episode["steps"]:
            seen += 1
    assert seen == EPISODES * STEPS


def _read(folder: Path) -> None:
    from vla.convert.rlds import Rlds

    reader = Rlds(_version(folder))
    assert sum(episode.steps for part in reader.parts() for episode in reader.episodes(part)) == EPISODES * STEPS  # type: ignore[union-attr]


def _convert(folder: Path, workers: int) -> None:
    from vla.convert.card import Card
    from vla.convert.engine import Settings, convert
    from vla.convert.rlds import Rlds
    from vla.embodiment import Embodiment, Field, Space

    command = Space((Field("hand", 3, "m", "step"), Field("gripper", 1, "open01")))
    robot = Embodiment("bench", ("third_person", "wrist"), Space((Field("hand", 3, "m"),)), command, command, Fraction(10), 8, None)
    out = folder / f"out-{workers}"
    report = convert(partial(Rlds, _version(folder)), Card.from_json(CARD, robot=robot), out, Settings(workers=workers))
    shutil.rmtree(out)
    assert report.steps == EPISODES * STEPS


def _write(folder: Path) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import features as f

    image = partial(f.Image, shape=(SIZE, SIZE, 3), encoding_format="jpeg")
    observation = f.FeaturesDict({"image": image(), "wrist_image": image(), "state": f.Tensor(shape=(8,), dtype=np.float32)})
    flags = {name: f.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")}
    step = {"observation": observation, "action": f.Tensor(shape=(7,), dtype=np.float32), "language_instruction": f.Text(), **flags}
    rng = np.random.default_rng(0)
    layers = [np.kron(rng.integers(0, 256, (16, SIZE // s, SIZE // s, 3)), np.ones((1, s, s, 1))) for s in (8, 28, 112)]
    images = np.mean(layers, axis=0).astype(np.uint8)  # noise at several scales compresses as photographs do

    def episode(number: int) -> dict[str, Any]:
        rows = []
        for i in range(STEPS):
            seen = {"image": images[(number + i) % 16], "wrist_image": images[(number + 3 * i) % 16], "state": np.zeros(8, np.float32)}
            at = {"is_first": i == 0, "is_last": i == STEPS - 1, "is_terminal": i == STEPS - 1}
            rows.append({"observation": seen, "action": np.zeros(7, np.float32), "language_instruction": f"task {number}", **at})
        return {"steps": rows}

    made = ((number, episode(number)) for number in range(EPISODES))
    builder = tfds.dataset_builders.AdhocBuilder(
        name="bench",
        version="1.0.0",
        features=f.FeaturesDict({"steps": f.Dataset(step)}),
        split_datasets={"train": made},
        data_dir=str(folder),
    )
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=SHARDS))


if __name__ == "__main__":
    main()
