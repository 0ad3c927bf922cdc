"""Benchmarks whose simulators live in environments of their own (LIBERO, SimplerEnv, CALVIN): finding them, and their pictures."""

from __future__ import annotations

import importlib.util
import io
import math
from functools import cache

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
    """uint8 (H, W, 3) -> (size, size, 3) by Lanczos-3 with antialiasing, as `tf.image.resize(method="lanczos3", antialias=True)` does.

    Not by Pillow, which rounds and cuts to bytes between rows and columns: beside TensorFlow that is up to 37 levels at hard edges.
    """
    height, width = image.shape[:2]
    rows_HWC = np.tensordot(_lanczos_weights(height, size), image.astype(np.float32), axes=1)
    pixels = np.tensordot(rows_HWC, _lanczos_weights(width, size), axes=(1, 1)).swapaxes(1, 2)
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


@cache
def _lanczos_weights(source: int, target: int) -> np.ndarray:
    """float32 (target, source): how much of each pixel goes into each new one; rows sum to 1."""
    scale = source / target
    away = (np.arange(source) + 0.5 - (np.arange(target)[:, None] + 0.5) * scale) / max(scale, 1.0)
    weights = np.where(np.abs(away) < 3, np.sinc(away) * np.sinc(away / 3), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """What RLDS's storing did to the training images: TensorFlow's defaults, which are quality 95, halved chroma, the accurate transform to
    write (simplejpeg has it not) and the fast one to read (Pillow has it not)."""
    from PIL import Image

    jpeg = io.BytesIO()
    Image.fromarray(image).save(jpeg, "JPEG", quality=95, subsampling="4:2:0")
    return simplejpeg.decode_jpeg(jpeg.getvalue(), fastdct=True)


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
    # TensorFlow's way from [0, 1] to bytes: 256 levels of equal width but the last, and not the nearest one.
    return np.floor((upper * (1 - down) + lower * down) / 255 * 255.5).astype(np.uint8)
