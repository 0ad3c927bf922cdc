"""Masked discrete diffusion (MaskGIT, Chang et al. 2022; Discrete Diffusion VLA `parallel_decode.py`) on hand-worked cases.

The schedule's counts, which scores stay hidden and the mean training ratio: tests/decoders/test_masked.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.parts import TINY
from vla.backbones.base import prefix_tokens
from vla.codecs.bins import Bins
from vla.decoders.masked import MaskedDiffusion, _choose, draw_hidden
from vla.noise import Noise
from vla.presets import preset
from vla.roster import Roster
from vla.types import ActionSpec

VOCABULARY = 5
MASK = VOCABULARY


def run(script, evaluations: int, **settings) -> tuple[list[list[int]], list[int]]:
    """Decodes 4 codes with a network that follows `script(evaluation) -> {place: (code, probability)}`: what it was shown each time,
    and what came out. Probability that is left is spread over the other codes."""
    roster = Roster(("arm",), 4, 1, 1)
    decoder = MaskedDiffusion(codec=Bins(edges=VOCABULARY + 1), evaluations=evaluations, **settings).build(TINY.width, roster)
    shown, out = [], []

    def logits(backbone, prefix, id_BN, exists_BN, joint=False, cache=None):
        p_BNC = torch.full((1, 4, VOCABULARY), 0.2)
        for place, (code, share) in script(len(shown)).items():
            p_BNC[0, place] = (1 - share) / (VOCABULARY - 1)
            p_BNC[0, place, code] = share
        shown.append(id_BN[0].tolist())
        return p_BNC.log()

    decoder._logits = logits
    decode = decoder.codes.decode
    decoder.codes.decode = lambda id_BN, like: out.append(id_BN[0].tolist()) or decode(id_BN, like)
    prefix = prefix_tokens(torch.zeros(1, 2, TINY.width), torch.ones(1, 2, dtype=torch.bool))
    like = ActionSpec(torch.zeros(1, dtype=torch.int64), torch.ones(1, 4, 1, dtype=torch.bool))
    decoder.sample(TINY.build(), prefix, like, Noise(torch.zeros(1, dtype=torch.int64)))
    return shown, out[0]


def test_the_most_confident_code_is_kept_at_each_evaluation():
    """4 codes, 4 evaluations: floor(4 cos(pi/8 (1, 2, 3))) = 3, 2, 1 stay hidden, then none; the lowest confidence stays."""
    shown, found = run(lambda _: {0: (1, 0.5), 1: (2, 0.9), 2: (3, 0.6), 3: (4, 0.7)}, 4)
    assert shown == [[MASK] * 4, [MASK, 2, MASK, MASK], [MASK, 2, MASK, 4], [MASK, 2, 3, 4]]
    assert found == [1, 2, 3, 4]


def test_a_kept_code_stays_even_if_the_network_changes_its_mind():
    shown, found = run(lambda step: {0: (1, 0.5), 1: (2 if step == 0 else 0, 0.9), 2: (3, 0.6), 3: (4, 0.7)}, 4)
    assert shown[1][1] == 2 and found == [1, 2, 3, 4]


def test_secondary_remasking_takes_back_what_became_unlikely():
    """Place 1 was kept at p = 0.9; at evaluation 1 it has 0.025, a fall of 3.6 nats: hidden again, chosen anew, the count as scheduled."""

    def script(step):
        return {0: (1, 0.5), 1: (2, 0.9) if step == 0 else (0, 0.9), 2: (3, 0.6), 3: (4, 0.95 if step else 0.7)}

    shown, found = run(script, 4, remask=1.0)
    assert shown[1] == [MASK, 2, MASK, MASK]
    assert shown[2] == [MASK, 0, MASK, 4]  # two hidden, as cos(pi / 4) asks; the new code is confident enough to stay
    assert found == [1, 0, 3, 4]
    assert run(script, 4, remask=4.0)[1] == [1, 2, 3, 4]  # a fall of 3.6 nats is less than 4


def test_the_last_evaluation_hides_nothing_and_takes_nothing_back():
    def script(step):
        return {0: (1, 0.5), 1: (2, 0.9) if step < 3 else (0, 0.9), 2: (3, 0.6), 3: (4, 0.7)}

    assert run(script, 4, remask=1.0)[1] == [1, 2, 3, 4]
    assert run(script, 1)[1] == [1, 2, 3, 4]


@pytest.mark.parametrize("step", [0, 5, 11])
def test_confidence_is_log_p_plus_falling_gumbel_noise(step):
    """log p + temperature (1 - r) Gumbel, r = (step + 1) / 12: nothing is left of the noise at the last evaluation."""
    logits = torch.randn(2, 6, VOCABULARY, generator=torch.Generator().manual_seed(0))
    noise = Noise(torch.arange(2), seed=step)
    found_BN, confidence_BN = _choose(logits, noise, 0.7, step, 12)
    gumbel_BN = -np.log(-np.log(noise.uniform("confidence", 6).double().numpy()))
    log_p_BN = logits.log_softmax(-1).gather(-1, found_BN[..., None])[..., 0].double().numpy()
    np.testing.assert_allclose(confidence_BN, log_p_BN + 0.7 * (1 - (step + 1) / 12) * gumbel_BN, atol=1e-5)
    if step == 11:
        np.testing.assert_allclose(confidence_BN, log_p_BN, atol=1e-6)


def test_codes_are_drawn_from_the_networks_distribution():
    """Gumbel-max is a draw: 20,000 draws against the probabilities (chi-square)."""
    p_C = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    found_BN, _ = _choose(p_C.log().expand(5000, 4, VOCABULARY), Noise(torch.arange(5000), seed=2), 1.0, 0, 12)
    count_C = np.bincount(found_BN.flatten().numpy(), minlength=VOCABULARY)
    assert stats.chisquare(count_C, p_C.double().numpy() / p_C.double().sum().item() * 20000).pvalue > 0.01


def test_the_training_ratio_is_a_cosine_of_a_uniform_draw():
    """r ~ U(0, 1), cos(pi r / 2) of 400 codes: P(count <= k) = 1 - 2/pi arccos((k + 1/2) / 400), by Kolmogorov-Smirnov at 1%."""
    rows, codes = 3000, 400
    count_B = draw_hidden(torch.ones(rows, codes, dtype=torch.bool), Noise(torch.arange(rows), seed=1)).sum(1).numpy()
    k = np.arange(1, codes)
    found = np.searchsorted(np.sort(count_B), k, side="right") / rows
    assert np.abs(found - (1 - 2 / math.pi * np.arccos((k + 0.5) / codes))).max() < 1.63 / math.sqrt(rows)
    assert count_B.min() >= 1


def test_published_settings():
    """12 iterations over 8 x 7 codes of 255."""
    chosen = preset("discrete_diffusion_vla")
    decoder = chosen.decoder.build(TINY.width, Roster(("arm",), chosen.horizon, 7, 1))
    assert (decoder.config.evaluations, decoder.codes.length, decoder.mask_id) == (12, 56, 255)
