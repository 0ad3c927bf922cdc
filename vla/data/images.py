"""Encoded pictures -> pixels, kept in memory as far as a budget allows.

`decode_frame` is for what our shards hold, and fast; `decode_image` for anything that others wrote, normalised as it is declared to be
and refused where it is not so declared.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg

from vla.data.format import MAX_PIXELS
from vla.data.quarantine import BadSample
from vla.types import Frames, VideoFrames

if TYPE_CHECKING:
    from PIL import Image

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
        try:
            if simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out).shape == out.shape:
                return out
        except ValueError:  # `out` is too small for it, or it is no JPEG: found out below
            pass
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(height, width)
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except BadSample:
        raise
    except ValueError as error:
        raise BadSample("decode", f"image does not decode: {error}") from error


Exif = Literal["refuse", "apply", "ignore"]
FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)  # what Pillow raises on broken files


def decode_image(data: bytes, exif: Exif = "refuse", bits: int = 8, cmyk: bool = False) -> np.ndarray:
    """A JPEG, PNG or WEBP of any kind -> uint8 (H, W, 3) RGB; grey becomes RGB.

    Declared, since guessing would spoil data in silence: `exif`, whether a camera's note that the picture is to be turned or mirrored
    counts; `bits=16`, that the numbers are that wide (the high byte is kept); `cmyk`, that colours are printer's inks.
    BadSample with its cause: `decode` (damaged, or no such file), `oversize` (more than MAX_PIXELS, found before anything is allocated),
    `schema` (readable, and not as declared: sideways, 16 bits, CMYK, transparent).
    """
    if not (data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")):
        raise BadSample("decode", f"none of {', '.join(FORMATS)} ({len(data)} bytes)")
    if data[:2] == b"\xff\xd8" and not _may_be_turned(data):
        try:
            height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # a kind of JPEG that the fast decoder does not know
        else:
            _check_pixels(height, width)
            if kind not in ("CMYK", "YCCK"):
                return decode_jpeg(data)
    return _decode_by_pillow(data, exif, bits, cmyk)


def orientation(data: bytes) -> int:
    """How a camera says that it was held (EXIF 1 to 8), 1 where it says nothing. BadSample where the file does not open."""
    from PIL import Image

    if not _may_be_turned(data):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.getexif().get(_ORIENTATION) or 1
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise BadSample("decode", f"image does not decode: {error}") from error


def _may_be_turned(data: bytes) -> bool:
    return b"Exif\0\0" in data[: 1 << 16] or b"eXIf" in data or data[:4] == b"RIFF"


def _decode_by_pillow(data: bytes, exif: Exif, bits: int, cmyk: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    if data[1:4] == b"PNG" and data[24:25] == b"\x10" and bits != 16:  # Pillow would drop the bits silently
        raise BadSample("schema", "16 bits per colour, and 8 are declared")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.height, image.width)
            turned = image.getexif().get(_ORIENTATION) or 1
            if turned != 1 and exif == "refuse":
                raise BadSample("schema", f"EXIF says that it is to be turned ({turned}), and whether that counts is not declared")
            if data[:2] == b"\xff\xd8" and image.mode in ("RGB", "L"):
                pixels = Image.fromarray(decode_jpeg(data))  # stricter: Pillow fills damage with grey
            else:
                pixels = _as_rgb(image, bits, cmyk)
            if turned != 1 and exif == "apply":
                pixels.getexif()[_ORIENTATION] = turned
                pixels = ImageOps.exif_transpose(pixels)
            return np.asarray(pixels)
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("oversize", str(error)) from error
    except _UNREADABLE as error:
        raise BadSample("decode", f"image does not decode: {error}") from error


def _as_rgb(image: Image.Image, bits: int, cmyk: bool) -> Image.Image:
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getextrema()[3][0] != 255:
            raise BadSample("schema", "transparent; there is no colour to put behind it")
        return rgba.convert("RGB")
    if image.mode.startswith("I;16") and bits == 16:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGB", "L", "P", "1") or (image.mode == "CMYK" and cmyk):
        return image.convert("RGB")
    raise BadSample("schema", f"a picture of mode {image.mode}, which is not declared")


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:  # before a byte of it is allocated
        raise BadSample("oversize", f"image of {height} x {width} pixels; at most {MAX_PIXELS} are decoded")


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
