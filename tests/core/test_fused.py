"""Maps of one input as one product: the same numbers, names and weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.backbones.families import FAMILIES
from tests.parts import DECODERS, SOURCES, TINY, contents, samples
from vla.fused import Norm, Share, fuse
from vla.noise import Noise


class Attention(nn.Module):
    """As transformers' classes name and call them."""

    def __init__(self, bias=False):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, size, bias=bias) for size in (8, 4, 4))

    def forward(self, x, context=None):
        context = x if context is None else context
        return torch.cat([self.q_proj(x), self.k_proj(context), self.v_proj(context)], dim=-1)


@pytest.mark.parametrize("bias", [False, True])
def test_one_product_takes_the_place_of_three(bias):
    plain = Attention(bias)
    fused = copy.deepcopy(plain)
    assert fuse(fused) == 1
    products = []
    count = torch.utils._python_dispatch.TorchDispatchMode

    class Count(count):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ in ("mm", "addmm", "linear", "bmm"):
                products.append(func)
            return func(*args, **(kwargs or {}))

    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    with torch.inference_mode():
        with Count():
            found = fused(x)
        assert len(products) == 1
        torch.testing.assert_close(found, plain(x))
        torch.testing.assert_close(fused(x), plain(x))  # and again: nothing of the last call stays
        for length in (3, 5):
            torch.testing.assert_close(fused.q_proj(context[:, :length]), plain.q_proj(context[:, :length]))
        cross = torch.cat([plain.k_proj(context), plain.v_proj(context)], -1)
        torch.testing.assert_close(torch.cat([fused.k_proj(context), fused.v_proj(context)], -1), cross)
    torch.testing.assert_close(fused(x), plain(x))  # with gradients: maps of their own
    assert [*fused.state_dict()] == [*plain.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True))


def test_other_weights_count_whether_they_are_copied_in_moved_or_replaced():
    fused, other = Attention(), Attention()
    fuse(fused)
    x = torch.randn(2, 8)
    with torch.inference_mode():
        fused.load_state_dict(other.state_dict())
        torch.testing.assert_close(fused(x), other(x))
        torch.testing.assert_close(copy.deepcopy(fused)(x), other(x))
        torch.testing.assert_close(fused.double()(x.double()), other.double()(x.double()))
    fresh = Attention()
    fused = Attention()
    fuse(fused)
    fused.load_state_dict(fresh.state_dict(), assign=True)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), fresh(x))


def test_maps_that_differ_in_kind_are_left_alone():
    model = Attention()
    model.k_proj = nn.Sequential(model.k_proj)
    assert fuse(model) == 0 and type(model.q_proj) is nn.Linear
    model = Attention()
    model.v_proj = model.v_proj.double()
    assert fuse(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_backbone_says_the_same(family):
    holds = contents(DECODERS["flow_cross"], FAMILIES[family])
    torch.manual_seed(0)
    model = holds.build().eval()
    batch = holds.collate(model).samples(samples(2, unlabelled=False), SOURCES)
    noise = Noise(batch.position_B)
    with torch.inference_mode():
        before = model.sample(batch, noise)
        layers = sum(isinstance(module, nn.ModuleList) for module in model.modules())
        assert fuse(model) >= layers > 0
        torch.testing.assert_close(model.sample(batch, noise), before, atol=2e-5, rtol=2e-5)


def test_experts_are_fused():
    model = contents(DECODERS["groot"], TINY).build()
    fuse(model)
    kinds = [type(module.q) for module in model.modules() if hasattr(module, "kv") and hasattr(module, "q")]
    assert Share in kinds and nn.Linear in kinds  # layers that look at the context alone have no keys of their own


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_the_library_become_one_kernel(family):
    """All of a family's root-mean-square norms, whatever their gains, and no other norm."""
    model = contents(DECODERS["flow_cross"], FAMILIES[family]).build().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_()
    norms = [m for m in model.backbone.modules() if hasattr(m, "variance_epsilon") or hasattr(m, "eps")]
    norms = [m for m in norms if not isinstance(m, (nn.LayerNorm, nn.RMSNorm))]
    names, plain = [*model.state_dict()], copy.deepcopy(norms)
    fuse(model)
    assert norms and sum(isinstance(module, Norm) for module in model.modules()) == len(norms)
    assert [*model.state_dict()] == names
    for norm, own in zip(norms, plain, strict=True):
        assert isinstance(norm, Norm) and isinstance(norm, type(own)) and repr(norm) == repr(own)
        for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
            x, norm, own = torch.randn(3, len(own.weight), dtype=dtype), norm.to(dtype), own.to(dtype)
            with torch.inference_mode():
                found, want = norm(x), own(x)
                torch.testing.assert_close(found, want, atol=near, rtol=near)
                assert operations(norm, x) == 1 < operations(own, x)


class Root(nn.Module):
    """As Gemma's: its gain is one more than its weight."""

    def __init__(self, width=8):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(width)), 1e-6

    def forward(self, x):
        return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight.float())).type_as(x)


def test_other_gains_count_and_learning_goes_the_norms_own_way():
    norm, other, x = Root(), Root(), torch.randn(4, 8)
    fuse(norm)
    assert isinstance(norm, Norm)
    with torch.inference_mode():
        for change in (lambda: norm.load_state_dict(other.state_dict()), lambda: norm.load_state_dict(Root().state_dict(), assign=True)):
            norm(x)
            change()
            other.load_state_dict(norm.state_dict())
            torch.testing.assert_close(norm(x), other(x))
        torch.testing.assert_close(copy.deepcopy(norm)(x), other(x))
        assert norm(x.bfloat16()).dtype == torch.bfloat16  # of another type than the weight: as its own class does it
    norm(x).square().sum().backward()
    other(x).square().sum().backward()
    torch.testing.assert_close(norm.weight.grad, other.weight.grad)


def test_what_is_no_such_norm_is_left_alone():
    class Scaled(nn.Module):  # a gain, and an eps that it adds elsewhere
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            return (x / (x.std(-1, keepdim=True) + self.eps)) * self.weight

    class Other(Scaled):
        def forward(self, x, how):
            return how(x)

    model = nn.ModuleList([Scaled(), Other(), nn.LayerNorm(8, bias=False), nn.RMSNorm(8, eps=1e-6), nn.GroupNorm(2, 8)])
    kinds = [type(module) for module in model]
    fuse(model)
    assert [type(module) for module in model] == kinds


def operations(call, *args):
    """How many operations it is."""
    found = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Count():
        call(*args)
    return len(found)
