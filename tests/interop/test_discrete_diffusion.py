"""Discrete Diffusion VLA in its published layout -> the same codes as its decoding written out, on the library's own Llama."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.interop import layouts
from tests.interop.test_oft import CAMERAS, PROPRIO, A, D, P, weights
from tests.interop.test_openvla import features_of, llama_of
from vla.errors import SchemaError, UnknownName
from vla.interop.formats import import_checkpoint, plan_import
from vla.interop.source import Source
from vla.noise import Noise
from vla.policy import Policy

pytestmark = pytest.mark.timeout(600)  # processes of their own import torch
ROBOT, STEPS, MASK, EVALUATIONS = layouts.robot(CAMERAS), 8, layouts.WORDS + 1, 12


def published(folder) -> dict[str, torch.Tensor]:
    tensors, state = layouts.openvla(folder), weights({"fc1": (D, P), "fc2": (D, D)}, 2)
    (folder / "dataset_statistics.json").write_text(json.dumps({"libero_object": {**layouts.STATISTICS, "proprio": PROPRIO}}))
    layouts.say_also(folder, ("<mask>",))
    torch.save({f"module.{name}": t for name, t in state.items()}, folder / "proprio_projector--10000_checkpoint.pt")
    return {**tensors, **{f"state.{name}": t for name, t in state.items()}}


def theirs(tensors, seen, text: str, noise: Noise) -> np.ndarray:
    """BOS, patches of both images, the state, the prompt, 56 words, the end; all see all; a word is read one token ahead. `decode`: draws
    all hidden words, and hides the least likely again; its draws are those of `noise`."""
    words = lambda ids: F.embedding(torch.tensor(ids), tensors["language_model.model.embed_tokens.weight"])  # noqa: E731
    low, high = (np.array(PROPRIO[name]) for name in ("q01", "q99"))
    state = torch.from_numpy(np.clip(2 * (seen.state[0] - low) / (high - low + 1e-8) - 1, -1, 1)).float()
    state = F.linear(F.gelu(F.linear(state, tensors["state.fc1.weight"], tensors["state.fc1.bias"])), tensors["state.fc2.weight"])
    state = state + tensors["state.fc2.bias"]
    prompt = layouts.ids_of(f"In: What action should the robot take to {text.lower()}?\nOut:")
    patches = torch.cat([features_of(tensors, seen.images[role][0])[0] for role in CAMERAS])
    before = torch.cat([words(layouts.ids_of("<s>")), patches, state[None], words([*prompt, layouts.EMPTY_PIECE])])
    ids, language = torch.full((STEPS * A,), MASK), llama_of(tensors)
    actions = torch.arange(layouts.WORDS - 1, layouts.WORDS - 257, -1)
    for step in range(EVALUATIONS):
        x = torch.cat([before, words(ids.tolist()), words([2])])[None]
        all_see_all = torch.zeros(1, 1, x.shape[1], x.shape[1])
        logits = language(inputs_embeds=x, attention_mask=all_see_all).logits[0, len(before) - 1 : -2, actions]
        log_p, hidden = F.log_softmax(logits, -1), ids == MASK
        gumbel = lambda name, *shape: -torch.log(-torch.log(noise.fold(step).uniform(name, *shape)))[0]  # noqa: B023, E731
        drawn = (log_p + gumbel("code", *log_p.shape)).argmax(-1)
        ratio = (step + 1) / EVALUATIONS
        confidence = log_p.gather(1, drawn[:, None])[:, 0] + (1 - ratio) * gumbel("confidence", len(ids))
        ids = torch.where(hidden, actions[drawn], ids)
        if step + 1 < EVALUATIONS:
            stay = min(max(math.floor(len(ids) * math.cos(ratio * math.pi / 2)), 1), int(hidden.sum()))
            ids[confidence.masked_fill(~hidden, math.inf).argsort()[:stay]] = MASK
    edges = np.linspace(-1, 1, 256)
    action = ((edges[:-1] + edges[1:]) / 2)[np.clip(layouts.WORDS - ids.numpy() - 1, 0, 254)].reshape(STEPS, A)
    low, high, mask = (np.array(layouts.STATISTICS["action"][name]) for name in ("q01", "q99", "mask"))
    return np.where(mask, 0.5 * (action + 1) * (high - low + 1e-8) + low, action)


@torch.no_grad()
@pytest.mark.slow
def test_it_acts_as_theirs_does(tmp_path):
    folder = tmp_path / "ddvla"
    tensors = published(folder)
    report = import_checkpoint("discrete_diffusion_vla", Source(folder, ROBOT, CAMERAS, platform="libero"), tmp_path / "ours")
    assert report.taken + sum(report.left.values()) == len(tensors)
    policy = Policy.load(tmp_path / "ours")
    for key, text in enumerate(("open the door", "Push IT")):
        seen = layouts.observation(ROBOT, key, text=text)
        want = theirs(tensors, seen, text, Noise(torch.tensor([key]), 0))
        np.testing.assert_allclose(policy.act_batch([seen], [key])[0].action_TA, want, atol=1e-6)
        assert len(np.unique(want[:, :3])) > 10


def test_a_tokenizer_without_a_mask_is_named(tmp_path):
    folder = tmp_path / "ddvla"
    layouts.openvla(folder)
    (folder / "dataset_statistics.json").write_text(json.dumps({"x": {**layouts.STATISTICS, "proprio": PROPRIO}}))
    with pytest.raises(UnknownName, match="unknown platform ''"):
        plan_import("discrete_diffusion_vla", Source(folder, ROBOT, CAMERAS))
    with pytest.raises(SchemaError, match="its tokenizer has no <mask> among the model's 32064 words; it is no Discrete Diffusion VLA"):
        plan_import("discrete_diffusion_vla", Source(folder, ROBOT, CAMERAS, platform="libero"))
