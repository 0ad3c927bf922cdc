"""The optimizer: one kernel for all, a rate of its own for a module, moments in 8 bits that learn as well and resume to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.test_engine import ALONE, one_step, start
from tests.train.toy import MODEL, NARROW, WIDE, toy_run
from vla.errors import UnknownName, UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.train.engine import make_engine
from vla.train.job import assemble
from vla.train.moments import BLOCK, LEAST_SIZE, AdamW8, moments, pack, unpack
from vla.train.optim import AdamW, Zero


def test_it_is_fused_and_decay_spares_vectors():
    model = MODEL.build(Roster.of((NARROW, WIDE)))
    optimizer = AdamW(weight_decay=0.3).build(model.named_parameters())
    assert optimizer.defaults["fused"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert {p.dim() >= 2 for p in optimizer.param_groups[0]["params"]} == {True}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_module_may_have_its_own_rate(shards):
    """To zero from one step of Adam: the moved distance is the rate."""
    scales = {"backbone": 0.1, "backbone.word_in": 0.5}
    job, engine = start(shards, optim=AdamW(lr=1e-3, scales=scales, weight_decay=0.0, eps=1e-20, grad_clip=0.0))
    before = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    one_step(job, engine, range(8), 8, lr=1e-3)
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in job.model.named_parameters()}
    assert moved["backbone.word_in.weight"] == pytest.approx(5e-4, rel=1e-3)
    assert moved["backbone.image_in.weight"] == pytest.approx(1e-4, rel=1e-3)
    assert moved["decoder.query_TD"] == pytest.approx(1e-3, rel=1e-3)


def test_a_rate_for_no_module_or_of_nothing_is_refused(shards):
    with pytest.raises(UnknownName, match="backbone"):
        start(shards, optim=AdamW(scales={"backbon": 0.1}))
    with pytest.raises(UserError, match="freeze"):
        AdamW(scales={"backbone": 0.0})
    with pytest.raises(UnknownName, match="Choices: 32, 8"):
        AdamW(moment_bits=16)


@pytest.mark.parametrize("signed", [True, False])
def test_a_code_read_and_written_again_is_the_same(signed):
    torch.manual_seed(0)
    value = torch.randn(3 * BLOCK + 17) * torch.logspace(-8, 2, 3 * BLOCK + 17)
    value = value if signed else value.square()
    code, scale = pack(value, signed)
    again = unpack(code, scale, signed)
    assert code.dtype == torch.uint8 and len(scale) == 4
    assert all(torch.equal(a, b) for a, b in zip(pack(again, signed), (code, scale), strict=True))
    large = value.abs() > 1e-3 * scale.repeat_interleave(BLOCK)[: len(value)]
    assert ((again - value).abs() / value.abs())[large].max() < 0.1
    assert signed or (again[value > 0] > 0).all()
    assert torch.equal(unpack(*pack(torch.zeros(300), signed), signed), torch.zeros(300))


@pytest.mark.thorough
def test_moments_in_8_bits_learn_as_well(shards):
    last = {}
    for bits in (32, 8):
        job, engine = start(shards, optim=AdamW(lr=3e-3, moment_bits=bits))
        losses = [one_step(job, engine, range(8), 8, lr=3e-3).loss for _ in range(60)]
        last[bits] = sum(losses[-5:]) / 5
    assert isinstance(engine.optimizer, AdamW8)
    packed = [p for p in engine.trained if p.numel() >= LEAST_SIZE]
    assert packed and all(engine.optimizer.state[p]["exp_avg"].dtype == torch.uint8 for p in packed)
    assert last[8] < losses[0] / 2 and last[8] < 1.5 * last[32] + 0.02


@pytest.mark.thorough
def test_moments_in_8_bits_resume_to_the_bit_and_in_32(shards):
    optim = AdamW(moment_bits=8)
    job, engine = start(shards, optim=optim)
    for step in range(3):
        one_step(job, engine, range(8 * step, 8 * step + 8), 8)
    state = {name: tensor.clone() for name, tensor in engine.state().items()}
    other_job, other = start(shards, optim=optim)
    other.load_state(state, engine.updates)
    for one in ((job, engine), (other_job, other)):
        one_step(*one, range(24, 32), 8)
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in engine.state().items())
    _, plain = start(shards)
    plain.load_state(state, 3)
    name, p = plain.named[0]
    assert torch.equal(moments(plain.optimizer, p)["exp_avg"], state[f"exp_avg/{name}"])


def test_what_deepspeed_does_otherwise_is_refused(shards):
    pytest.importorskip("deepspeed")
    for changes in ({"optim": AdamW(moment_bits=8)}, {"compiled": True}):
        run = toy_run(zero=Zero(2), **changes)
        with pytest.raises(UserError, match="--zero 0"):
            make_engine(run, assemble(run, shards, shards).model, ALONE)
    with pytest.raises(UnknownName, match="none, cpu|cpu, none"):
        Zero(3, {"offload_param": {"device": "nvme"}})


@pytest.mark.slow
def test_compiled_layers_compute_the_same(shards):
    """Also at a third length: graphs for any length do not take it, so each has its own."""
    (plain_job, plain), (job, engine) = (start(shards, compiled=compiled) for compiled in (False, True))
    for n in range(4):
        losses = [one_step(*each, range(8 * n, 8 * n + 8), 8).loss for each in ((plain_job, plain), (job, engine))]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for words in range(1, 5):
        said = [replace(one, observation=replace(one.observation, instruction="push " * words)) for one in job.train.samples(range(8))]
        batch = job.batch(said)
        noise = Noise(batch.position_B, 0)
        weights = job.model.weights(batch, noise)
        losses = [each.forward_backward(batch, noise, weights, last=True).parts["l1"].sum.item() for each in (plain, engine)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert any(layer._compiled_call_impl is not None for module in job.model.modules() for layer in [module])
    assert not any("_orig_mod" in name for name in engine.state())  # a compiled run's checkpoint is like any other
