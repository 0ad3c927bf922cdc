"""UniVLA in its published layout (Hugging Face folder and `action_decoder.pt`) -> the same chunk as its code written out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.interop import layouts
from tests.interop.test_openvla import llama_of, prefix_of
from vla.errors import SchemaError, UnknownName, UserError
from vla.interop.formats import import_checkpoint, plan_import
from vla.interop.source import Source
from vla.policy import Policy

pytestmark = pytest.mark.timeout(600)  # processes of their own import torch
ROBOT, D, INNER, STEPS, FIRST, CODES, PATCHES = layouts.robot(), layouts.WIDTH, 128, 12, layouts.WORDS + 1, 16, 4
WORDS = tuple(f"<ACT_{i}>" for i in range(CODES))


def readout() -> dict[str, torch.Tensor]:
    """`ActionDecoderHead`: two `MAPBlock`s, a linear map (and tanh)."""
    shapes = {"proj.0.weight": (7 * STEPS, INNER), "proj.0.bias": (7 * STEPS,)}
    for pool in ("latent_action_pool", "visual_pool"):
        maps = {"projection": (INNER, D), "attn.proj": (INNER, INNER), "mlp.0.project": (8 * INNER, INNER), "mlp.1": (INNER, 4 * INNER)}
        shapes |= {f"{pool}.{n}.{k}": s if k == "weight" else s[:1] for n, s in maps.items() for k in ("weight", "bias")}
        shapes |= {f"{pool}.attn.q.weight": (INNER, INNER), f"{pool}.attn.kv.weight": (2 * INNER, INNER)}
        shapes |= {f"{pool}.latents": (1, INNER), f"{pool}.attn_norm.g": (INNER,), f"{pool}.mlp_norm.g": (INNER,)}
    return layouts.randomise({name: torch.empty(shape) for name, shape in shapes.items()}, 1)


def published(folder) -> dict[str, torch.Tensor]:
    tensors, head = layouts.openvla(folder), readout()
    (folder / "dataset_statistics.json").write_text(json.dumps({"libero_10_no_noops": layouts.STATISTICS}))
    layouts.say_also(folder, WORDS)
    torch.save(head, folder / "action_decoder.pt")
    return {**tensors, **{f"action_decoder.{name}": t for name, t in head.items()}}


def pooled(tensors, pool: str, seen, more=0.0):
    """`MAPBlock`: norms behind, by the root of the mean square; a gated MLP."""
    w = {k.removeprefix(f"action_decoder.{pool}."): t for k, t in tensors.items() if k.startswith(f"action_decoder.{pool}.")}
    norm = lambda x, g: x / (x.norm(dim=-1, keepdim=True) * INNER**-0.5).clamp(min=1e-8) * g  # noqa: E731
    heads = lambda x: x.view(-1, INNER // 64, 64).transpose(0, 1)  # noqa: E731
    x = w["latents"] + more
    k, v = F.linear(F.linear(seen, w["projection.weight"], w["projection.bias"]), w["attn.kv.weight"]).split(INNER, -1)
    score = heads(F.linear(x, w["attn.q.weight"])) @ heads(k).transpose(1, 2) / math.sqrt(64)
    found = (score.softmax(-1) @ heads(v)).transpose(0, 1).reshape(1, INNER)
    x = norm(x + F.linear(found, w["attn.proj.weight"], w["attn.proj.bias"]), w["attn_norm.g"])
    value, gate = F.linear(x, w["mlp.0.project.weight"], w["mlp.0.project.bias"]).split(4 * INNER, -1)
    return norm(x + F.linear(value * F.silu(gate), w["mlp.1.weight"], w["mlp.1.bias"]), w["mlp_norm.g"])


def theirs(tensors, image, text: str) -> np.ndarray:
    """`predict_latent_action`, then the readout: the first states, as many as there are patches, and the last four."""
    prompt = f"In: What action should the robot take to {text.lower()}?\nOut:"
    x, language = prefix_of(tensors, image, [*layouts.ids_of("<s>"), *layouts.ids_of(prompt), layouts.EMPTY_PIECE]), llama_of(tensors)
    for step in range(4):
        states = language.model(inputs_embeds=x).last_hidden_state
        logits = language.lm_head(states[0, -1])
        word = FIRST + int(logits[FIRST : FIRST + CODES].argmax())  # a trained model says nothing else
        x = torch.cat([x, language.model.embed_tokens(torch.tensor([[word]]))], dim=1) if step < 3 else x
    saw = pooled(tensors, "visual_pool", states[0, :PATCHES])
    head = pooled(tensors, "latent_action_pool", states[0, -4:], saw)
    action = torch.tanh(F.linear(head, tensors["action_decoder.proj.0.weight"], tensors["action_decoder.proj.0.bias"])).view(STEPS, 7)
    low, high, mask = (np.array(layouts.STATISTICS["action"][name]) for name in ("q01", "q99", "mask"))
    return np.where(mask, 0.5 * (action.double().numpy() + 1) * (high - low) + low, action.double().numpy())


@torch.no_grad()
@pytest.mark.slow
def test_it_acts_as_theirs_does(tmp_path):
    folder = tmp_path / "univla"
    tensors = published(folder)
    report = import_checkpoint("univla", Source(folder, ROBOT, platform="libero"), tmp_path / "ours")
    assert report.taken + sum(report.left.values()) == len(tensors)
    policy = Policy.load(tmp_path / "ours")
    assert policy.model.decoder.config.vocabulary == CODES
    for seed, text in enumerate(("open the door", "Push IT", "close it")):
        seen = layouts.observation(ROBOT, seed, text=text)
        want = theirs(tensors, seen.images["third_person"][0], text)
        np.testing.assert_allclose(policy.act(seen).action_TA, want, atol=2e-5)
        assert want.shape == (STEPS, 7) and np.abs(want).std() > 0.01


@pytest.mark.slow
def test_readouts_that_nothing_here_takes_are_named(tmp_path):
    folder = tmp_path / "univla"
    published(folder)
    source = Source(folder, ROBOT, platform="libero", scratch=tmp_path)
    normalizer = plan_import("univla", Source(folder, ROBOT, platform="calvin", scratch=tmp_path)).contents.normalizers["arm"]
    assert normalizer.action.method == "identity"  # CALVIN's actions were never normalised
    torch.save({"attn_pool.latents": torch.zeros(1, 4), "proprio_proj.0.weight": torch.zeros(4, 7)}, folder / "action_decoder.pt")
    with pytest.raises(SchemaError, match="its readout has attn_pool, proprio_proj, which nothing here takes"):
        plan_import("univla", source)
    (folder / "tokenizer.json").write_text(layouts.tokenizer_json())
    torch.save(readout(), folder / "action_decoder.pt")
    with pytest.raises(SchemaError, match="its tokenizer has 0 words <ACT_i>"):
        plan_import("univla", source)


def test_what_no_file_says_is_asked_for(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "openvla"}')
    with pytest.raises(UnknownName, match="unknown platform ''. Choices: bridge, calvin, libero"):
        plan_import("univla", Source(tmp_path, ROBOT))
    with pytest.raises(UserError, match=r"has no action_decoder\*.pt: latent actions alone move no robot"):
        plan_import("univla", Source(tmp_path, ROBOT, platform="libero"))
