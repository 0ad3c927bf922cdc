from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from vla.data.augment import OCTO, OPENVLA, PI0, Augment
from vla.errors import UserError
from vla.noise import Noise


def pictures(B=3, V=2, F=2, H=24, W=32, seed=0) -> torch.Tensor:
    """Smooth random images, so that interpolation is no noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(B * V * F, 3, 4, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(H, W), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().byte().reshape(B, V, F, 3, H, W).permute(0, 1, 2, 4, 5, 3).contiguous()


def noise(B=3, first=0, seed=0) -> Noise:
    return Noise(torch.arange(first, first + B), seed)


def only(**settings):
    return Augment(**settings)


def test_nothing_asked_for_changes_nothing():
    images = pictures()
    assert Augment()(images, noise()) is images
    assert torch.equal(only(hue=1e-9)(images, noise()), images)


@pytest.mark.parametrize("augment", [PI0, OPENVLA, OCTO], ids=["pi0", "openvla", "octo"])
def test_a_sample_s_draw_depends_on_its_position_alone(augment):
    images = pictures(B=6)
    whole = augment(images, noise(6, first=100))
    assert whole.dtype == torch.uint8 and whole.shape == images.shape and not torch.equal(whole, images)
    for rows in ([0, 1, 2], [3], [5, 4]):  # other batches, another order
        part = augment(images[rows], Noise(torch.tensor(rows) + 100))
        assert torch.equal(part, whole[rows])
    assert torch.equal(augment(images, noise(6, first=100)), whole)
    assert not torch.equal(augment(images, noise(6, first=100, seed=1)), whole)
    same = images[:1].expand(6, *images.shape[1:])
    assert len({augment(same, noise(6))[row].numpy().tobytes() for row in range(6)}) == 6


def test_frames_of_a_history_change_alike_and_views_do_not():
    images = pictures(B=4, V=2, F=1).expand(4, 2, 3, 24, 32, 3)
    images = images[:, :1].expand(4, 2, 3, 24, 32, 3)
    out = PI0(images, noise(4))
    assert torch.equal(out[:, :, 0], out[:, :, 1]) and torch.equal(out[:, :, 0], out[:, :, 2])
    assert not torch.equal(out[:, 0], out[:, 1])
    more_views = PI0(torch.cat([images, images], 1), noise(4))
    assert torch.equal(more_views[:, :2], out)


def test_a_centred_crop_is_the_resized_middle():
    images = pictures(B=1, V=1, F=1, H=40, W=60)
    draws = torch.full((1, 1, 10), 0.5)  # the middle of every range
    out = only(crop_area=(0.25, 0.25))(images, Fixed(draws))
    middle = Image.fromarray(images[0, 0, 0, 10:30, 15:45].numpy()).resize((60, 40), Image.Resampling.BILINEAR)
    inner = np.s_[4:-4, 4:-4]  # at the border, one interpolates with what lies outside the crop and the other does not
    assert np.abs(out[0, 0, 0].numpy().astype(int) - np.asarray(middle))[inner].max() <= 4


class Fixed:
    """Stands in for noise with given draws."""

    def __init__(self, draws: torch.Tensor) -> None:
        self.draws = draws

    def uniform(self, stream: str, *shape: int) -> torch.Tensor:
        assert shape == self.draws.shape[1:]
        return self.draws


def drawn(**at) -> Fixed:
    names = ("area", "ratio", "top", "left", "angle", "brightness", "shift", "contrast", "saturation", "hue")
    draws = torch.full((1, 1, 10), 0.5)
    for name, value in at.items():
        draws[0, 0, names.index(name)] = value
    return Fixed(draws)


def test_a_quarter_turn_is_numpy_s():
    images = pictures(B=1, V=1, F=2, H=32, W=32)
    out = only(rotate_deg=180)(images, drawn(angle=0.75))
    turned = np.rot90(images[0, 0].numpy(), -1, axes=(1, 2))
    other = np.rot90(images[0, 0].numpy(), 1, axes=(1, 2))
    assert min(np.abs(out[0, 0].numpy().astype(int) - want).max() for want in (turned, other)) <= 1
    half = only(rotate_deg=180)(images, drawn(angle=1.0))
    assert (half[0, 0].int() - images[0, 0].flip(1, 2).int()).abs().max() <= 1


def test_turning_keeps_proportions_and_continues_the_edge():
    images = torch.zeros(1, 1, 1, 40, 80, 3, dtype=torch.uint8)
    images[..., 18:22, 10:70, :] = 255  # a bar of 60 x 4
    out = only(rotate_deg=180)(images, drawn(angle=0.75))[0, 0, 0, ..., 0]
    lit = (out > 127).nonzero()
    assert (lit[:, 1].max() - lit[:, 1].min() + 1, len(lit[:, 0].unique())) == (4, 40)  # upright, 4 wide, cut by the height
    white = torch.full((1, 1, 1, 20, 20, 3), 200, dtype=torch.uint8)
    assert (only(rotate_deg=45)(white, drawn(angle=1.0)) == 200).all()


def test_colours_are_pil_s_and_hue_is_colorsys_s():
    images = pictures(B=1, V=1, F=1)
    picture = Image.fromarray(images[0, 0, 0].numpy())
    for name, enhancer in (
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ):
        for factor in (0.4, 1.0, 1.7):
            out = only(**{name: (factor, factor)})(images, noise(1))
            assert np.abs(out[0, 0, 0].numpy().astype(int) - np.asarray(enhancer(picture).enhance(factor))).max() <= 2, (name, factor)
    lighter = only(brightness_shift=0.2)(images, drawn(shift=1.0))
    assert torch.equal(lighter, (images.int() + 51).clamp(max=255).byte())
    out = only(hue=0.5)(images, drawn(hue=0.7))  # turned by 0.2 of the circle
    for y, x in np.random.default_rng(0).integers(0, 24, (40, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[0, 0, 0, y, x].numpy() / 255))
        want = np.array(colorsys.hsv_to_rgb((hue + 0.2) % 1, saturation, value)) * 255
        assert np.abs(out[0, 0, 0, y, x].numpy() - want).max() <= 1.01
    grey = torch.full((1, 1, 1, 4, 4, 3), 77, dtype=torch.uint8)
    assert torch.equal(only(hue=0.5, saturation=(0.0, 3.0))(grey, noise(1)), grey)


def test_draws_fill_their_ranges():
    images = torch.full((400, 1, 1, 2, 2, 3), 100, dtype=torch.uint8)
    level = only(brightness=(0.5, 1.5))(images, noise(400))[:, 0, 0, 0, 0, 0].float() / 100
    assert 0.5 <= level.min() < 0.53 and 1.47 < level.max() <= 1.5 and abs(level.mean() - 1.0) < 0.05
    ramp = torch.arange(100, dtype=torch.uint8).view(1, 1, 1, 1, 100, 1).expand(400, 1, 1, 6, 100, 3)
    out = only(crop_area=(0.25, 0.25))(ramp, noise(400))[:, 0, 0, 3, :, 0].float()
    left = out[:, 0]
    assert left.min() <= 2 and 46 <= left.max() <= 50  # the crop's left edge lies anywhere from 0 to half
    assert ((out[:, 99] - left - 49.5).abs() <= 1).all()
    down = ramp.transpose(3, 4)
    top = only(crop_area=(0.25, 0.25))(down, noise(400))[:, 0, 0, 0, 3, 0].float()
    assert top.min() <= 2 and 46 <= top.max() <= 50 and abs(np.corrcoef(left, top)[0, 1]) < 0.15


def test_steady_cameras_keep_their_pixels_in_place():
    table = PI0.moved([("third_person", "wrist"), ("wrist_left",)], 2)
    assert table.tolist() == [[True, False], [False, True]]
    assert PI0.moved([("a", "b")], 3, slots=("wrist", "a", "b")).tolist() == [[False, True, True]]
    moving = replace(PI0, brightness=(1.0, 1.0), contrast=(1.0, 1.0), saturation=(1.0, 1.0))
    images = pictures(B=2)
    out = moving(images, noise(2), table[[0, 1]])
    assert torch.equal(out[0, 1], images[0, 1]) and torch.equal(out[1, 0], images[1, 0])
    assert not torch.equal(out[0, 0], images[0, 0]) and not torch.equal(out[1, 1], images[1, 1])


def test_an_image_in_the_corner_of_a_larger_tensor_is_changed_as_if_alone():
    small = pictures(B=2, V=1, F=1, H=20, W=28)
    canvas = torch.zeros(2, 1, 1, 32, 40, 3, dtype=torch.uint8)
    canvas[..., :20, :28, :] = small
    size = torch.tensor([20, 28]).expand(2, 1, 2)
    for augment in (PI0, OPENVLA, OCTO):
        out, alone = augment(canvas, noise(2), size_BV2=size), augment(small, noise(2))
        assert (out[..., :20, :28, :].int() - alone.int()).abs().max() <= 1
        assert not out[..., 20:, :, :].any() and not out[..., 28:, :].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_area": (0.5, 1.5)}, "crop_area"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"brightness": (1.2, 0.8)}, "brightness"),
        ({"contrast": (-1.0, 1.0)}, "contrast"),
        ({"hue": 0.6}, "hue"),
        ({"rotate_deg": -5.0}, "rotate_deg"),
        ({"saturation": (0.5, float("inf"))}, "saturation"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=f"augment: {message}"):
        Augment(**settings)
