"""How the tiny backbone's images become tokens: light convolutions with keypoints, or a ResNet-18 as small policies are published with.

Spatial softmax (Finn et al. 2016; Levine et al. 2016) turns each feature map into one image coordinate. ACT (Zhao et al. 2023) makes each
place of a ResNet's last map a token; Diffusion Policy (Chi et al. 2023) reads keypoints from it, with group norms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vla.backbones.images import per_channel
from vla.errors import SchemaError, UnknownName, UserError

NORMS = ("frozen", "group")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels on the 0..1 scale: what ResNets are shown."""


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 (He et al. 2016).

    `keypoints`: so many image coordinates make one token an image (Diffusion Policy: 32); 0 makes every place of the last map, a 32nd of
    the image's side, a token (ACT). `norm`: `frozen` batch norms, whose statistics come with the weights (ACT); or `group` (Diffusion
    Policy). `weights`: a safetensors file with torchvision's names (such as timm/resnet18.tv_in1k) for a new run's first step.
    """

    kind: ClassVar[str] = "stem.resnet18"
    keypoints: int = 0
    norm: str = "frozen"
    weights: str = ""

    def build(self) -> ResNetStem:
        if self.norm not in NORMS:
            raise UnknownName("norm of a ResNet", self.norm, NORMS)
        if self.weights and self.norm != "frozen":
            raise UserError("a ResNet's weights were made with batch norm: they need norm='frozen'")
        return ResNetStem(self)


class LightStem(nn.Module):
    """Images in -1..1 (N, 3, H, W) -> (N, 1, width): per keypoint its x, its y and its peak value. `sharpness`, `stride`: see `Tiny`."""

    def __init__(self, channels: int, keypoints: int, sharpness: float | None = None, stride: int = 4) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        if halvings < 1 or stride != 1 << halvings:
            raise UserError(f"a cell of the keypoints' maps is {stride} pixels wide; give a power of two, such as 4")
        wide = [channels << level for level in range(halvings)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 5, stride=2, padding=2), nn.ReLU()]
        for width_in, width in pairwise(wide):
            layers += [nn.Conv2d(width_in, width, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(wide[-1], wide[-1], 3, padding=1), nn.ReLU(), nn.Conv2d(wide[-1], keypoints, 1)]
        self.convs = nn.Sequential(*layers)
        self.width = 3 * keypoints
        self.standard = sharpness is not None
        # DeepSpeed takes no parameter without a dimension.
        self.log_sharpness = nn.Parameter(torch.zeros(1) if sharpness is None else torch.full((keypoints, 1), math.log(sharpness)))

    def laid_out(self, pixels: Tensor) -> Tensor:
        """Images in memory as the first convolution likes them: while they are bytes, that is a quarter of the work."""
        return pixels.contiguous(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.convs(self.laid_out(pixels))
        flat = maps.flatten(2)
        scores = F.layer_norm(flat, flat.shape[-1:]) if self.standard else flat
        weight = F.softmax(scores * self.log_sharpness.exp(), dim=-1)
        where = weight @ places(maps)
        peak = (weight * flat).sum(-1, keepdim=True)
        return torch.cat([where, torch.tanh(peak / 4)], dim=-1).flatten(1)[:, None]

    def load_pretrained(self) -> list[str]:
        """Nothing: it learns from scratch."""
        return []


class ResNetStem(nn.Module):
    """Images in -1..1 (N, 3, H, W) -> (N, tokens, width). Names as torchvision's."""

    def __init__(self, config: ResNet18) -> None:
        super().__init__()
        self.config = config
        self.conv1, self.bn1 = _conv(3, 64, 7, stride=2), _norm(config.norm, 64)
        wide = [64, 64, 128, 256, 512]
        for n in range(1, 5):
            first = _Block(wide[n - 1], wide[n], 1 if n == 1 else 2, config.norm)
            setattr(self, f"layer{n}", nn.Sequential(first, _Block(wide[n], wide[n], 1, config.norm)))
        self.points = nn.Conv2d(512, config.keypoints, 1) if config.keypoints else None
        self.width = 2 * config.keypoints or 512
        self.to(memory_format=torch.channels_last)  # as the images come; either layout wants its own of every weight

    def laid_out(self, pixels: Tensor) -> Tensor:
        """As `LightStem.laid_out`; training steps are shorter than with channels first."""
        return pixels.contiguous(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = (per_channel(of, pixels.device, pixels.dtype) for of in (MEAN, STD))
        x = torch.addcmul((1 - 2 * mean) / (2 * std), self.laid_out(pixels), 1 / (2 * std))
        x = F.max_pool2d(F.relu(normed(self.conv1, self.bn1, x), inplace=True), 3, stride=2, padding=1)
        for n in range(1, 5):
            x = getattr(self, f"layer{n}")(x)
        if self.points is not None:
            return (F.softmax(self.points(x).flatten(2), dim=-1) @ places(x)).flatten(1)[:, None]
        return x.flatten(2).transpose(1, 2) + _sines(x)

    def load_pretrained(self) -> list[str]:
        """Reads `config.weights`, if any. SchemaError where they are another network's."""
        if not self.config.weights:
            return []
        from safetensors.torch import load_file

        path = Path(self.config.weights)
        if not path.is_file():
            raise UserError(f"no file {path}; `weights` names a safetensors file with the weights of a ResNet-18")
        found = load_file(path)
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("points")}
        wrong = sorted(name for name, value in own.items() if name not in found or found[name].shape != value.shape)
        if wrong:
            raise SchemaError(f"{path}: not the weights of a ResNet-18 with torchvision's names; missing or of another shape: {wrong[:3]}")
        self.load_state_dict({name: found[name] for name in own}, strict=False)
        return [f"ResNet-18: {len(own)} tensors from {path}"]


