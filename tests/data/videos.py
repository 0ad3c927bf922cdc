"""Small video files for the tests, written by PyAV: each frame shows its number as 16 black and white squares."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, CELL = 16, 8


def numbered(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (H, W, 3): 16 cells of 8 px, white where the bit is set (lowest first); grey elsewhere."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 4)
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 255 * (number >> bit & 1)
    return image


def number_of(image: np.ndarray) -> int:
    """The inverse of `numbered`, which survives any encoding that leaves black from white."""
    cells = [image[CELL * row + 3 : CELL * row + 6, CELL * column + 3 : CELL * column + 6] for row in range(4) for column in range(4)]
    return sum(int(cell.mean() > 127) << bit for bit, cell in enumerate(cells))


def write_video(
    path: Path,
    frames: int | Sequence[np.ndarray],
    codec: str = "libx264",
    rate: Fraction | int = 30,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    rotation: int = 0,
    pix_fmt: str = "yuv420p",
) -> Path:
    """`pts`: ticks of `time_base` at which each frame is shown (default: one after the other at `rate`)."""
    pictures = [numbered(i) for i in range(frames)] if isinstance(frames, int) else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if time_base is not None:
            stream.time_base = stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = (pts[i] if pts is not None else i), time_base or 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sequential(path: Path) -> list[np.ndarray]:
    """Every frame, as a plain decoder gives them one after the other."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
