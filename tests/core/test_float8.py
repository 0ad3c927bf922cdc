"""Linear maps in 8-bit floating point: rounding by at most a sixteenth, scales a row, and where they are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.parts import DECODERS, contents, samples
from vla.errors import UserError
from vla.float8 import Float8Linear, to_float8
from vla.policy import Policy


def test_numbers_are_rounded_by_a_sixteenth_of_themselves_at_most():
    linear = nn.Linear(32, 16, bias=False)
    made = Float8Linear(linear)
    again_OI = made.weight_OI.float() * made.scale_1O.t()
    normal = linear.weight.abs() > linear.weight.abs().amax(1, keepdim=True) * 2.0**-6 / 448  # below, E4M3 has fewer digits
    assert ((again_OI - linear.weight).abs() <= linear.weight.abs() / 16 + 1e-9)[normal].all()
    torch.testing.assert_close(again_OI.abs().amax(1), linear.weight.abs().amax(1))


def test_a_map_is_the_product_of_the_rounded_numbers_with_scales_of_their_own():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    x = torch.randn(2, 5, 64) * torch.logspace(-4, 4, 10).view(2, 5, 1)  # rows of very different size
    made = Float8Linear(linear)
    found, want = made(x), linear(x)
    error = (found - want).norm(dim=-1) / (want - linear.bias).norm(dim=-1)
    assert found.shape == want.shape and 0.001 < error.max() < 0.08
    assert torch.equal(made(x[:, :1]), found[:, :1])  # a row's numbers do not depend on its neighbours
    assert Float8Linear(linear.bfloat16())(x.bfloat16()).dtype == torch.bfloat16


def test_a_policy_in_float8_acts_much_the_same():
    torch.manual_seed(0)
    holds = contents(DECODERS["flow_cross"])
    policy = Policy(holds, holds.build())
    seen = [sample.observation for sample in samples(2, unlabelled=False)]
    before = torch.tensor([chunk.action_TA[:3, :2].tolist() for chunk in policy.act_batch(seen, [1, 2])]).flatten()
    assert to_float8(policy.model) > 10
    assert any(isinstance(module, Float8Linear) for module in policy.model.decoder.modules())
    after = torch.tensor([chunk.action_TA[:3, :2].tolist() for chunk in policy.act_batch(seen, [1, 2])]).flatten()
    assert torch.cosine_similarity(before, after, dim=0) > 0.97 and not torch.equal(before, after)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_without_a_gpu_that_multiplies_them_it_is_refused():
    holds = contents(DECODERS["parallel"])
    with pytest.raises(UserError, match="float8 needs a GPU .*8.9.* leave it out"):
        Policy(holds, holds.build()).optimize_for_inference(float8=True)


def test_a_policy_in_float8_is_not_saved(monkeypatch, tmp_path):
    holds = contents(DECODERS["parallel"])
    policy = Policy(holds, holds.build())
    monkeypatch.setattr("vla.policy.multiplies", lambda device: True)
    policy.optimize_for_inference(float8=True)
    with pytest.raises(UserError, match="save it before `optimize_for_inference"):
        policy.save_pretrained(tmp_path / "policy")


@pytest.mark.gpu
def test_a_gpu_computes_what_the_reference_does():
    torch.manual_seed(0)
    made, x = Float8Linear(nn.Linear(256, 128).bfloat16()), torch.randn(17, 256, dtype=torch.bfloat16)
    torch.testing.assert_close(made.to("cuda")(x.to("cuda")).cpu(), made.to("cpu")(x), atol=0.05, rtol=0.02)
