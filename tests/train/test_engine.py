"""The plain engine: micro-batches change nothing, what is not finite moves nothing, averages and states are what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.toy import MODEL, toy_run
from vla.decoders.dit import DiT
from vla.decoders.masked import MaskedDiffusion
from vla.decoders.tokens import AutoregressiveTokens
from vla.errors import UnknownName, UserError
from vla.model import Model
from vla.noise import Noise
from vla.train.engine import ema_decay, make_engine
from vla.train.job import assemble
from vla.train.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def one_step(job, engine, positions, size, lr=1e-3):
    """One update from micro-batches of `size`."""
    batches = [job.batch(job.train.samples(positions[i : i + size])) for i in range(0, len(positions), size)]
    noises = [Noise(batch.position_B, 0) for batch in batches]
    rows = [job.model.weights(batch, noise) for batch, noise in zip(batches, noises, strict=True)]
    weights = {name: sum(row[name] for row in rows) for name in rows[0]}
    for batch, noise in zip(batches, noises, strict=True):
        engine.forward_backward(batch, noise, weights, last=batch is batches[-1])
    return engine.step(lr)


def start(shards, **changes):
    run = toy_run(**changes)
    job = assemble(run, shards, shards)
    return job, make_engine(run, job.model, ALONE)


@pytest.mark.parametrize("decoder", [MODEL.decoder, AutoregressiveTokens(), MaskedDiffusion(), DiT()], ids=lambda d: d.kind)
def test_one_batch_of_eight_or_eight_of_one(shards, decoder):
    updates, gradients = [], []
    for size in (8, 1):
        job, engine = start(shards, model=Model(MODEL.backbone, decoder))
        updates.append(one_step(job, engine, range(8), size))
        state = engine.state()
        gradients.append({name: state[name] / (1 - 0.9) for name in state if name.startswith("exp_avg/")})
    assert updates[0].loss == pytest.approx(updates[1].loss, abs=1e-5)
    assert updates[0].grad_norm == pytest.approx(updates[1].grad_norm, rel=1e-5)
    for name, tensor in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", [MODEL.decoder, AutoregressiveTokens(), MaskedDiffusion(), DiT()], ids=lambda d: d.kind)
def test_bf16_follows_fp32(shards, decoder):
    losses = []
    for precision in ("fp32", "bf16"):
        job, engine = start(shards, model=Model(MODEL.backbone, decoder), precision=precision)
        losses.append([one_step(job, engine, range(8), 8).loss for _ in range(5)])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_moves_nothing(shards, where):
    job, engine = start(shards)
    one_step(job, engine, range(8), 8)
    before = {name: tensor.clone() for name, tensor in engine.state().items()}
    batch = job.batch(job.train.samples(range(8)))
    if where == "loss":
        batch = replace(batch, state_BFP=torch.full_like(batch.state_BFP, torch.nan))
    engine.forward_backward(batch, Noise(batch.position_B, 0), job.model.weights(batch, Noise(batch.position_B, 0)), last=True)
    if where == "gradient":
        next(p for p in job.model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf
    assert not engine.step(1e-3).applied
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.state().items())
    assert engine.updates == 1
    assert one_step(job, engine, range(8), 8).applied  # and nothing of it is left over
    assert engine.updates == 2


def test_the_average_follows_its_formula_and_is_only_lent(shards):
    job, engine = start(shards, ema_decay=0.5)
    name = "decoder.query_TD"
    average = job.model.get_parameter(name).detach().clone()
    for update in range(1, 5):
        one_step(job, engine, range(8), 8)
        average = average.lerp(job.model.get_parameter(name).detach(), 1 - min(0.5, (1 + update) / (10 + update)))
    own = job.model.get_parameter(name).detach().clone()
    with engine.averaged():
        torch.testing.assert_close(job.model.get_parameter(name).detach(), average)
    assert torch.equal(job.model.get_parameter(name), own)
    torch.testing.assert_close(engine.acting(engine.state())[name], average)
    assert ema_decay(toy_run(ema_decay=0.999), 10**6) == 0.999


def test_state_goes_round_and_the_next_steps_are_the_same_bits(shards):
    job, engine = start(shards)
    for step in range(3):
        one_step(job, engine, range(8 * step, 8 * step + 8), 8)
    state = {name: tensor.clone() for name, tensor in engine.state().items()}
    other_job, other = start(shards)
    torch.nn.init.ones_(other_job.model.get_parameter("decoder.query_TD"))
    other.load_state(state, engine.updates)
    for one in ((job, engine), (other_job, other)):
        one_step(*one, range(24, 32), 8)
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in engine.state().items())


def test_freezing_takes_whole_parts_and_the_rest_trains(shards):
    job, engine = start(shards, freeze=("backbone", "decoder.out"))
    before = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    one_step(job, engine, range(8), 8)
    moved = {name for name, p in job.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith(("backbone.", "decoder.out."))}


def test_what_cannot_be_frozen_is_refused(shards):
    with pytest.raises(UnknownName, match=r"backbone\.stem"):
        start(shards, freeze=("backbon",))
    with pytest.raises(UserError, match="nothing is left to train"):
        start(shards, freeze=("backbone", "decoder", "state_in"))
