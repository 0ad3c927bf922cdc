"""Pictures for checkpoints that were trained through TensorFlow: JPEG, Lanczos and crop as its own functions give them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from vla.sim.external import centre_crop, jpeg_round_trip, lanczos

AREA = 0.9


def drawn(side: int) -> np.ndarray:
    """Slopes, hard edges and noise: uint8 (3, side, side, 3)."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 255, side), np.linspace(0, 255, side))
    blocks = np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((side // 16, side // 16, 1)))
    return np.stack([np.stack([x, y, 255 - x], -1), blocks, rng.integers(0, 256, (side, side, 3))]).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs the extra tfds")
@pytest.mark.parametrize("size", [224, 320])
def test_pictures_are_tensorflows(tmp_path, size):
    """JPEG to the bit; what is resized to one level, where a sum falls on the edge between two."""
    images = drawn(256)
    np.save(tmp_path / "in.npy", images)
    words = [sys.executable, "-m", "tests.sim.tf_pictures", str(tmp_path / "in.npy"), str(tmp_path / "out.npz"), str(size), str(AREA)]
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    want = np.load(tmp_path / "out.npz")
    found = {
        "jpeg": [jpeg_round_trip(image) for image in images],
        "resized": [lanczos(image, size) for image in images],
        "cropped": [centre_crop(image, AREA) for image in want["resized"]],
    }
    error = {name: np.abs(np.stack(pictures).astype(int) - want[name]) for name, pictures in found.items()}
    assert error["jpeg"].max() == 0
    for name in ("resized", "cropped"):
        assert error[name].max() <= 1 and error[name][1:].mean() < 2e-3  # on a slope every sum falls there


def test_a_resized_picture_keeps_its_grey_and_its_place():
    """No TensorFlow needed: constants stay, a picture of the same size is itself, and mirroring commutes."""
    images = drawn(64)
    for size in (24, 100):
        assert (lanczos(np.full((64, 48, 3), 77, np.uint8), size) == 77).all()
        for image in images:
            assert np.abs(lanczos(image[:, ::-1], size).astype(int) - lanczos(image, size)[:, ::-1]).max() <= 1
    assert (lanczos(images[2], 64) == images[2]).all() and (centre_crop(images[2], 1.0) == images[2]).all()
