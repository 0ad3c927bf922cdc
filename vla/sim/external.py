"""Benchmarks whose simulators live in environments of their own (LIBERO, SimplerEnv, CALVIN): finding them, and their pictures."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import simplejpeg

from vla.errors import UserError

ELSEWHERE = (
    "Its environment needs Python 3.10 or newer, numpy, scipy, gymnasium, pillow and simplejpeg beside it; name it with --sim-python."
)


def need(module: str, suite: str, install: str) -> None:
    """Raises UserError, with the fix in one line, if the interpreter that the simulator runs in lacks a module."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        found = False
    if not found:
        raise UserError(f"{suite} needs the package {module.split('.')[0]}, which is not installed here. {install} {ELSEWHERE}")


def lanczos(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (size, size, 3) by Lanczos-3 with antialiasing, as `tf.image.resize(method="lanczos3", antialias=True)` does."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """What RLDS's storing did to the training images: TensorFlow's defaults, quality 95 and halved chroma."""
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=95, colorsubsampling="420")
    return simplejpeg.decode_jpeg(jpeg)


def centre_crop(image: np.ndarray, area: float) -> np.ndarray:
    """The middle `area` of a picture, enlarged to the old size: bilinear between the corners, as `tf.image.crop_and_resize`."""
    side = math.sqrt(area)
    rows, columns = (((1 - side) / 2 + side * np.linspace(0, 1, n)) * (n - 1) for n in image.shape[:2])
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    down, across = (rows - top)[:, None, None], (columns - left)[None, :, None]
    pixels = image.astype(np.float64)
    upper = pixels[top][:, left] * (1 - across) + pixels[top][:, right] * across
    lower = pixels[bottom][:, left] * (1 - across) + pixels[bottom][:, right] * across
    return np.floor(upper * (1 - down) + lower * down + 0.5).astype(np.uint8)
