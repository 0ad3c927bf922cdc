"""What the loader costs beside bare JPEG decoding and beside stock webdataset, at 224 px, to the consumer's hands.

    python -m benchmarks.loader --json

CPU seconds of all processes (of the consumer and its 1 or 2 loader processes), not wall time, in interleaved blocks: medians over the
blocks, ratios block by block, the worse of 1 and 2 workers; then medians over processes (`_least` and `_most`: the range), since where
a process's fresh arrays happen to lie makes its plain decoding a tenth faster or slower. A block begins and ends with full queues.
`ratio_to_decode`: simplejpeg alone decodes the same frames in the same order from memory and drops them, into fresh arrays or into one
buffer that stays in the processor's caches, whichever is faster (`ratio_to_decode_fresh`: into fresh arrays, its plain call). The loader
reads them from shards, checks their sums, decodes, joins state and encoded action chunks and hands batches to another process, which
looks at every frame. A sample has two cameras, as most robots do (`--cameras 1`: one). `ratio_to_webdataset`: stock webdataset over
per-step tars of the same frames, with its own decoding ("rgb8"), batching and loader processes.

`rss_growth`: resident memory after drawing the same number of samples from 1,000,000 indexed steps against 10,000, without numpy's huge
pages, whose 2 MB each, or not, by where an array happens to lie, are more than what there is to be seen. `first_batch_*`: a new
process opens a mixture of 60 datasets with 100,000,000 indexed steps and makes one batch. Both indices are synthetic: many names (hard
links) of one real shard.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.command import parser_of
from vla.data.format import MANIFEST, manifest_digest, shard_name, to_json
from vla.data.memory import stacked
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.shard import DatasetInfo, ShardWriter
from vla.data.writer import write_segments
from vla.embodiment import Embodiment, Field, Space
from vla.types import Episode, Frames, Sample, Span

SIZE, BATCH, BLOCK = 224, 32, 16
"""Pixels, samples a batch, batches a block."""
ROLES = ("third_person", "wrist")
FIELDS = (Field("position", 3, "m"), Field("gripper", 1, "open01"))
LEARNED = (Field("position", 3, "m", "from_state"), Field("gripper", 1, "open01"))
EXTENSION = {"third_person": "jpg", "wrist": "wrist.jpg"}


def robot(cameras: int) -> Embodiment:
    """A robot of four numbers at 10 Hz with so many cameras."""
    return Embodiment("bench", ROLES[:cameras], Space(FIELDS), Space(FIELDS), Space(LEARNED), Fraction(10), 16, ((-9.0, 9.0),) * 4)


def pictures(count: int) -> list[bytes]:
    """Noise at several scales, so that they compress as photographs do (7 kB each)."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        layers = [np.kron(rng.integers(0, 256, (SIZE // s, SIZE // s, 3)), np.ones((s, s, 1))) for s in (8, 28, 112)]
        images.append(simplejpeg.encode_jpeg(np.mean(layers, axis=0).astype(np.uint8), quality=85))
    return images


def episodes(images: list[bytes], of: Embodiment, steps: int, length: int) -> Iterator[Episode]:
    """Episodes of `length` steps, `steps` in all; frames are the JPEGs `images` in turn."""
    rng = np.random.default_rng(1)
    rows = rng.uniform(size=(length, 4))
    for number in range(steps // length):
        frames = {}
        for view, role in enumerate(of.cameras):
            first = number * length * len(of.cameras) + view
            jpeg = tuple(images[(first + i * len(of.cameras)) % len(images)] for i in range(length))
            frames[role] = Frames(np.arange(length), jpeg)
        yield Episode(
            id=f"e{number}",
            embodiment=of.name,
            rate_hz=of.rate_hz,
            supervision="actions",
            instructions=(Span("do it", 0, length),),
            time_s=np.arange(length) / 10,
            frames=frames,
            state=rows,
            action=rows,
        )


def write(folder: Path, images: list[bytes], of: Embodiment, steps: int, length: int = 100) -> Path:
    """A dataset of such episodes; returns its folder."""
    with ShardWriter(folder, DatasetInfo(name=folder.name, embodiment=of.to_json())) as writer:
        for episode in episodes(images, of, steps, length):
            writer.add(episode)
    return folder


def repeat(one: Path, folder: Path, times: int) -> Path:
    """A dataset of the shards of `one`, so many times over, as hard links."""
    manifest: dict[str, Any] = json.loads((one / MANIFEST).read_text())
    folder.mkdir(parents=True)
    rows = []
    for row in [row for _ in range(times) for row in manifest["shards"]]:
        name = shard_name(len(rows))
        for kind in row["files"]:
            os.link(one / f"{row['name']}.{kind}", folder / f"{name}.{kind}")
        rows.append({**row, "name": name})
    for count in ("episodes", "segments", "steps", "anchors", "frames", "seconds"):
        manifest[count] *= times
    manifest["info"]["name"] = folder.name
    manifest["shards"] = rows
    manifest["segments_file"] = write_segments(folder, [row["name"] for row in rows])
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST).write_bytes(to_json(manifest, "manifest"))
    return folder


