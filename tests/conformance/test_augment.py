"""Published augmentations, measured on images that show each change alone (openpi `preprocessing_pytorch.py`; OpenVLA `datasets.py`)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from vla.data.augment import OPENVLA, PI0, Augment
from vla.noise import Noise

ROWS, SIDE = 200, 100
STILL = torch.zeros(ROWS, 1, dtype=torch.bool)
PLAIN = {"brightness": (1.0, 1.0), "brightness_shift": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


def changed(augment: Augment, image_HW3: torch.Tensor, moved_BV: torch.Tensor | None = None) -> torch.Tensor:
    """The same image under 200 draws, float (200, H, W, 3)."""
    images = image_HW3.to(torch.uint8).expand(ROWS, 1, 1, *image_HW3.shape)
    return augment(images, Noise(torch.arange(ROWS)), moved_BV)[:, 0, 0].float()


def fills(value_B: torch.Tensor, low: float, high: float, slack: float) -> bool:
    """Draws lie in low..high and reach both ends."""
    inside = value_B.min() >= low - slack and value_B.max() <= high + slack
    return bool(inside and value_B.min() < low + 0.06 * (high - low) + slack and value_B.max() > high - 0.06 * (high - low) - slack)


def ramp(side: int = SIDE) -> torch.Tensor:
    return torch.arange(side).view(1, side, 1).expand(side, side, 3) * 2 + 20


@pytest.mark.parametrize("augment, side", [(PI0, 0.95), (OPENVLA, math.sqrt(0.9))], ids=["pi0", "openvla"])
def test_crops(augment, side):
    """pi0: 0.95 of each side; OpenVLA: 0.9 of the area. The slope of a ramp is the side of the crop."""
    out = changed(replace(augment, rotate_deg=0.0, **PLAIN), ramp())
    slope_B = (out[:, 50, 90, 0] - out[:, 50, 10, 0]) / 80 / 2
    assert (slope_B - side).abs().max() < 0.015
    assert out[:, 50, 50, 0].std() > 1  # and it lies anywhere


def test_pi0_turns_by_five_degrees():
    out = changed(replace(PI0, crop_area=(1.0, 1.0), **PLAIN), ramp())
    across_B, down_B = out[:, 50, 70, 0] - out[:, 50, 30, 0], out[:, 70, 50, 0] - out[:, 30, 50, 0]
    assert fills(torch.rad2deg(torch.atan2(down_B, across_B)), -5.0, 5.0, slack=0.8)


def test_pi0_colours():
    """Jitter 0.3 / 0.4 / 0.5: factors of brightness, of contrast (about the mean) and of saturation (about grey)."""
    flat = torch.full((8, 8, 3), 100)
    assert fills(changed(PI0, flat, STILL)[:, 0, 0, 0] / 100, 0.7, 1.3, slack=0.01)
    halves = flat.clone()
    halves[:, :4], halves[:, 4:] = 80, 120
    out = changed(replace(PI0, brightness=(1.0, 1.0)), halves, STILL)
    assert fills((out[:, 0, 7, 0] - out[:, 0, 0, 0]) / 40, 0.6, 1.4, slack=0.03)
    colour = torch.tensor([140, 100, 60]).expand(8, 8, 3)
    out = changed(replace(PI0, brightness=(1.0, 1.0), contrast=(1.0, 1.0)), colour, STILL)
    assert fills((out[:, 0, 0, 0] - out[:, 0, 0, 2]) / 80, 0.5, 1.5, slack=0.03)


def test_openvla_colours():
    """Brightness +-0.2 (a shift), contrast and saturation 0.8 .. 1.2."""
    flat = torch.full((8, 8, 3), 100)
    assert fills(changed(replace(OPENVLA, hue=0.0), flat, STILL)[:, 0, 0, 0], 100 - 51, 100 + 51, slack=1.1)
    halves = flat.clone()
    halves[:, :4], halves[:, 4:] = 80, 120
    out = changed(replace(OPENVLA, brightness_shift=0.0, hue=0.0), halves, STILL)
    assert fills((out[:, 0, 7, 0] - out[:, 0, 0, 0]) / 40, 0.8, 1.2, slack=0.03)
