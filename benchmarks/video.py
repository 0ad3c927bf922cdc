"""What reading and converting video costs beside PyAV's own sequential decoding, on one core.

    python -m benchmarks.video --json

CPU seconds, not wall time, in interleaved blocks of the same process: medians over the blocks, ratios block by block. The clip moves,
turns over and is noisy, H.264 with B-frames as cameras write it. `decode` is PyAV's loop over frames, `decode_rgb` the same with an array
of each. `convert`: from the file to a finished dataset folder, through reader, card and shard writer, JPEGs of 224 px; `convert_mp4` the
same stored as mp4; `convert_mp4_fitting` that of a clip without B-frames in groups of 12, unscaled, whose packets go in as they are, and
`decode_fitting` PyAV's loop over it. `encode`: simplejpeg alone, of the planes that are to be encoded; `ratio_bound` is what `convert`
to `decode` would be if nothing but decoding and that cost anything. `random`: one frame of a dataset at random, stored as JPEG and as
mp4 in groups of 8.

`wall_*` are seconds by the clock, for a folder of many such clips: `wall_convert` with two processes (the default of `vla convert`), from
their start to their end, beside PyAV's loop as it comes (`wall_decode`) and with all of FFmpeg's threads (`wall_decode_threads`). Made
clips are noisier than they are hard to decode, so of footage more of the time is decoding: `--file` measures a file of your own.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg

from benchmarks.command import parser_of
from vla.convert.card import Card
from vla.convert.engine import Settings, convert
from vla.convert.pictures import Encoding
from vla.convert.video_folder import VideoFolder
from vla.data.images import decode_frame
from vla.data.shard import Dataset
from vla.data.video import frame_times, frames_at, images_at, shrunk

RATE_HZ, SIZE, QUALITY = 30, 224, 90
RATIOS = (
    ("read", "decode_rgb"),
    ("convert", "decode"),
    ("convert", "decode_rgb"),
    ("convert_mp4", "decode"),
    ("convert_mp4_fitting", "decode_fitting"),
)


def pictures(height: int, width: int, count: int) -> Iterator[np.ndarray]:
    """A textured scene, panned over, with another that moves in front of it and the noise of a sensor."""
    rng = np.random.default_rng(0)
    scales = (8, 28, 112)
    scene, hand = (
        np.mean(
            [
                np.kron(rng.integers(0, 256, (2 * height // s + 1, 2 * width // s + 1, 3)), np.ones((s, s, 1)))[:height, :width]
                for s in scales
            ],
            0,
        )
        for _ in range(2)
    )
    noise = rng.normal(0, 3, (16, height, width, 1))
    for number in range(count):
        image = np.roll(scene, (number, 2 * number), (0, 1))
        top, left = (3 * number) % (height // 2), (5 * number) % (width // 2)
        image[top : top + height // 3, left : left + width // 3] = hand[: height // 3, : width // 3]
        yield (image + noise[rng.integers(16)]).clip(0, 255).astype(np.uint8)


def write_clip(path: Path, height: int, width: int, count: int, group: str = "30", between: str = "2") -> None:
    """H.264 of so many frames at RATE_HZ beside a captions.csv; `group`: frames between key frames, `between`: B-frames in a row."""
    path.parent.mkdir(exist_ok=True)
    with (path.parent / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "text"], [path.name, "move"]])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE_HZ, options={"g": group, "bf": between, "crf": "23", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, image in enumerate(pictures(height, width, count)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE_HZ)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode(path: Path, to_rgb: bool = False, threads: str | None = "NONE") -> None:
    """PyAV's own loop. `threads`: which of FFmpeg's kinds it may use (NONE: this one alone; None: as PyAV has it)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if threads == "NONE":
            stream.codec_context.thread_count = 1
        elif threads is not None:
            stream.thread_type = threads
        for frame in container.decode(stream):
            if to_rgb:
                frame.reformat(format="rgb24", threads=1).to_ndarray()  # its default starts threads for every frame


def card(store: str) -> Card:
    """Of a folder of clips whose pictures are stored as `jpgs` or `mp4`."""
    facts = {"name": "bench", "title": "bench", "homepage": "none", "licence": "none", "citation": "none", "facts": ["made here"]}
    rest = {"format": "video", "source": {"name": "bench"}, "supervision": "none", "instruction": {"from": "text"}}
    return Card.from_json({**facts, **rest, "cameras": {"camera": {"from": "video", "store": store}}})


def make_dataset(folder: Path, out: Path, store: str, image_size: int | None = SIZE, workers: int = 0) -> None:
    """From clips to a finished dataset; `image_size`: pixels of the shorter side, None as it is; `workers`: reading processes."""
    settings = Settings(encoding=Encoding(image_size=image_size, quality=QUALITY), workers=workers)
    report = convert(partial(VideoFolder, folder), card(store), out, settings)
    assert not report.bad


def draw(dataset: Dataset, count: int) -> None:
    """Decodes so many frames of the first episode, at random."""
    rng = np.random.default_rng(1)
    for number in rng.integers(0, len(dataset.episode(0).cameras["camera"].step), count):
        decode_frame(dataset.frame(0, "camera", int(number)))


def planes_of(path: Path) -> list[list[np.ndarray]]:
    """Y, Cb and Cr of every tenth frame, as JPEGs of it hold them."""
    found = []
    for frame in itertools.islice(frames_at(path, frame_times(path)), 0, None, 10):
        height, width = shrunk(frame, SIZE)
        small: Any = frame.reformat(width, height, "yuvj420p", dst_colorspace="ITU601")
        found.append([np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width].copy() for p in small.planes])
    return found