def write_stock(path: Path, images: list[bytes], of: Embodiment, steps: int) -> Path:
    """One step a sample, as other projects publish them."""
    with tarfile.open(path, "w") as tar:
        for step in range(steps):
            members = {EXTENSION[role]: images[(step * len(of.cameras) + view) % len(images)] for view, role in enumerate(of.cameras)}
            for ext, data in {**members, "json": b'{"state": [0, 0, 0, 0], "action": [0, 0, 0, 0]}'}.items():
                info = tarfile.TarInfo(f"{step:07}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def collate(samples: list[Sample]) -> dict[str, np.ndarray]:
    """image (B, V, F, H, W, 3) uint8; state, action, valid as a model wants them."""
    images = [image for sample in samples for image in sample.observation.images.values()]
    return {
        "image": stacked(images).reshape(len(samples), -1, *images[0].shape),
        "state": joined([sample.observation.state for sample in samples]).astype(np.float32),
        "action": joined([sample.action_TA for sample in samples]).astype(np.float32),
        "valid": joined([sample.valid_T for sample in samples]),
    }


def joined(arrays: list[Any]) -> np.ndarray:
    """`np.stack`, in a third of its time where there are many small ones."""
    return np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape)


def look(images: np.ndarray) -> int:
    """The consumer reads of every frame."""
    return int(images[..., 0, 0, 0].sum())


def ours(pipeline: Pipeline, workers: int) -> Iterator[None]:
    """Yields after each batch of BATCH samples that the consumer has looked at."""
    for _, batch in pipeline.batches(batch_size=BATCH, collate=collate, workers=workers):
        look(batch["image"])
        yield


def stock(path: Path, of: Embodiment, workers: int) -> Iterator[None]:
    """As `ours`, by stock webdataset with its own decoding and loader processes."""
    import webdataset

    dataset = webdataset.WebDataset([str(path)] * workers, shardshuffle=False, empty_check=False).repeat().decode("rgb8").batched(BATCH)
    for batch in webdataset.WebLoader(dataset, batch_size=None, num_workers=workers):
        for role in of.cameras:
            look(np.asarray(batch[EXTENSION[role]]))
        yield


class Meter:
    """CPU seconds of this process and its children."""

    def __init__(self) -> None:
        self.children: list[int] = []

    def started(self) -> list[int]:
        """Processes begun since the last call."""
        import psutil

        new = [child.pid for child in psutil.Process().children() if child.pid not in self.children]
        self.children += new
        return new

    def settle(self) -> None:
        """Waits until the children have filled their queues."""
        last = -1.0
        while (now := self._children_s()) - last > 1e-4:
            last = now
            time.sleep(0.03)

    def measure(self, work: Callable[[], None]) -> float:
        """CPU seconds of `work`, those of the children with it."""
        self.settle()
        start = time.process_time() + self._children_s()
        work()
        self.settle()
        return time.process_time() + self._children_s() - start

    def _children_s(self) -> float:
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.children)  # CPUCLOCK_SCHED of a process (clock_getcpuclockid)


