"""Pictures of our episodes, and mp4 files of bounded size with episodes one after another, as LeRobot 3.0 keeps them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla.data.images import decoded
from vla.data.video import import_av
from vla.types import Frames, VideoFrames


def files_of(frames: Frames | VideoFrames) -> Iterator[tuple[str, bytes]]:
    """A camera's pictures in order as (suffix, bytes of a file), nothing lost: a JPEG as it is stored, a frame of video as PNG."""
    if isinstance(frames, Frames):
        yield from (("jpg", jpeg) for jpeg in frames.jpeg)
        return
    for image in decoded(frames):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        yield "png", buffer.getvalue()


class VideoFiles:
    """The videos of one camera. H.264 with a key frame every other frame, so that any frame is one short seek, and no B-frames, so
    that frame k is shown at exactly k / rate."""

    FILE_BYTES = 200 << 20
    FILES_PER_CHUNK = 1000

    def __init__(self, root: Path, key: str, crf: int) -> None:
        self.root, self.key, self.crf = root, key, crf
        self._container: Any = None
        self._number, self._bytes, self._frames = -1, 0, 0

    def add(self, images: Iterable[np.ndarray], rate_hz: Fraction) -> dict[str, Any]:
        """One picture a step. Where they went: {chunk_index, file_index, from_timestamp, to_timestamp}."""
        av = import_av()
        if self._container is not None and self._bytes > self.FILE_BYTES:
            self.close()
        start = self._frames if self._container is not None else 0
        for image in images:
            if self._container is None:
                self._open(av, rate_hz, *image.shape[:2])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = self._frames, 1 / rate_hz
            self._mux(self._stream.encode(frame))
            self._frames += 1
        return {
            "chunk_index": self._number // self.FILES_PER_CHUNK,
            "file_index": self._number % self.FILES_PER_CHUNK,
            "from_timestamp": float(start / rate_hz),
            "to_timestamp": float(self._frames / rate_hz),
        }

    def close(self) -> None:
        if self._container is not None:
            self._mux(self._stream.encode())
            self._container.close()
            self._container = None

    def _open(self, av: Any, rate_hz: Fraction, height: int, width: int) -> None:
        self._number, self._bytes, self._frames = self._number + 1, 0, 0
        chunk, file = divmod(self._number, self.FILES_PER_CHUNK)
        path = self.root / "videos" / self.key / f"chunk-{chunk:03d}" / f"file-{file:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        options = {"crf": str(self.crf), "g": "2", "bf": "0", "preset": "medium", "threads": "1"}  # one thread: the same bytes everywhere
        self._stream = self._container.add_stream("libx264", rate=rate_hz, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = 1 / rate_hz

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            self._bytes += packet.size
            self._container.mux(packet)