class _Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width_in: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(width_in, width, 3, stride), _norm(norm, width)
        self.conv2, self.bn2 = _conv(width, width, 3), _norm(norm, width)
        nn.init.constant_(self.bn2.weight, 0.25)  # branches start small: frozen norms do not hold the stream together
        self.downsample = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(_conv(width_in, width, 1, stride), _norm(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else normed(self.downsample[0], self.downsample[1], x)
        x = F.relu(normed(self.conv1, self.bn1, x), inplace=True)
        return F.relu(normed(self.conv2, self.bn2, x).add_(beside), inplace=True)


class FrozenNorm(nn.Module):
    """Batch norm whose statistics and scales are constants."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((width,), value))

        self.folds = False
        """Whether it may be part of the convolution before it while nobody learns (`vla.fused.fuse`)."""
        self._folded: tuple[tuple, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)

    def folded(self, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution that does both, computed again whenever they may be others."""
        parts = (conv.weight, self.running_mean, self.running_var, self.weight, self.bias)
        # Made in inference mode, a tensor counts no versions.
        at = tuple((x.data_ptr(), x.dtype, -1 if x.is_inference() else x._version) for x in parts)
        if self._folded is None or self._folded[0] != at or any(version < 0 for _, _, version in at):
            weight, mean, variance, scale, bias = (x.detach().float() for x in parts)
            made = fuse_conv_bn_weights(weight, None, mean, variance, 1e-5, scale, bias)
            self._folded = (at, *(x.detach().to(conv.weight.dtype, memory_format=torch.preserve_format) for x in made))
        return self._folded[1:]


def normed(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """A convolution without bias and the norm after it: one operation where the norm may fold."""
    if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenNorm) and norm.folds and not torch.is_grad_enabled():
        return F.conv2d(x, *norm.folded(conv), conv.stride, conv.padding)
    return norm(conv(x))


def places(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (HW, 2): x and y of each place in -1..1."""
    H, W = maps.shape[-2:]
    ys = torch.linspace(-1, 1, H, device=maps.device, dtype=maps.dtype)[:, None].expand(H, W).reshape(-1)
    xs = torch.linspace(-1, 1, W, device=maps.device, dtype=maps.dtype).repeat(H)
    return torch.stack([xs, ys], dim=-1)


def _sines(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (HW, C): sines and cosines of each place, a half of the channels for y and one for x, over the whole image (ACT)."""
    C, H, W = maps.shape[1:]
    frequency_F = 10_000 ** (-torch.arange(C // 4, device=maps.device, dtype=torch.float32) * 4 / C)
    halves = []
    for size, axis in ((H, 0), (W, 1)):
        angle = torch.arange(1, size + 1, device=maps.device)[:, None] * (2 * math.pi / size) * frequency_F
        wave = torch.cat([angle.sin(), angle.cos()], dim=-1)
        halves.append(wave.unsqueeze(1 - axis).expand(H, W, -1))
    return torch.cat(halves, dim=-1).reshape(H * W, C).to(maps.dtype)


def _conv(width_in: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(width_in, width, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _norm(norm: str, width: int) -> nn.Module:
    return FrozenNorm(width) if norm == "frozen" else nn.GroupNorm(width // 16, width)
