"""Pictures of a raw episode -> JPEG, re-used byte for byte where they are good already.

A JPEG that is to stay as it is is still decoded once (at an eighth of its size): what is damaged is found here, by name, and not in
training. Refused rather than guessed: CMYK and 16 bits per colour unless the card says so, and a camera's own note of how it was
held (EXIF) unless the card says whether it counts.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from vla.convert.fields import BadEpisode
from vla.convert.raw import Clip, Encoded, Pictures
from vla.convert.vocabulary import Camera
from vla.data.format import MAX_PIXELS
from vla.errors import Damaged

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)  # what Pillow's decoders raise on broken files
_UPRIGHT = {2: ("horizontal", 0), 3: ("none", 180), 4: ("vertical", 0), 6: ("none", 90), 8: ("none", 270)}
"""EXIF orientation -> (flip, degrees clockwise) that bring the picture upright; 5 and 7 (mirrored and turned) no camera writes."""


@dataclass(frozen=True)
class Encoding:
    """`quality`: of JPEGs that have to be encoded (4:4:4, so that a small coloured object keeps its colour). `image_size`: the shorter
    side is shrunk to this many pixels, the other in proportion; None: as they are."""

    quality: int = 95
    image_size: int | None = None


def jpegs(pictures: Pictures, keep: np.ndarray, camera: Camera, encoding: Encoding, where: str) -> list[bytes]:
    """The pictures at the positions `keep` (rising) as JPEG. BadEpisode, with the picture named, where one is not as declared."""
    if isinstance(pictures, Clip):
        return _of_clip(pictures, keep, camera, encoding, where)
    out = []
    for number in keep.tolist():
        here = f"{where}, picture {number}"
        if isinstance(pictures, Encoded):
            out.append(reuse_or_encode(pictures.data[number], camera, encoding, here))
        else:
            out.append(_encode(_edit(_as_rgb(pictures.data[number], camera, here), camera, encoding, here), encoding))
    return out


def mp4_as_it_is(pictures: Pictures, keep: np.ndarray, camera: Camera, encoding: Encoding, where: str) -> bytes | None:
    """The same as the mp4 that a shard takes, where the source is video of that kind already; None where it is to be encoded."""
    if not isinstance(pictures, Clip) or not _untouched(camera):
        return None
    from vla.data.remux import remuxed

    try:
        return remuxed(pictures.path, np.asarray(pictures.time_s, np.float64)[keep], encoding.image_size)
    except Damaged as error:
        raise BadEpisode("image", f"{where}: {error}") from error


def reuse_or_encode(data: bytes, camera: Camera, encoding: Encoding, where: str) -> bytes:
    """One encoded picture -> JPEG: the same bytes where it is an RGB JPEG that nothing is to be done to."""
    size, kind = _jpeg_size(data, where) if data[:2] == b"\xff\xd8" else (None, "")
    turned = _orientation(data) if size else 1
    if turned != 1 and camera.exif == "refuse":
        raise BadEpisode("image", f"{where}: EXIF says it is to be turned ({turned}); say `exif: apply` or `exif: ignore` in the card")
    fits = size is not None and (encoding.image_size is None or min(size) <= encoding.image_size)
    if _untouched(camera) and fits and turned == 1 and kind in ("YCbCr", "Gray"):
        _decode_jpeg(data, where, smallest=True)
        return data
    image = _decode_jpeg(data, where) if kind in ("YCbCr", "Gray", "RGB") else _decode_any(data, camera, where)
    if turned != 1 and camera.exif == "apply":
        if turned not in _UPRIGHT:
            raise BadEpisode("image", f"{where}: EXIF orientation {turned}")
        image = turn(image, *_UPRIGHT[turned])
    return _encode(_edit(image, camera, encoding, where), encoding)


def turn(image: np.ndarray, flip: str, clockwise: int) -> np.ndarray:
    """(H, W, 3) turned clockwise by 0, 90, 180 or 270 degrees, then flipped."""
    image = np.rot90(image, -clockwise // 90)
    return image[:, ::-1] if flip == "horizontal" else image[::-1] if flip == "vertical" else image


def _untouched(camera: Camera) -> bool:
    return (camera.colour, camera.rotate, camera.flip, camera.crop) == ("rgb", 0, "none", None)


def _edit(image: np.ndarray, camera: Camera, encoding: Encoding, where: str) -> np.ndarray:
    if camera.colour == "bgr":
        image = image[..., ::-1]
    image = turn(image, camera.flip, camera.rotate)
    if camera.crop is not None:
        top, left, height, width = camera.crop
        if top + height > image.shape[0] or left + width > image.shape[1]:
            raise BadEpisode("image", f"{where}: {image.shape[0]} x {image.shape[1]} pixels; crop {list(camera.crop)} does not lie inside")
        image = image[top : top + height, left : left + width]
    size = encoding.image_size
    if size is not None and min(image.shape[:2]) > size:
        from PIL import Image

        factor = size / min(image.shape[:2])
        height, width = (max(round(side * factor), size) for side in image.shape[:2])
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.LANCZOS))
    return image


def _encode(image: np.ndarray, encoding: Encoding) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=encoding.quality, colorsubsampling="444")


def _as_rgb(image: np.ndarray, camera: Camera, where: str) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.dtype == np.uint16 and camera.bits == 16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS:
        raise BadEpisode("image", f"{where}: {image.dtype} {image.shape}; expected uint8 (H, W, 3) of at most {MAX_PIXELS} pixels")
    return image


def _jpeg_size(data: bytes, where: str) -> tuple[tuple[int, int], str]:
    try:
        height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadEpisode("image", f"{where}: no readable JPEG ({error})") from error
    _check_pixels(height, width, where)
    return (height, width), kind


def _check_pixels(height: int, width: int, where: str) -> None:
    if height * width > MAX_PIXELS:  # before a byte of it is allocated
        raise BadEpisode("image", f"{where}: {height} x {width} pixels; at most {MAX_PIXELS} are decoded")


def _decode_jpeg(data: bytes, where: str, smallest: bool = False) -> np.ndarray:
    try:
        if smallest:
            return simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, fastdct=True)
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise BadEpisode("image", f"{where}: JPEG does not decode ({error})") from error


def _decode_any(data: bytes, camera: Camera, where: str) -> np.ndarray:
    from PIL import Image

    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10" and camera.bits != 16:  # Pillow would drop bits silently
        raise BadEpisode("image", f"{where}: 16 bits per colour; say `bits: 16` in the card if that is so by intent")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.height, image.width, where)
            return _pillow_rgb(image, camera, where)
    except BadEpisode:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise BadEpisode("image", f"{where}: no readable {', '.join(FORMATS)} ({error})") from error


def _pillow_rgb(image: Image.Image, camera: Camera, where: str) -> np.ndarray:
    if image.mode in ("RGB", "L", "P", "1") or (image.mode == "CMYK" and camera.colour == "cmyk"):
        return np.asarray(image.convert("RGB"))
    if image.mode in ("RGBA", "LA"):
        rgba = np.asarray(image.convert("RGBA"))
        if (rgba[..., 3] != 255).any():
            raise BadEpisode("image", f"{where}: transparent; there is no colour to put behind it")
        return rgba[..., :3]
    if image.mode.startswith("I;16") and camera.bits == 16:
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    raise BadEpisode("image", f"{where}: {image.mode} picture; say `colour: cmyk` or `bits: 16` in the card if it is one by intent")


def _orientation(data: bytes) -> int:
    """The orientation (1 to 8) that a JPEG's EXIF block states; 1 where it states none. Reads headers alone."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] not in (0xDA, 0xD9):
        (length,) = struct.unpack_from(">H", data, place + 2)
        block = data[place + 4 : place + 2 + length]
        if data[place + 1] == 0xE1 and block[:6] == b"Exif\0\0":
            return _tiff_orientation(block[6:])
        place += 2 + max(length, 2)
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for row in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", tiff, row)
        if (tag, kind) == (0x0112, 3):
            return struct.unpack_from(f"{order}H", tiff, row + 8)[0]
    return 1