def measure(blocks: int, cameras: int) -> dict[str, float]:
    """CPU seconds of all sides in `blocks` interleaved blocks, as rates (frames/s of a core) and ratios; see the top of this file."""
    of, images = robot(cameras), pictures(400)
    frames = BLOCK * BATCH * cameras
    with tempfile.TemporaryDirectory() as place:
        folder = write(Path(place) / "frames", images, of, 5000)
        tar = write_stock(Path(place) / "stock.tar", images, of, 4 * BATCH * BLOCK)
        pipeline = Pipeline(Mixture.of([folder], val_fraction=0.0), {"bench": of}, cache_bytes=0)
        memory = in_order(pipeline, of)
        meter, alone = Meter(), {"fresh": None, "buffer": fast_place()}
        sides = {f"ours_{w}": ours(pipeline, w) for w in (1, 2)} | {f"stock_{w}": stock(tar, of, w) for w in (1, 2)}
        for side in sides.values():
            next(side)
        meter.started()
        rows = []
        for number in range(blocks + 1):
            row = {name: meter.measure(lambda n=number, out=out: decode(memory, n * frames, frames, out)) for name, out in alone.items()}
            for name, side in sides.items():
                row[name] = meter.measure(lambda side=side: take(side, BLOCK))
            rows.append(row)
        for side in sides.values():
            side.close()  # type: ignore[attr-defined]
    rows = rows[1:]  # the first block warms up
    ratio = {(kind, w): statistics.median(row[kind] / row[f"ours_{w}"] for row in rows) for kind in alone for w in (1, 2)}
    over = {w: statistics.median(row[f"stock_{w}"] / row[f"ours_{w}"] for row in rows) for w in (1, 2)}
    spread = [row["buffer"] / row["ours_1"] for row in rows]
    return {
        "decode_fps": max(frames / statistics.median(row[kind] for row in rows) for kind in alone),
        "loader_fps": min(frames / statistics.median(row[f"ours_{w}"] for row in rows) for w in (1, 2)),
        "ratio_to_decode": min(ratio.values()),
        "ratio_to_webdataset": min(over.values()),
        "ratio_to_decode_fresh": min(ratio["fresh", w] for w in (1, 2)),
        "ratio_to_decode_1_worker": min(ratio[kind, 1] for kind in alone),
        "ratio_to_decode_2_workers": min(ratio[kind, 2] for kind in alone),
        "ratio_to_decode_spread": max(spread) - min(spread),
        "cameras": cameras,
    }


def measure_often(processes: int, blocks: int, cameras: int) -> dict[str, float]:
    """`measure` in so many processes, one after the other."""
    words = ("--blocks", str(blocks), "--cameras", str(cameras), "--large", "0", "--steps", "0", "--processes", "0", "--json")
    found = [json.loads(_child(*words)) for _ in range(processes)]
    middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
    for key in ("ratio_to_decode", "ratio_to_decode_fresh"):
        middle |= {f"{key}_least": min(row[key] for row in found), f"{key}_most": max(row[key] for row in found)}
    return {**middle, "cameras": cameras, "processes": processes}


def in_order(pipeline: Pipeline, of: Embodiment) -> list[bytes]:
    """The JPEGs in the order in which the loader comes upon them."""
    (source,) = pipeline.mixture.sources
    found = []
    for _, _, episode, step in pipeline.look_up(range(5000)):
        found += [bytes(source.dataset.frame(episode, role, step)) for role in of.cameras]  # type: ignore[arg-type]
    return found


def fast_place() -> np.ndarray:
    """A frame's buffer that begins 16 bytes after a cache line: decoding into it is a tenth faster than where a fresh array may lie."""
    room = np.zeros(SIZE * SIZE * 3 + 4096, np.uint8)
    start = (16 - room.__array_interface__["data"][0]) % 64
    return room[start : start + SIZE * SIZE * 3].reshape(SIZE, SIZE, 3)


def decode(memory: list[bytes], start: int, count: int, out: np.ndarray | None) -> None:
    """simplejpeg alone: JPEGs `start` to `start + count` (round again at the end), into `out` (H, W, 3) or fresh arrays."""
    for number in range(start, start + count):
        if out is None:
            simplejpeg.decode_jpeg(memory[number % len(memory)], colorspace="RGB")
        else:
            simplejpeg.decode_jpeg(memory[number % len(memory)], colorspace="RGB", buffer=out)


