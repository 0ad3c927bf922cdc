"""JPEG bytes -> pixels, kept in memory as far as a budget allows."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from vla.data.format import MAX_PIXELS
from vla.data.quarantine import BadSample
from vla.types import Frames, VideoFrames

if TYPE_CHECKING:
    from vla.data.gop import Gop


def decode_frame(data: bytes | Gop, out: np.ndarray | None = None) -> np.ndarray:
    """What `Dataset.frame` gives -> uint8 (H, W, 3) RGB, in `out` if that has the image's shape. BadSample if it does not decode."""
    return decode_jpeg(data, out) if isinstance(data, bytes) else data.decode(out)


def decoded(frames: Frames | VideoFrames) -> Iterator[np.ndarray]:
    """All pictures of one camera of an episode, in order: uint8 (H, W, 3) RGB, one in memory at a time."""
    if isinstance(frames, VideoFrames):
        from vla.data.gop import decode_mp4

        yield from decode_mp4(frames.mp4)
    else:
        yield from map(decode_jpeg, frames.jpeg)


def decode_jpeg(data: bytes, out: np.ndarray | None = None) -> np.ndarray:
    """One JPEG -> uint8 (H, W, 3) RGB, in `out` if that has the image's shape. BadSample for what is no JPEG, has no RGB form, or is
    larger than MAX_PIXELS."""
    if out is not None:
        with suppress(ValueError):  # too small for it, or no JPEG: found out below
            if simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out).shape == out.shape:
                return out
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:  # before a byte of it is allocated
            raise BadSample("oversize", f"image of {height} x {width} pixels; at most {MAX_PIXELS} are decoded")
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except BadSample:
        raise
    except ValueError as error:
        raise BadSample("decode", f"image does not decode: {error}") from error


class FrameCache:
    """Decoded frames up to `limit_bytes`. The first to come stay: under a permuted order every frame is as likely to be needed
    again as any other, so replacing one gains nothing."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.held_bytes = limit_bytes, 0
        self._frames: dict[Hashable, np.ndarray] = {}

    def __reduce__(self) -> tuple:
        return FrameCache, (self.limit_bytes,)  # another process fills its own

    def get(self, key: Hashable) -> np.ndarray | None:
        return self._frames.get(key)

    def has_room(self, size: int) -> bool:
        return self.held_bytes + size <= self.limit_bytes

    def offer(self, key: Hashable, image: np.ndarray) -> None:
        """Keeps the frame if there is room. Kept frames are read-only: they are handed out many times."""
        image.flags.writeable = False
        if self.has_room(image.nbytes) and key not in self._frames:
            self._frames[key] = image
            self.held_bytes += image.nbytes
