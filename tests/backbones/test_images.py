"""Stacking and fitting of uint8 images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla.backbones.images import Pixels, area_within, fit_square, letterbox, longest_edge, normalize, resize, stack_images
from vla.errors import SchemaError, UnknownName
from vla.torchvision_cpu import prepare_torchvision
from vla.types import Observation


def seen(**sizes: tuple[int, int]) -> Observation:
    images = {role: np.full((1, *size, 3), index + 1, dtype=np.uint8) for index, (role, size) in enumerate(sizes.items())}
    return Observation(images, np.zeros((1, 2)), "open", "narrow")


def test_views_of_one_size_need_no_sizes_and_missing_ones_are_told():
    inputs, roles = stack_images([seen(front=(8, 6), wrist=(8, 6)), seen(front=(8, 6))], ())
    assert set(inputs) == {"image_BVFHW3", "image_valid_BV"} and roles == [["front", "wrist"], ["front"]]
    assert inputs["image_BVFHW3"].shape == (2, 2, 1, 8, 6, 3) and inputs["image_valid_BV"].tolist() == [[True, True], [True, False]]
    assert set(stack_images([seen(front=(8, 6))] * 2, ())[0]) == {"image_BVFHW3"}  # nothing is missing


def test_sizes_are_kept_where_they_differ():
    inputs, _ = stack_images([seen(front=(8, 6), wrist=(4, 10))], ())
    assert inputs["image_size_BV2"].tolist() == [[[8, 6], [4, 10]]]
    image = inputs["image_BVFHW3"][0, 1, 0, ..., 0]
    assert image.shape == (8, 10) and (image[:4] == 2).all() and not image[4:].any()


def test_a_roster_gives_the_order():
    """And no room for views that nobody in the batch has."""
    inputs, roles = stack_images([seen(wrist=(4, 4)), seen(wrist=(4, 4), front=(4, 4))], ("front", "wrist", "left"))
    assert roles == [["wrist"], ["front", "wrist"]]
    assert inputs["image_BVFHW3"][:, :, 0, 0, 0, 0].tolist() == [[1, 0], [2, 1]]


def test_without_any_image_there_is_an_empty_one():
    inputs, roles = stack_images([seen(), seen()], ())
    assert inputs["image_BVFHW3"].shape[:3] == (2, 1, 1) and not inputs["image_BVFHW3"].any() and roles == [[], []]


def test_wrong_images_are_named():
    wrong = Observation({"front": np.zeros((1, 4, 4, 3), dtype=np.float32)}, np.zeros((1, 2)), "open", "narrow")
    with pytest.raises(SchemaError, match="camera 'front'.*uint8.*float32"):
        stack_images([wrong], ())
    with pytest.raises(UnknownName, match="filter 'nearest'.*bicubic"):
        Pixels(filter="nearest")


def test_histories_of_different_lengths_do_not_share_a_batch():
    longer = Observation({"front": np.zeros((2, 4, 4, 3), dtype=np.uint8)}, np.zeros((2, 2)), "open", "narrow", (-0.1, 0.0))
    inputs, _ = stack_images([longer], ())
    assert inputs["image_BVFHW3"].shape == (1, 1, 2, 4, 4, 3)
    with pytest.raises(SchemaError, match="same number of history frames"):
        stack_images([longer, seen(front=(4, 4))], ())


def test_letterbox_is_centred_in_the_means_colour():
    image = torch.full((1, 3, 2, 6), 200, dtype=torch.uint8)
    square = letterbox(image, Pixels(fit="letterbox"))
    assert square.shape == (1, 3, 6, 6) and square[0, 0, :, 0].tolist() == [127, 127, 200, 200, 127, 127]
    assert fit_square(image, 6, Pixels(fit="letterbox"), torch.float32)[0, 0, 0, 0] == pytest.approx((127 / 255 - 0.5) / 0.5)


def test_normalize():
    level = normalize(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1), Pixels(), torch.float32)
    assert level[:, 0, 0, 0].tolist() == [-1.0, 1.0]


def test_areas_are_the_librarys():
    prepare_torchvision()
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = np.random.default_rng(0)
    for height, width in rng.integers(10, 2000, (200, 2)).tolist():
        assert area_within(height, width, 28, 3136, 1003520) == smart_resize(height, width, 28, 3136, 1003520)
    with pytest.raises(SchemaError, match="too narrow"):
        area_within(2, 1000, 28, 3136, 1003520)


def test_resizing_is_pils_to_a_level():
    """What OpenVLA's processor resizes with, on the machine that serves."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    want = np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.BICUBIC)).astype(int)
    got = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], 28, 28, Pixels())[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - want).max() <= 1


def test_longest_edges_are_the_librarys():
    prepare_torchvision()
    from transformers.models.smolvlm.image_processing_smolvlm import get_resize_output_image_size

    rng = np.random.default_rng(0)
    for height, width in rng.integers(10, 2000, (200, 2)).tolist():
        assert longest_edge(height, width, 512) == get_resize_output_image_size(torch.zeros(3, height, width), 512)