def take(side: Iterator[None], count: int) -> None:
    """The next `count` batches of a side."""
    for _ in range(count):
        next(side)


def memory_growth(large: int) -> dict[str, float]:
    """Resident memory of fresh processes that open so many indexed steps and draw 3,200 samples of two cameras."""
    with tempfile.TemporaryDirectory() as place:
        one = write(Path(place) / "small", pictures(1), robot(2), 10_000, length=100)
        many = repeat(one, Path(place) / "large", large // 10_000)
        small_mb, large_mb = (float(_child("--draw", str(folder))) for folder in (one, many))
    return {"rss_small_mb": small_mb, "rss_large_mb": large_mb, "rss_growth": large_mb / small_mb - 1}


def draw(folder: Path) -> None:
    """Prints the resident memory, MB, after 100 batches of a dataset."""
    pipeline = Pipeline(Mixture.of([folder], val_fraction=0.0), {"bench": robot(2)}, cache_bytes=0)
    for _, batch in pipeline.batches(batch_size=BATCH, count=100, collate=collate, prefetch=0):
        look(batch["image"])
    print(resident_mb())


def first_batch(datasets: int, steps: int) -> dict[str, float]:
    """A new process's time and peak memory for opening a mixture of so many datasets and steps in all, up to the first batch."""
    of = robot(2)
    length = 4480  # steps of a shard of 64 MB, at 7 kB a frame
    with tempfile.TemporaryDirectory() as place:
        one = write(Path(place) / "one", pictures(20), of, length, length=160)
        root = Path(place) / "all"
        for number in range(datasets):
            repeat(one, root / f"d{number:02}", -(-steps // datasets // length))
        rows = [f"  - {{path: d{number:02}, weight: {1 + number % 7}}}" for number in range(datasets)]
        (root / "m.yaml").write_text("sources:\n" + "\n".join(rows))
        return json.loads(_child("--first", str(root)))


def first(root: Path) -> None:
    """Prints seconds and peak memory from opening a mixture up to its first batch."""
    start = time.perf_counter()
    mixture = Mixture.load(root / "m.yaml", root, verify="size")
    pipeline = Pipeline(mixture, {"bench": robot(2)})
    opened_s = time.perf_counter() - start
    _, batch = next(pipeline.batches(batch_size=BATCH, collate=collate))
    seconds = time.perf_counter() - start
    look(batch["image"])
    steps = sum(source.dataset.steps for source in mixture.sources)
    print(
        json.dumps({"first_batch_s": seconds, "first_batch_open_s": opened_s, "first_batch_rss_mb": peak_mb(), "first_batch_steps": steps})
    )


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mb() -> float:
    """The most it has had, MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(*args: str) -> str:
    variables = os.environ | ({"NUMPY_MADVISE_HUGEPAGE": "0"} if "--draw" in args else {})
    done = subprocess.run([sys.executable, "-m", "benchmarks.loader", *args], capture_output=True, text=True, check=True, env=variables)
    return done.stdout


def main() -> None:
    """Prints a line for each figure, or one JSON object."""
    parser = parser_of(__doc__)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--processes", type=int, default=12, help="that measure, one after the other (0: this one)")
    parser.add_argument("--cameras", type=int, default=2, choices=(1, 2))
    parser.add_argument("--large", type=int, default=1_000_000, help="indexed steps of the large dataset (0: leave memory out)")
    parser.add_argument("--steps", type=int, default=100_000_000, help="indexed steps of the mixture of 60 datasets (0: leave it out)")
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.draw:
        return draw(args.draw)
    if args.first:
        return first(args.first)
    if args.blocks and args.processes:
        result = measure_often(args.processes, args.blocks, args.cameras)
    else:
        result = measure(args.blocks, args.cameras) if args.blocks else {}
    result |= memory_growth(args.large) if args.large else {}
    result |= first_batch(60, args.steps) if args.steps else {}
    rounded = {name: round(value, 3) for name, value in result.items()}
    print(json.dumps(rounded) if args.json else "\n".join(f"{name}: {value}" for name, value in rounded.items()))


if __name__ == "__main__":
    main()
