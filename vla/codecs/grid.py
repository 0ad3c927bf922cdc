"""Adaptive action grids (SpatialVLA, Qu et al. 2025, section III-B): a step is one code for translation, one for rotation, one for grip.

Translation is taken in spherical coordinates (polar angle theta, azimuth phi, radius r), rotation as three angles; each coordinate is
cut at the quantiles of a normal distribution fitted to the data, so that cells are small where motion is frequent. Code of a
translation: theta * (phi bins * r bins) + phi * (r bins) + r; rotation likewise, counted on after them; then the gripper. The published
sizes, 16 x 32 x 8 and 16^3 and 2, make 8194 codes (`model/action_tokenizer.py`, `scripts/action_config.json` of SpatialVLA/SpatialVLA).
Round-trip error: less than a cell in every coordinate.

A cell's value in a coordinate is the mean of the data in it. The published one is its middle (`values="middle"`), which for the
outermost cells, most of whose width no data ever visits, is far off where motion is small.

Deviation: edges belong to a robot, so one policy may hold several; and the gripper's two values are the means of its two halves, where the
public code has 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vla.codecs.base import Codec, need_fitted
from vla.errors import UserError
from vla.roster import Roster
from vla.types import ActionSpec

FIT_CHUNKS = 4096
RANGES = {"translation": ((0.0, math.pi), (-math.pi, math.pi), (0.0, math.sqrt(3))), "rotation": ((-1.0, 1.0),) * 3}
"""Of theta, phi, r and of the three angles, for numbers normalised to -1..1."""


@dataclass(frozen=True)
class Grid:
    """Which numbers of an action are what (`rotation` may be empty, as for arms that only move and grip), and the bins of each
    coordinate. `min_sigma`: the fitted normal is at least so wide. `values`: what a cell decodes to."""

    kind: ClassVar[str] = "codec.grid"
    translation: tuple[int, int, int] = (0, 1, 2)
    rotation: tuple[int, ...] = (3, 4, 5)
    gripper: int = 6
    translation_bins: tuple[int, int, int] = (16, 32, 8)
    rotation_bins: tuple[int, int, int] = (16, 16, 16)
    min_sigma: float = 0.0
    values: Literal["mean", "middle"] = "mean"

    def build(self, roster: Roster) -> GridCodec:
        numbers = sorted([*self.translation, *self.rotation, self.gripper])
        if len(self.rotation) not in (0, 3) or numbers != list(range(len(numbers))):
            raise UserError(f"a grid needs 3 numbers of translation, 3 or none of rotation and the gripper's; got {numbers}")
        if roster.action_width != len(numbers):
            raise UserError(
                f"this grid is of {len(numbers)} numbers; the robots {', '.join(roster.names)} have up to {roster.action_width}"
            )
        return GridCodec(self, roster)


class GridCodec(Codec):
    """Two or three codes a step; edges per robot."""

    fits = FIT_CHUNKS
    slot_axes = (None, None)
    gripper_E2: Tensor

    def __init__(self, config: Grid, roster: Roster) -> None:
        super().__init__()
        self.config = config
        self.groups: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {"translation": (config.translation, config.translation_bins)}
        if config.rotation:
            self.groups["rotation"] = (config.rotation, config.rotation_bins)
        self.roster_axes = {"fitted_E": ("E",), "gripper_E2": ("E", None)}
        self._fits_robots(roster)
        self.register_buffer("gripper_E2", torch.tensor([[-1.0, 1.0]]).repeat(len(roster), 1))
        for group, (_, bins) in self.groups.items():
            for axis, count in enumerate(bins):
                for name, size in ((f"{group}{axis}_EQ", count + 1), (f"{group}{axis}_EC", count)):
                    self.register_buffer(name, torch.zeros(len(roster), size))
                    self.roster_axes[name] = ("E", None)
        starts = np.cumsum([0, *(math.prod(bins) for _, bins in self.groups.values()), 2])
        self._before: list[list[Tensor]] | None = None
        self.starts, self.vocabulary = [int(start) for start in starts], int(starts[-1])

    def length(self, horizon: int, width: int) -> int:
        return horizon * (len(self.groups) + 1)

    def ranges(self, horizon: int, width: int) -> Tensor:
        return torch.tensor([[a, b] for a, b in zip(self.starts, self.starts[1:], strict=False)]).repeat(horizon, 1)

    def encode(self, action_BTA: Tensor, spec: ActionSpec) -> Tensor:
        need_fitted(any(self._fitted_now()), "the grid codec")
        codes, value_BTA = [], action_BTA.double().clamp(-1, 1)
        for start, (group, (numbers, bins)) in zip(self.starts, self.groups.items(), strict=False):
            code_BT = torch.zeros(value_BTA.shape[:2], dtype=torch.int64, device=value_BTA.device)
            for axis, (part_BT, count) in enumerate(zip(_coordinates(value_BTA, group, numbers), bins, strict=True)):
                edge_BQ = getattr(self, f"{group}{axis}_EQ")[spec.embodiment_B].double()
                code_BT = code_BT * count + torch.searchsorted(edge_BQ[:, 1:-1].contiguous(), part_BT.contiguous(), right=True)
            codes.append(start + code_BT)
        middle_B1 = self.gripper_E2[spec.embodiment_B].mean(1, keepdim=True)
        codes.append(self.starts[-2] + (value_BTA[..., self.config.gripper] >= middle_B1).long())
        return torch.stack(codes, dim=2).flatten(1)

    def decode(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        self.require(spec)
        B, T, A = spec.mask_BTA.shape
        code_BTG = code_BN.view(B, T, -1)
        out_BTA = torch.zeros(B, T, A, dtype=torch.float64, device=code_BN.device)
        for place, (group, (numbers, bins)) in enumerate(self.groups.items()):
            rest_BT = (code_BTG[..., place] - self.starts[place]).clamp(0, math.prod(bins) - 1)
            parts: list[Tensor] = []
            for axis, count in reversed(list(enumerate(bins))):
                value_BC = getattr(self, f"{group}{axis}_EC")[spec.embodiment_B].double()
                parts.append(value_BC.gather(1, rest_BT % count))
                rest_BT = rest_BT // count
            out_BTA[..., list(numbers)] = torch.stack(_numbers(group, parts[::-1]), dim=2)
        closed_BT = (code_BTG[..., -1] - self.starts[-2]).clamp(0, 1)
        out_BTA[..., self.config.gripper] = self.gripper_E2[spec.embodiment_B].double().gather(1, closed_BT)
        return (out_BTA * spec.mask_BTA).float()

    def exists(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        return spec.mask_BTA.any(2).repeat_interleave(len(self.groups) + 1, dim=1)

    def labelled(self, exists_BN: Tensor, label_BTA: Tensor) -> Tensor:
        return exists_BN & label_BTA.any(2).repeat_interleave(len(self.groups) + 1, dim=1)

    def fit(self, action_BTA: Tensor, spec: ActionSpec) -> None:
        for robot in range(len(self.fitted_E)):
            rows_B = spec.embodiment_B == robot
            self._check_width(robot, spec.mask_BTA[rows_B])
            step_NA = action_BTA[rows_B][spec.mask_BTA[rows_B].all(2)].double().clamp(-1, 1)
            if self.fitted_E[robot] or not len(step_NA):
                continue
            for group, (numbers, bins) in self.groups.items():
                for axis, part_N in enumerate(_coordinates(step_NA, group, numbers)):
                    sigma = max(float(part_N.std(correction=0)), self.config.min_sigma, 1e-6)
                    edges = normal_edges(float(part_N.mean()), sigma, RANGES[group][axis], bins[axis])
                    middles = (edges[1:] + edges[:-1]) / 2
                    values = cell_means(part_N.cpu().numpy(), edges, middles) if self.config.values == "mean" else middles
                    getattr(self, f"{group}{axis}_EQ")[robot] = torch.from_numpy(edges).float()
                    getattr(self, f"{group}{axis}_EC")[robot] = torch.from_numpy(values).float()
            grip_N = step_NA[:, self.config.gripper]
            middle = (grip_N.amin() + grip_N.amax()) / 2
            for half, chosen_N in enumerate((grip_N < middle, grip_N >= middle)):
                if chosen_N.any():
                    self.gripper_E2[robot, half] = grip_N[chosen_N].mean().float()
            self.fitted_E[robot] = 1

    def _check_width(self, robot: int, mask_BTA: Tensor) -> None:
        """A grid says what each of its numbers is, so a robot without some of them has none that could be cut."""
        narrow_NA = mask_BTA[mask_BTA.any(2) & ~mask_BTA.all(2)]
        if len(narrow_NA):
            numbers = f"{mask_BTA.shape[2]} numbers; '{self.robots[robot]}' has {int(narrow_NA.sum(1).max())}"
            raise UserError(
                f"this grid is of {numbers}: give it a policy of its own with a grid "
                "of its numbers, or take a codec that does not ask what they are (Bins, FAST, VQCodes)"
            )

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """A policy for one robot that comes from a policy of one other has that one's rows to be moved. Rows that several robots share mean
        shares of each one's motion, and stay."""
        fitted_E = weights.get("fitted_E")
        if fitted_E is None or len(self.robots) != 1 or self.fitted_E.any() or int(fitted_E.count_nonzero()) != 1:
            return
        row = int(fitted_E.argmax())
        self._before = [[weights[f"{group}{axis}_EC"][row] for axis in range(3)] for group in self.groups]

    def moved(self, weight_VD: Tensor) -> Tensor:
        return weight_VD if self._before is None else self.regrid(weight_VD, self._before, self.cells(0))

    def cells(self, robot: int) -> list[list[Tensor]]:
        """Of each group, what the cells of its three coordinates decode to, normalised: float (bins,) each."""
        return [[getattr(self, f"{group}{axis}_EC")[robot] for axis in range(3)] for group in self.groups]

    def regrid(self, weight_VD: Tensor, old: Sequence[Sequence[Tensor]], new: Sequence[Sequence[Tensor]]) -> Tensor:
        """Embeddings (or head rows) learned on cells `old` -> for cells `new`: each takes the trilinear interpolation at its value (section
        III-D), the nearest there is beyond the old ones. float (vocabulary, D) in and out; the gripper's rows stay."""
        from scipy.interpolate import RegularGridInterpolator

        out_VD = weight_VD.clone()
        for start, (_, bins), have, want in zip(self.starts, self.groups.values(), map(_rising, old), map(_rising, new), strict=False):
            size = math.prod(bins)
            block = weight_VD[start : start + size].double().cpu().numpy().reshape(*bins, -1)
            at = [np.clip(value, known[0], known[-1]) for value, known in zip(want, have, strict=True)]
            places = np.stack(np.meshgrid(*at, indexing="ij"), axis=-1).reshape(-1, 3)
            out_VD[start : start + size] = torch.from_numpy(RegularGridInterpolator(have, block)(places)).to(out_VD)
        return out_VD