def spent_s(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of that clock."""
    before = clock()
    work()
    return clock() - before


def measure(height: int, width: int, frames: int, blocks: int) -> dict[str, float | int]:
    """CPU seconds of one clip through everything that this file compares, as frames/s and ratios."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        source, fitting = root / "source", root / "fitting"
        clip, fit = source / "clip.mp4", fitting / "clip.mp4"
        write_clip(clip, height, width, frames)
        write_clip(fit, height, width, frames, group="12", between="0")
        planes = planes_of(clip)
        stored = {}
        for store in ("jpgs", "mp4"):
            make_dataset(source, root / store, store)
            stored[store] = Dataset.open(root / store)
        at_s = (np.arange(frames) + 0.5) / RATE_HZ
        outs = iter(range(10**6))
        work: dict[str, Callable[[], object]] = {
            "decode": lambda: decode(clip),
            "decode_rgb": lambda: decode(clip, to_rgb=True),
            "decode_fitting": lambda: decode(fit),
            "encode": lambda: [simplejpeg.encode_jpeg_yuv_planes(*each, quality=QUALITY) for each in planes],
            "read": lambda: [None for _ in images_at(clip, at_s)],
            "convert": lambda: make_dataset(source, root / f"out{next(outs)}", "jpgs"),
            "convert_mp4": lambda: make_dataset(source, root / f"out{next(outs)}", "mp4"),
            "convert_mp4_fitting": lambda: make_dataset(fitting, root / f"out{next(outs)}", "mp4", image_size=None),
            "random_jpeg": lambda: draw(stored["jpgs"], frames),
            "random_mp4": lambda: draw(stored["mp4"], frames),
        }
        rows = [{key: spent_s(each, time.process_time) for key, each in work.items()} for _ in range(blocks)]
        facts: dict[str, float | int] = {"height": height, "width": width, "frames": frames, "blocks": blocks}
        facts |= {
            f"{key}_fps": round((len(planes) if key == "encode" else frames) / statistics.median(row[key] for row in rows)) for key in work
        }
        for key, other in RATIOS:
            facts[f"ratio_{key}_to_{other}"] = round(statistics.median(row[other] / row[key] for row in rows), 3)
        scale = frames / len(planes)
        facts["ratio_bound"] = round(statistics.median(row["decode"] / (row["decode"] + scale * row["encode"]) for row in rows), 3)
        sizes = {store: sum(path.stat().st_size for path in (root / store).glob("*.tar")) for store in stored}
        facts |= {"source_bytes": clip.stat().st_size, "jpgs_bytes": sizes["jpgs"], "mp4_bytes": sizes["mp4"]}
        return facts


def by_the_clock(write: Callable[[Path], object], clips: int, rounds: int) -> dict[str, float | int]:
    """A folder of `clips` clips (links to what `write` puts at a path), through PyAV's loop and through `convert` with two processes,
    in turn."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "source"
        folder.mkdir()
        write(folder / "clip0.mp4")
        frames = len(frame_times(folder / "clip0.mp4"))
        paths = [folder / f"clip{number}.mp4" for number in range(clips)]
        for path in paths[1:]:
            os.link(paths[0], path)
        with (folder / "captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path", "text"], *([path.name, "move"] for path in paths)])
        outs = iter(range(10**6))
        work: dict[str, Callable[[], object]] = {
            "decode": lambda: [decode(path, threads=None) for path in paths],
            "decode_threads": lambda: [decode(path, threads="AUTO") for path in paths],
            "convert": lambda: make_dataset(folder, root / f"out{next(outs)}", "jpgs", workers=2),
        }
        rows = [{key: spent_s(each, time.perf_counter) for key, each in work.items()} for _ in range(rounds)]
    facts: dict[str, float | int] = {"wall_frames": frames * clips, "wall_rounds": rounds}
    facts |= {f"wall_{key}_fps": round(frames * clips / statistics.median(row[key] for row in rows)) for key in work}
    for other in ("decode", "decode_threads"):
        facts[f"ratio_wall_convert_to_{other}"] = round(statistics.median(row[other] / row["convert"] for row in rows), 3)
    return facts


def main() -> None:
    """Prints each size as it is measured, or one JSON object."""
    parser = parser_of(__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--clips", type=int, default=300, help="of --frames frames each, in the folder that is timed by the clock")
    parser.add_argument("--rounds", type=int, default=3, help="of that")
    parser.add_argument("--file", type=Path, help="footage of your own instead of made clips: by the clock only")
    parser.add_argument("--sizes", nargs="+", default=["224x224", "456x256", "640x480", "1920x1080"], help="width x height of the source")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found: dict[str, object] = {"machine": machine()}
    for size in [args.file.name] if args.file else args.sizes:
        if args.file:
            facts = by_the_clock(partial(shutil.copy, args.file), args.clips, args.rounds)
        else:
            width, height = map(int, size.split("x"))
            facts = measure(height, width, args.frames, args.blocks)
            write = partial(write_clip, height=height, width=width, count=args.frames)
            facts |= by_the_clock(write, args.clips, args.rounds)
        found[size] = facts
        if not args.json:
            print(size, *(f"{key} {value}" for key, value in facts.items()), sep="\n  ")
    if args.json:
        print(json.dumps(found, indent=1))


def machine() -> dict[str, object]:
    """Processor, load and versions."""
    versions = {module.__name__: module.__version__ for module in (av, np, simplejpeg)} | {"python": platform.python_version()}
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return {"cpu": model[0], "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "versions": versions, "commit": commit}


if __name__ == "__main__":
    main()