def _of_clip(clip: Clip, keep: np.ndarray, camera: Camera, encoding: Encoding, where: str) -> list[bytes]:
    from vla.data import video

    times = np.asarray(clip.time_s, np.float64)[keep]
    try:
        if _untouched(camera):
            return list(video.jpegs_at(clip.path, times, encoding.quality, encoding.image_size))
        images: Iterator[np.ndarray] = video.images_at(clip.path, times)
        return [_encode(_edit(image, camera, encoding, where), encoding) for image in images]
    except Damaged as error:
        raise BadEpisode("image", f"{where}: {error}") from error


def steps_of(pictures: Pictures, steps: int, where: str) -> np.ndarray:
    """At which steps the pictures were seen, int64, checked."""
    step = np.asarray(pictures.step)
    held: Sequence | np.ndarray = pictures.time_s if isinstance(pictures, Clip) else pictures.data
    if step.ndim != 1 or step.dtype.kind not in "iu" or len(step) != len(held) or (np.diff(step) <= 0).any():
        raise BadEpisode("schema", f"{where}: {len(step)} step numbers for {len(held)} pictures, which must rise")
    if len(step) and (step[0] < 0 or step[-1] >= steps):
        raise BadEpisode("schema", f"{where}: pictures at steps {step[0]}..{step[-1]} of {steps}")
    return step.astype(np.int64)
