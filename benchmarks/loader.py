"""What the loader costs beside bare JPEG decoding and beside stock webdataset, on one core, at 224 px.

    python -m benchmarks.loader --json

CPU seconds, not wall time, in interleaved blocks of the same process: medians over the blocks, ratios block by block. Decoded frames
are held for one batch on all sides, as any consumer does. `rss_growth`: resident memory of drawing the same number of samples from
1,000,000 indexed steps against 10,000.
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

import numpy as np
import simplejpeg

from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.shard import DatasetInfo, ShardWriter
from vla.embodiment import Embodiment, Field, Space
from vla.types import Episode, Frames, Span

SIZE, BATCH, BLOCK = 224, 50, 500
"""Pixels, samples a batch, frames a block."""
FIELDS = (Field("position", 3, "m"), Field("gripper", 1, "open01"))
SPACE = Space(FIELDS)
ROBOT = Embodiment("bench", ("camera",), SPACE, SPACE, SPACE, Fraction(10), 16, ((-9.0, 9.0),) * 4)


def pictures(count: int) -> list[bytes]:
    """Noise at several scales, so that they compress as photographs do (about 10 kB each)."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        layers = [np.kron(rng.integers(0, 256, (SIZE // s, SIZE // s, 3)), np.ones((s, s, 1))) for s in (8, 28, 112)]
        images.append(simplejpeg.encode_jpeg(np.mean(layers, axis=0).astype(np.uint8), quality=85))
    return images


def episodes(images: list[bytes], steps: int, length: int) -> Iterator[Episode]:
    rng = np.random.default_rng(1)
    rows = rng.uniform(size=(length, 4))
    for number in range(steps // length):
        jpeg = tuple(images[(number * length + i) % len(images)] for i in range(length))
        yield Episode(
            id=f"e{number}",
            embodiment="bench",
            rate_hz=ROBOT.rate_hz,
            supervision="actions",
            instructions=(Span("do it", 0, length),),
            time_s=np.arange(length) / 10,
            frames={"camera": Frames(np.arange(length), jpeg)},
            state=rows,
            action=rows,
        )


def write(folder: Path, images: list[bytes], steps: int, length: int = 100) -> Path:
    with ShardWriter(folder, DatasetInfo(name=folder.name, embodiment=ROBOT.to_json())) as writer:
        for episode in episodes(images, steps, length):
            writer.add(episode)
    return folder


def write_stock(path: Path, images: list[bytes], steps: int) -> Path:
    """One step a sample, as other projects publish them."""
    with tarfile.open(path, "w") as tar:
        for step in range(steps):
            for name, data in ((f"{step:07}.jpg", images[step % len(images)]), (f"{step:07}.json", b'{"action": [0, 0, 0, 0]}')):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def decode_block(images: list[bytes]) -> None:
    held = []
    for number in range(BLOCK):
        held.append(simplejpeg.decode_jpeg(images[number % len(images)], colorspace="RGB"))
        if len(held) == BATCH:
            np.stack(held)
            held = []


def loader_block(pipeline: Pipeline, start: int) -> None:
    def collate(samples):
        return np.stack([sample.observation.images["camera"][0] for sample in samples])

    for _ in pipeline.batches(start, batch_size=BATCH, count=BLOCK // BATCH, collate=collate, prefetch=0):
        pass


def stock_block(path: Path) -> None:
    import webdataset

    held = []
    for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8").slice(BLOCK):
        held.append(sample["jpg"])
        if len(held) == BATCH:
            np.stack(held)
            held = []


def cpu_s(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(blocks: int) -> dict[str, float]:
    images = pictures(200)
    with tempfile.TemporaryDirectory() as place:
        folder = write(Path(place) / "frames", images, 5000)
        stock = write_stock(Path(place) / "stock.tar", images, BLOCK)
        pipeline = Pipeline(Mixture.of([folder], val_fraction=0.0), {"bench": ROBOT}, cache_bytes=0)
        rows = []
        for number in range(blocks + 1):
            decode = cpu_s(lambda: decode_block(images))
            loader = cpu_s(lambda number=number: loader_block(pipeline, number * BLOCK))
            rows.append((decode, loader, cpu_s(lambda: stock_block(stock))))
    rows = rows[1:]  # the first block warms up
    return {
        "decode_fps": BLOCK / statistics.median(row[0] for row in rows),
        "loader_fps": BLOCK / statistics.median(row[1] for row in rows),
        "ratio_to_decode": statistics.median(decode / loader for decode, loader, _ in rows),
        "ratio_to_webdataset": statistics.median(stock / loader for _, loader, stock in rows),
    }


def resident_mb(steps: int) -> float:
    """Resident memory of a fresh process after it opened so many indexed steps and drew 20,000 samples."""
    tiny = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    with tempfile.TemporaryDirectory() as place:
        folder = write(Path(place) / "large", [tiny], steps, length=500)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.loader", "--draw", str(folder)], capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def draw(folder: Path) -> None:
    page_mb = os.sysconf("SC_PAGE_SIZE") / 2**20
    pipeline = Pipeline(Mixture.of([folder], val_fraction=0.0), {"bench": ROBOT}, cache_bytes=0)
    for start in range(0, 20_000, BLOCK):
        loader_block(pipeline, start)
    print(int(Path("/proc/self/statm").read_text().split()[1]) * page_mb)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--large", type=int, default=1_000_000, help="indexed steps of the large dataset (0: leave memory out)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.draw:
        return draw(args.draw)
    result = measure(args.blocks)
    if args.large:
        small, large = resident_mb(10_000), resident_mb(args.large)
        result |= {"rss_small_mb": small, "rss_large_mb": large, "rss_growth": large / small - 1}
    rounded = {name: round(value, 3) for name, value in result.items()}
    print(json.dumps(rounded) if args.json else "\n".join(f"{name}: {value}" for name, value in rounded.items()))


if __name__ == "__main__":
    main()
