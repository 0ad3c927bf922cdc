"""Operations as counted: against a hand count, and the forward pass's against the whole pass's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.train.toy import MODEL, toy_run
from vla.backbones.empty import build_empty
from vla.decoders.tokens import AutoregressiveTokens
from vla.model import Model
from vla.noise import Noise
from vla.train.flops import backward_share, count_on_meta, counted, measured_peak
from vla.train.job import assemble


def test_a_product_and_attention_count_as_by_hand():
    with counted() as operations:
        torch.randn(3, 5) @ torch.randn(5, 7)
        assert operations() == 2 * 3 * 5 * 7
        query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 9, 8)
        nn.functional.scaled_dot_product_attention(query, key, key)
    assert operations() == 2 * 3 * 5 * 7 + 2 * (2 * 2 * 4 * 6 * 9 * 8)  # scores, then what they weigh


@pytest.mark.parametrize("decoder", [MODEL.decoder, AutoregressiveTokens()], ids=["parallel", "tokens"])
def test_the_meta_device_counts_what_the_real_pass_does(shards, decoder):
    job = assemble(toy_run(model=Model(MODEL.backbone, decoder)), shards, shards)
    batch = job.batch(job.train.samples(range(4)))
    with counted() as operations:
        job.model(batch, Noise(batch.position_B, 0))
    empty = build_empty(job.contents.model, job.contents.roster)
    moved = batch.to("meta")
    forward, backward = count_on_meta(empty.to("meta"), moved, Noise(moved.position_B, 0))
    assert forward == pytest.approx(operations(), rel=0.001)
    assert backward == pytest.approx(backward_share(empty) * forward, rel=0.15)  # the rule of a run that has counted forwards alone
    assert all(p.is_meta for p in empty.parameters())


def test_frozen_weights_need_no_gradient_of_their_own():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert backward_share(model) == 2
    model[:3].requires_grad_(False)
    assert backward_share(model) == 1.25


def test_the_peak_is_of_this_machine():
    small = measured_peak(torch.device("cpu"), "fp32", size=256, repeats=2)
    assert 1e8 < small < 1e14


def test_views_of_parameters_in_inference_mode_are_counted_as_elsewhere():
    """A readout's queries are a view of a parameter, handed to a module: what torch's own counter stumbles over."""

    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.layer = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 5)

        def forward(self, size: int) -> torch.Tensor:
            return self.layer(self.query.expand(size, -1, -1))

    model, found = Queries(), []
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode(), counted() as operations:
            model(2)
            found.append(operations())
    assert found == [2 * 2 * 3 * 4 * 5] * 3
