"""The ResNet-18 that small policies see by: torchvision's, tensor by tensor; and how its map becomes tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.parts import ROBOTS, TINY, observation
from vla.backbones.stems import LightStem, ResNet18
from vla.errors import SchemaError, UnknownName, UserError
from vla.fused import join_norms
from vla.torchvision_cpu import prepare_torchvision


@torch.no_grad()
def test_it_is_torchvisions_and_takes_its_weights(tmp_path):
    prepare_torchvision()
    from torchvision.models import resnet18
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(0)
    theirs = resnet18(norm_layer=FrozenBatchNorm2d).eval()
    for name, buffer in theirs.named_buffers():
        buffer.uniform_(0.5, 1.5) if "var" in name or "weight" in name else buffer.normal_(std=0.1)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = ResNet18(weights=str(tmp_path / "model.safetensors")).build().eval()
    (note,) = ours.load_pretrained()
    assert "model.safetensors" in note

    maps = {}
    theirs.layer4.register_forward_hook(lambda module, args, out: maps.update(theirs=out))
    ours.layer4.register_forward_hook(lambda module, args, out: maps.update(ours=out))
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    level = torch.rand(2, 3, 64, 96)
    theirs((level - mean) / std)
    tokens = ours(2 * level - 1)
    torch.testing.assert_close(maps["ours"], maps["theirs"], rtol=1e-3, atol=1e-3)
    assert tokens.shape == (2, 2 * 3, 512)
    apart = (tokens - maps["ours"].flatten(2).transpose(1, 2))[0]  # the place's sines, the same for every image
    assert all((apart[i] - apart[j]).abs().max() > 0.1 for i in range(6) for j in range(i))


def test_frozen_norms_fold_into_convolutions_while_nobody_learns():
    torch.manual_seed(0)
    stem = ResNet18().build()
    for name, buffer in stem.named_buffers():
        buffer.uniform_(0.5, 1.5) if "var" in name or "weight" in name else buffer.normal_(std=0.1)
    images, kept = torch.rand(2, 3, 64, 96) * 2 - 1, {name: value.clone() for name, value in stem.state_dict().items()}
    with torch.no_grad():
        plain = stem(images)
        join_norms(stem)
        with Operations() as operations:
            torch.testing.assert_close(stem(images), plain, rtol=1e-4, atol=1e-4)
        assert "batch_norm" not in operations.names and operations.names.count("convolution") == 20
        stem.conv1.weight.mul_(0.5)  # who changes what was folded is seen
        stem.bn1.running_mean.mul_(0.5)
        stem.bn1.weight.mul_(2.0)
        torch.testing.assert_close(stem(images), plain, rtol=1e-4, atol=1e-4)
        stem.load_state_dict(kept)
    learned = stem(images)
    learned.sum().backward()
    assert stem.layer4[1].conv2.weight.grad is not None
    torch.testing.assert_close(learned.detach(), plain, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, stem.state_dict()[name]) for name, value in kept.items())


class Operations(TorchDispatchMode):
    """Names of what is asked of torch."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(SchemaError, match="not the weights of a ResNet-18"):
        ResNet18(weights=str(tmp_path / "other.safetensors")).build().load_pretrained()
    with pytest.raises(UserError, match="no file"):
        ResNet18(weights=str(tmp_path / "none.safetensors")).build().load_pretrained()
    with pytest.raises(UserError, match="norm='frozen'"):
        ResNet18(weights="x.safetensors", norm="group").build()
    with pytest.raises(UnknownName, match="frozen, group"):
        ResNet18(norm="batch").build()


@torch.no_grad()
@pytest.mark.parametrize(("stem", "tokens"), [(ResNet18(), 4), (ResNet18(keypoints=4, norm="group"), 1)])
def test_tokens_of_each_view_and_frame(stem, tokens):
    """Views that a robot lacks are there for none of its tokens, and a change of one image moves its tokens alone."""
    backbone = replace(TINY, image_size=64, stem=stem).build().eval()
    rng = np.random.default_rng(0)
    both, one = (observation(ROBOTS[0], rng, side=64) for _ in range(2))
    one = replace(one, images={"wrist": one.images["wrist"]})
    inputs = backbone.collate([both, one])
    words = int(inputs["word_BL"].shape[1])
    prefix = backbone.embed(inputs)
    assert len(prefix) == words + 2 * 2 * tokens  # two views of two frames
    assert prefix.valid_BS.sum(1).tolist() == [words + 4 * tokens, words + 2 * tokens]
    assert torch.equal(prefix.extras["image_BS"][0], torch.arange(len(prefix)) >= words)
    inputs["image_BVFHW3"][0, 1, 0] = 255 - inputs["image_BVFHW3"][0, 1, 0]
    moved = (backbone.embed(inputs).x_BSD - prefix.x_BSD)[0].abs().amax(-1) > 1e-6
    start = words + 2 * tokens
    assert torch.equal(moved, (torch.arange(len(prefix)) >= start) & (torch.arange(len(prefix)) < start + tokens))


def test_a_cell_of_a_keypoints_map_is_as_wide_as_its_stride():
    """The stem at 4 is the one of before `stride`, name by name; each doubling quarters the cells and adds a convolution."""
    torch.manual_seed(0)
    pixels, cells = torch.rand(2, 3, 64, 64) * 2 - 1, {}
    for stride in (2, 4, 8):
        stem = LightStem(4, 5, 2.0, stride)
        stem.convs.register_forward_hook(lambda module, args, out, stride=stride: cells.update({stride: out.shape[1:]}))
        assert stem(pixels).shape == (2, 1, 15)
    assert cells == {2: (5, 32, 32), 4: (5, 16, 16), 8: (5, 8, 8)}
    before = LightStem(4, 5, 2.0)
    assert {name: tuple(value.shape) for name, value in before.convs.state_dict().items() if name.endswith("weight")} == {
        "0.weight": (4, 3, 5, 5),
        "2.weight": (8, 4, 3, 3),
        "4.weight": (8, 8, 3, 3),
        "6.weight": (5, 8, 1, 1),
    }
    for stride in (0, 1, 3, 12):
        with pytest.raises(UserError, match=f"is {stride} pixels wide; give a power of two"):
            LightStem(4, 5, 2.0, stride)


@torch.no_grad()
def test_a_dot_is_found_where_it_is():
    """Keypoints that look for brightness, on maps of either stride: -1 is the first cell, 1 the last; cells lie on pixels 0, stride, ..."""
    for stride in (4, 8):
        stem = LightStem(2, 1, 4.0, stride)
        for layer in stem.convs:
            if hasattr(layer, "weight"):
                layer.weight.fill_(0.1), layer.bias.zero_()
        for x, y in ((12, 12), (44, 20), (20, 52)):
            pixels = torch.full((1, 3, 64, 64), 0.0)
            pixels[..., y - 2 : y + 2, x - 2 : x + 2] = 1.0
            found_x, found_y, _ = stem(pixels)[0, 0].tolist()
            want_x, want_y = (2 * (middle - 0.5) / (64 - stride) - 1 for middle in (x, y))
            assert abs(found_x - want_x) < 0.05 and abs(found_y - want_y) < 0.05
