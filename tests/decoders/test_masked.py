"""Masked discrete diffusion against hand-worked cases of MaskGIT's schedule."""

from __future__ import annotations

import math

import torch

from vla.decoders.masked import draw_hidden, lowest, still_hidden
from vla.noise import Noise


def test_how_many_stay_hidden_by_hand():
    """12 codes, 4 evaluations: floor(12 cos(pi/8 * (1, 2, 3))) = floor(11.09, 8.49, 4.59); then none."""
    unknown_B = torch.tensor([12])
    assert [still_hidden(unknown_B, step, 4).item() for step in range(4)] == [11, 8, 4, 0]
    # Few codes, many evaluations: at least one is left until the last, and at least one is revealed by the first.
    assert [still_hidden(torch.tensor([2]), step, 4).item() for step in range(4)] == [1, 1, 1, 0]
    assert still_hidden(torch.tensor([1]), 0, 4).item() == 0


def test_the_lowest_confidence_stays_hidden():
    scores_BN = torch.tensor([[0.9, 0.1, 0.5, math.inf], [0.2, 0.2, 0.3, 0.1]])
    assert lowest(scores_BN, torch.tensor([2, 2])).tolist() == [[False, True, True, False], [True, False, False, True]]


def test_training_hides_two_over_pi_on_average_and_only_labelled_codes():
    label_BN = torch.ones(4000, 48, dtype=torch.bool)
    label_BN[:, 40:] = False
    hidden_BN = draw_hidden(label_BN, Noise(torch.arange(4000)))
    assert not hidden_BN[:, 40:].any()
    assert hidden_BN.sum(1).min() >= 1
    assert abs(hidden_BN[:, :40].float().mean().item() - 2 / math.pi) < 0.01
    # Each place is as likely as any other.
    assert hidden_BN[:, :40].float().mean(0).std() < 0.02
    assert not draw_hidden(torch.zeros(3, 5, dtype=torch.bool), Noise(torch.arange(3))).any()