def normal_edges(mean: float, sigma: float, bounds: tuple[float, float], bins: int) -> np.ndarray:
    """float64 (bins + 1,): edges within `bounds` that give each bin the same share of the normal's mass there."""
    from scipy.stats import norm

    low, high = bounds
    share = np.linspace(norm.cdf(low, mean, sigma), norm.cdf(high, mean, sigma), bins + 1)
    return np.clip(norm.ppf(share, mean, sigma), low, high)


def cell_means(value_N: np.ndarray, edges: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """float64 (bins,): the mean of the values in each cell; `empty`'s where there are none."""
    cell_N = np.searchsorted(edges[1:-1], value_N, side="right")
    count = np.bincount(cell_N, minlength=len(empty))
    total = np.bincount(cell_N, weights=value_N, minlength=len(empty))
    return np.where(count > 0, total / np.maximum(count, 1), empty)


def _coordinates(value: Tensor, group: str, numbers: tuple[int, ...]) -> tuple[Tensor, ...]:
    x, y, z = (value[..., number] for number in numbers)
    if group == "rotation":
        return x, y, z
    flat = torch.sqrt(x**2 + y**2)
    return torch.atan2(flat, z), torch.atan2(y, x), torch.sqrt(flat**2 + z**2)


def _numbers(group: str, parts: list[Tensor]) -> list[Tensor]:
    if group == "rotation":
        return parts
    theta, phi, r = parts
    moved = (r * theta.sin() * phi.cos(), r * theta.sin() * phi.sin(), r * theta.cos())
    return [part.clamp(-1, 1) for part in moved]  # the sphere is around the cube


def _rising(axes: Sequence[Tensor]) -> list[np.ndarray]:
    """Interpolation wants values to rise, also where a narrow normal makes cells of no width."""
    return [value_C.double().cpu().numpy() + np.arange(len(value_C)) * 1e-12 for value_C in axes]
