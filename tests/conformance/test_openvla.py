"""OpenVLA's numbers: bins, normalisation, the fused backbone's sizes. Its prompt: tests/backbones/test_prompts.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla.backbones.empty import build_empty
from vla.backbones.published import published
from vla.codecs.bins import Bins
from vla.normalize import Normalizer, Stats
from vla.presets import preset
from vla.roster import Roster
from vla.types import ActionSpec

EDGES = np.linspace(-1, 1, 256)


def spec(steps: int, width: int) -> ActionSpec:
    return ActionSpec(torch.zeros(1, dtype=torch.int64), torch.ones(1, steps, width, dtype=torch.bool))


def test_bins_and_their_word_ids():
    """`prismatic/vla/action_tokenizer.py`: id = 32000 - digitize, 31744..31999; 255 centres, of which the last serves two ids."""
    codec = preset("openvla").decoder.codec.build(Roster(("arm",), 600, 1, 1))
    values = np.concatenate([EDGES, np.nextafter(EDGES, -9), np.nextafter(EDGES, 9)])
    values = values[(values >= -1) & (values < 1)][:600]
    codes_N = codec.encode(torch.from_numpy(values).view(1, -1, 1), spec(len(values), 1))[0].numpy()
    word_N = 32000 - np.digitize(values, EDGES)
    np.testing.assert_array_equal(31999 - codes_N, word_N)
    assert (codes_N.min(), codes_N.max(), word_N.max(), word_N.min()) == (0, 254, 31999, 31745)
    # Exactly 1 is theirs alone: digitize says 256, id 31744, and both decode it to the last centre.
    assert 32000 - np.digitize(1.0, EDGES) == 31744
    one = codec.encode(torch.ones(1, 600, 1), spec(600, 1))
    assert (one == 254).all() and codec.decode(one, spec(600, 1))[0, 0, 0].item() == pytest.approx((EDGES[-1] + EDGES[-2]) / 2, abs=1e-7)


def test_hand_worked_bins():
    """A bin is 2/255 wide: 0 lies in the middle one, 127; -1 opens the first; beyond the ends goes to the end bins."""
    codec = Bins().build(Roster(("arm",), 1, 5, 1))
    action = torch.tensor([[[0.0, -1.0, -7.0, 7.0, -1 + 2 / 255 + 1e-4]]])
    codes = codec.encode(action, spec(1, 5))
    assert codes.tolist() == [[127, 0, 0, 254, 1]]
    want = np.array([0, -1 + 1 / 255, -1 + 1 / 255, 1 - 1 / 255, -1 + 3 / 255])
    np.testing.assert_allclose(codec.decode(codes, spec(1, 5))[0, 0].numpy(), want, atol=1e-7)


def test_normalisation_is_theirs_inside_the_quantiles_and_exactly_invertible():
    """`data_utils.py`: 2 (x - q01) / (q99 - q01 + 1e-8) - 1; inverse 0.5 (a + 1) (q99 - q01) + q01; min == max becomes 0."""
    rng = np.random.default_rng(0)
    rows_NA = np.stack([rng.normal(0.02, 0.01, 4000), rng.uniform(-3, 1, 4000), np.full(4000, 0.7)], axis=1)
    stats = Stats(3)
    stats.update(rows_NA)
    ours, (low_A, high_A) = Normalizer.fit(stats), (stats.quantile(0.01), stats.quantile(0.99))
    theirs_NA = 2 * (rows_NA - low_A) / (high_A - low_A + 1e-8) - 1
    inside_NA = np.abs(theirs_NA) <= 1
    found_NA = ours.normalize(rows_NA)
    # Their epsilon shifts by 2e-8 / (q99 - q01), which is what their inverse leaves out.
    assert np.abs(found_NA - theirs_NA)[:, :2][inside_NA[:, :2]].max() < 2e-8 / (high_A - low_A)[:2].min() + 1e-12
    assert np.abs(found_NA[:, 2]).max() < 1e-12  # the constant; its mean is a rounding away
    back_NA = 0.5 * (found_NA + 1) * (high_A - low_A) + low_A
    np.testing.assert_allclose(ours.denormalize(found_NA)[:, :2], back_NA[:, :2], atol=1e-12)
    np.testing.assert_allclose(ours.denormalize(found_NA), rows_NA, atol=1e-14)
    lossy_NA = 0.5 * (theirs_NA + 1) * (high_A - low_A) + low_A
    assert np.abs(lossy_NA - rows_NA)[:, :2].max() > 1e-9  # so ours is not theirs by accident


def test_the_published_backbone():
    """`modeling_prismatic.py`: features of the second-to-last block of both towers, 1024 + 1152 wide; 2176 -> 8704 -> 4096 -> 4096."""
    backbone = build_empty(published("openvla/openvla-7b"))
    assert [tower.embed_dim for tower in backbone.vision.towers()] == [1024, 1152] and backbone.vision.width == 2176
    assert [len(tower.blocks) for tower in backbone.vision.towers()] == [24 - 1, 27 - 1]  # the last one is never used
    assert [tuple(layer.weight.shape) for layer in (backbone.projector.fc1, backbone.projector.fc2, backbone.projector.fc3)] == [
        (8704, 2176),
        (4096, 8704),
        (4096, 4096),
    ]
    assert backbone.patches(480, 640) == 256 and backbone.vision.sides == (224, 224)
    assert tuple(backbone.language.embed_tokens.weight.shape) == (32064, 4096) and backbone.depth == 32
