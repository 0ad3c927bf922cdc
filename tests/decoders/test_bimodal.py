"""Two ways round an obstacle: regression takes the middle, generative decoders choose one (the picture is docs/images/bimodal.png)."""

from __future__ import annotations

import pytest

from benchmarks.bimodal import DECODERS, plans_of


def test_regression_drives_into_the_obstacle():
    found = plans_of(DECODERS["parallel, L1"], steps=80)
    assert found.passed.mean() < 0.1


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name, steps, least",
    [
        ("flow, per layer", 200, 0.85),
        pytest.param("masked diffusion", 400, 0.9, marks=pytest.mark.slow),
        pytest.param("tokens", 400, 0.9, marks=pytest.mark.slow),
        pytest.param("DDPM, pooled", 400, 0.9, marks=pytest.mark.slow),
    ],
)
def test_generative_decoders_choose_a_side_and_both_sides(name, steps, least):
    found = plans_of(DECODERS[name], steps)
    assert found.passed.mean() > least
    assert 0.2 < found.left.mean() < 0.8
