"""Memory as estimated: against the tensors that really are there, and against the ZeRO paper's own figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.train.toy import toy_run
from vla.noise import Noise
from vla.train.engine import LocalEngine, freeze
from vla.train.job import assemble
from vla.train.memory import activation_bytes, estimate, parameters_by_part, part_of
from vla.train.optim import Zero
from vla.train.ranks import Ranks


def test_plain_torch_holds_what_was_estimated(shards):
    run = toy_run(freeze=("backbone",))
    job = assemble(run, shards, shards)
    freeze(job.model, run.freeze)
    engine = LocalEngine(run, job.model, Ranks(0, 1, torch.device("cpu")))
    batch = job.batch(job.train.samples(range(8)))
    weights = job.model.weights(batch, Noise(batch.position_B, 0))
    engine.forward_backward(batch, Noise(batch.position_B, 0), weights, last=True)
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    gradients = size(p.grad for p in job.model.parameters() if p.grad is not None)
    engine.step(1e-3)
    moments = size(t for state in engine.optimizer.state.values() for name, t in state.items() if name != "step")
    found = estimate(job.model, "fp32", ema=True, zero=None, world=1)
    held = size([*job.model.parameters(), *job.model.buffers()])
    assert (found.weights, found.gradients, found.optimizer, found.average) == (held, gradients, moments, size(engine.shadow))
    assert found.working == 0 and 0 < gradients < held / 2
    trained, frozen = parameters_by_part(job.model)["backbone"]
    assert trained == 0 and frozen > 1000


@pytest.mark.parametrize(("stage", "billions"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_zero_papers_own_example(stage, billions):
    """Rajbhandari et al. 2020, figure 1: 7.5B parameters on 64 devices, mixed precision, Adam."""
    model = nn.Linear(75_000, 100_000, bias=False, device="meta")
    found = estimate(model, "bf16", ema=False, zero=Zero(stage), world=64)
    assert found.total / 1e9 == pytest.approx(billions, abs=0.05)


def test_what_is_offloaded_is_the_hosts():
    model = nn.Linear(1000, 1000, bias=False, device="meta")
    found = estimate(model, "bf16", ema=True, zero=Zero(2, {"offload_optimizer": {"device": "cpu"}}), world=4)
    assert (found.optimizer, found.average, found.host) == (0, 0, 16e6 / 4)
    assert "host" in found.line() and found.total == 2e6 + 2e6 / 4


def test_activations_are_what_the_backward_pass_keeps():
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(4)))
    x = torch.randn(10, 32)
    plain = activation_bytes(layers, lambda: layers(x))
    assert plain == 4 * 10 * (32 + 64) * 4  # each layer's input and what ReLU gives, which is the next map's input too

    def sparing():
        y = x
        for layer in layers:
            y = checkpoint(layer, y, use_reentrant=False)
        return y

    assert activation_bytes(layers, sparing) <= 4 * 10 * 32 * 4 < plain


def test_parts_are_top_modules_and_those_of_a_vision_language_backbone():
    assert part_of("decoder.out.weight_EIO") == "decoder"
    assert part_of("backbone.language.layers.0.mlp.weight") == "backbone.language"
    assert part_of("backbone.stem.weight") == "backbone"
