"""Pictures of a raw episode -> JPEG, re-used byte for byte where they are good already.

A JPEG that is to stay as it is is still decoded once (at an eighth of its size): what is damaged is found here, by name, and not in
training. Refused rather than guessed: CMYK and 16 bits per colour unless the card says so, and a camera's own note of how it was
held (EXIF) unless the card says whether it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from vla.convert.fields import BadEpisode
from vla.convert.raw import Clip, Encoded, Pictures
from vla.convert.vocabulary import Camera
from vla.data.format import MAX_PIXELS
from vla.data.images import decode_image, orientation
from vla.data.quarantine import BadSample
from vla.errors import Damaged


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
    """One encoded picture -> JPEG: the same bytes where it is an upright RGB JPEG that nothing is to be done to."""
    try:
        if _untouched(camera) and _fits(data, encoding) and orientation(data) == 1:
            simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, fastdct=True)
            return data
        image = decode_image(data, camera.exif, camera.bits, cmyk=camera.colour == "cmyk")
    except BadSample as error:
        declare = " (a card declares it: `exif: apply` or `ignore`, `bits: 16`, `colour: cmyk`)" if error.cause == "schema" else ""
        raise BadEpisode("image", f"{where}: {error}{declare}") from error
    except ValueError as error:
        raise BadEpisode("image", f"{where}: JPEG does not decode ({error})") from error
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


def _fits(data: bytes, encoding: Encoding) -> bool:
    """Whether it is a JPEG of colours and a size that shards take. ValueError for a JPEG without a readable header."""
    if data[:2] != b"\xff\xd8":
        return False
    height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
    small = encoding.image_size is None or min(height, width) <= encoding.image_size
    return small and kind in ("YCbCr", "Gray") and 0 < height * width <= MAX_PIXELS


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
