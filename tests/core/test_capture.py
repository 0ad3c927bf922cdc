"""Captured calls, without a GPU: what may be captured, that a replay reads what is given now, and that others run as they are.

Replaying is stood in for by running the same call on the held inputs: what a graph does, but for the kernels.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parts import DECODERS, SOURCES, contents, samples
from vla.capture import MOST, Captured, Watch, cuda_graph
from vla.errors import UserError
from vla.noise import Noise
from vla.policy import Policy

REFUSED = {"mixture": "looks at a number (nonzero)"}
"""Decoders whose next operation depends on a number that they found, and what is said of them."""


class Capturer:
    def __init__(self):
        self.captures = 0

    def __call__(self, call):
        self.captures += 1
        return call


def made(name):
    torch.manual_seed(0)
    holds = contents(DECODERS[name])
    model = holds.build().eval()
    return model, lambda seed, count=3: holds.collate(model).samples(samples(count, seed, unlabelled=False), SOURCES)


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_is_recorded_or_says_why_not(name):
    model, batch = made(name)
    capturer = Capturer()
    captured = Captured(model, capturer)
    with torch.inference_mode():
        for seed in (1, 2, 3):
            given = batch(seed)
            noise = Noise(given.position_B)
            torch.testing.assert_close(captured.sample(given, noise), model.sample(given, noise))
    assert capturer.captures == (0 if name in REFUSED else 1)
    assert all(REFUSED.get(name, "nothing") in reason for reason in captured.refused)
    assert bool(captured.refused) == (name in REFUSED)


def test_each_shape_and_seed_has_a_recording_and_the_oldest_go():
    model, batch = made("parallel")
    capturer = Capturer()
    captured = Captured(model, capturer)
    few, more = batch(1, 2), batch(1, 3)
    for given, seed in ((few, 0), (more, 0), (few, 1), (few, 0)):
        captured.sample(given, Noise(given.position_B, seed))
    assert capturer.captures == 3
    for seed in range(2, 2 + MOST):
        captured.sample(few, Noise(few.position_B, seed))
    captured.sample(few, Noise(few.position_B, 0))
    assert capturer.captures == 3 + MOST + 1


def test_where_only_the_look_at_the_images_cannot_be_recorded_the_rest_is():
    model, batch = made("flow")
    embed = model.backbone.embed
    model.backbone.embed = lambda inputs: (inputs["image_BVFHW3"].flatten().nonzero(), embed(inputs))[1]
    capturer = Capturer()
    captured = Captured(model, capturer)
    for seed in (1, 2, 3):
        given = batch(seed)
        with torch.inference_mode():
            torch.testing.assert_close(captured.sample(given, Noise(given.position_B)), model.sample(given, Noise(given.position_B)))
    assert capturer.captures == 1 and captured.refused == ("it looks at a number (nonzero)",)


def test_a_recording_that_says_something_else_never_serves():
    model, batch = made("parallel")
    captured = Captured(model, lambda call: lambda: -call())
    for seed in (1, 2):
        given = batch(seed)
        with torch.inference_mode():
            torch.testing.assert_close(captured.sample(given, Noise(given.position_B)), model.sample(given, Noise(given.position_B)))
    assert all("other numbers (cosine -1.0000)" in reason for reason in captured.refused)


def test_a_failed_recording_is_a_plain_call():
    model, batch = made("parallel")

    def fails(call):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    captured, given = Captured(model, fails), batch(1)
    for _ in range(2):
        captured.sample(given, Noise(given.position_B))
    assert captured.refused == ("capture failed: operation not permitted when stream is capturing",)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda x: x + 1, set()),
        (lambda x: x[torch.ones(2, dtype=torch.int64)], set()),
        (lambda x: x.where(x > 0, -torch.inf), set()),
        (lambda x: x.sum().item(), {"looks at a number (_local_scalar_dense)"}),
        (lambda x: bool((x > 0).all()), {"looks at a number (_local_scalar_dense)"}),
        (lambda x: x[x > 0], {"chooses by a mask"}),
        (lambda x: x.nonzero(), {"looks at a number (nonzero)"}),
        (lambda x: x * torch.tensor([1.0, 2.0]), {"brings a number along (torch.tensor)"}),
        (lambda x: x.to("meta"), {"moves a tensor to the meta"}),
    ],
)
def test_what_a_recording_could_not_repeat_is_seen(call, found):
    x = torch.tensor([1.0, -1.0])
    with Watch("cpu") as watch:
        call(x)
    assert watch.found == found


def test_a_optimized_policy_acts_as_before_and_needs_no_gpu(tmp_path):
    torch.manual_seed(0)
    holds = contents(DECODERS["flow_cross"])
    policy = Policy(holds, holds.build())
    seen = [sample.observation for sample in samples(2, unlabelled=False)]
    before = policy.act_batch(seen, [1, 2])
    after = policy.optimize_for_inference().act_batch(seen, [1, 2])
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(torch.from_numpy(other.action_TA), torch.from_numpy(one.action_TA), atol=1e-5, rtol=1e-5)
    again = Policy.load(policy.save_pretrained(tmp_path / "policy"), verify=True)
    assert all(torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), policy.model.state_dict().values(), strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_a_graph_without_a_gpu_is_an_error_in_words():
    with pytest.raises(RuntimeError, match="no CUDA device"):
        cuda_graph(lambda: torch.zeros(1))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in DECODERS if name not in REFUSED])
def test_a_graph_gives_what_the_call_gives(name):
    model, batch = made(name)
    model = model.to("cuda")
    captured = Captured(model)
    for seed in (1, 2, 3):
        given = batch(seed).to("cuda")
        noise = Noise(given.position_B)
        with torch.inference_mode():
            torch.testing.assert_close(captured.sample(given, noise), model.sample(given, noise), atol=1e-4, rtol=1e-4)
    assert captured.refused == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parallel", "tokens", "flow"])
def test_compiled_policies_act_the_same(name):
    """At two lengths of words too, with and without others in the batch; the checkpoint that is saved from one is like any other."""
    torch.manual_seed(0)
    holds = contents(DECODERS[name])
    model = holds.build()
    plain, compiled = Policy(holds, model), Policy(holds, copy.deepcopy(model)).optimize_for_inference(compiled=True)
    observations = [sample.observation for sample in samples(3, unlabelled=False)]
    for words in (1, 3):
        said = [replace(observation, instruction="push " * words) for observation in observations]
        for seen, keys in ((said, [1, 2, 3]), (said[:1], [1])):
            for ours, theirs in zip(compiled.act_batch(seen, keys), plain.act_batch(seen, keys), strict=True):
                np.testing.assert_allclose(ours.action_TA, theirs.action_TA, atol=1e-5)
    assert any(module._compiled_call_impl is not None for module in compiled.model.modules())
    assert [*compiled.model.state_dict()] == [*plain.model.state_dict()]
    with pytest.raises(UserError, match="take one of float8 and compiled"):
        plain.optimize_for_inference(float8=True, compiled=True)
