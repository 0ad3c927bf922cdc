"""CogACT's run folder (`config.json`, `dataset_statistics.json`, a `.pt`) -> the same actions as its action module written out."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.interop import layouts
from tests.interop.test_openvla import prefix_of
from vla.errors import UserError
from vla.interop.formats import import_checkpoint, plan_import
from vla.interop.source import Source
from vla.noise import Noise
from vla.policy import Policy

pytestmark = pytest.mark.timeout(600)  # processes of their own import torch
ROBOT, STEPS, INNER, HEADS, DEPTH, WIDTH = layouts.robot(), 16, 384, 4, 2, 128
RENAMES = {
    "vision_backbone.featurizer.": "vision_backbone.dino_featurizer.",
    "vision_backbone.fused_featurizer.": "vision_backbone.siglip_featurizer.",
}


def native(folder) -> dict[str, torch.Tensor]:
    """`torch.save({"model": {part: state_dict}})`, as the native training code does. Returns flat tensors."""
    folder.mkdir()
    tensors = {f"projector.projector.{2 * i}.{kind}": t for i in range(3) for kind, t in _layer(i)}
    tensors |= {f"llm_backbone.llm.{name}": t for name, t in llama().state_dict().items()}
    for name, tower in layouts.towers().items():
        prefix = RENAMES[f"vision_backbone.{name}."]
        tensors |= {f"{prefix}{key}": t for key, t in tower.state_dict().items()}
    net = {
        "x_embedder.linear": (INNER, 7),
        "history_embedder.linear": (INNER, 7),
        "t_embedder.mlp.0": (INNER, 256),
        "t_embedder.mlp.2": (INNER, INNER),
    }
    net |= {"z_embedder.linear": (INNER, WIDTH), "final_layer.linear": (7, INNER)}
    for i in range(DEPTH):
        net |= {f"blocks.{i}.attn.qkv": (3 * INNER, INNER), f"blocks.{i}.attn.proj": (INNER, INNER)}
        net |= {f"blocks.{i}.mlp.fc1": (4 * INNER, INNER), f"blocks.{i}.mlp.fc2": (INNER, 4 * INNER)}
    for name, shape in net.items():
        tensors |= {f"action_model.net.{name}.weight": torch.empty(shape), f"action_model.net.{name}.bias": torch.empty(shape[0])}
    tensors["action_model.net.positional_embedding"] = torch.empty(STEPS + 1, INNER)
    tensors["action_model.net.z_embedder.uncondition"] = torch.empty(1, WIDTH)
    tensors = layouts.randomise(tensors, std=0.05)
    parts: dict = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    (folder / "checkpoints").mkdir()
    torch.save({"model": parts}, folder / "checkpoints" / "CogACT-Small.pt")
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}}))
    (folder / "dataset_statistics.json").write_text(json.dumps({"bridge_orig": layouts.STATISTICS}))
    (folder / "tokenizer.json").write_text(layouts.tokenizer_json())
    return tensors


def _layer(index: int):
    shape = ((544, 136), (WIDTH, 544), (WIDTH, WIDTH))[index]
    return ("weight", torch.empty(shape)), ("bias", torch.empty(shape[0]))


def llama():
    return layouts.llama(layouts.WORDS + 64, WIDTH, 1, rms_norm_eps=1e-5)


def denoiser(net: dict[str, torch.Tensor], x, level: int, z):
    """`action_model/models.py`: c = t + z before the actions, places added to all, blocks of LayerNorm without weights."""
    lin = lambda name, value: F.linear(value, net[f"{name}.weight"], net[f"{name}.bias"])  # noqa: E731
    angle = level * torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
    t = lin("t_embedder.mlp.2", F.silu(lin("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()]))))
    x = torch.cat([(t + lin("z_embedder.linear", z))[None], lin("x_embedder.linear", x)]) + net["positional_embedding"]
    for i in range(DEPTH):
        h = F.layer_norm(x, (INNER,), eps=1e-6)
        q, k, v = lin(f"blocks.{i}.attn.qkv", h).view(len(x), 3, HEADS, -1).permute(1, 2, 0, 3)
        x = x + lin(
            f"blocks.{i}.attn.proj", ((q @ k.transpose(1, 2) / math.sqrt(INNER // HEADS)).softmax(-1) @ v).transpose(0, 1).flatten(1)
        )
        h = lin(f"blocks.{i}.mlp.fc1", F.layer_norm(x, (INNER,), eps=1e-6))
        x = x + lin(f"blocks.{i}.mlp.fc2", F.gelu(h, approximate="tanh"))
    return lin("final_layer.linear", F.layer_norm(x, (INNER,), eps=1e-6))[1:]


def theirs(tensors, image, text: str, noise):
    """`predict_action`: the state of </s>, ten DDIM steps with guidance 1.5, clipped, the gripper 0 or 1."""
    hugging = {}
    for name, tensor in tensors.items():
        for ours, native_name in RENAMES.items():
            name = name.replace(native_name, ours)
        for index in range(3):
            name = name.replace(f"projector.projector.{2 * index}.", f"projector.fc{index + 1}.")
        hugging[name.replace("llm_backbone.llm.", "language_model.")] = tensor
    prompt = f"In: What action should the robot take to {text.lower()}?\nOut:"
    x = prefix_of(hugging, image, [*layouts.ids_of("<s>"), *layouts.ids_of(prompt), 29871, 2])
    language = llama()
    language.load_state_dict({k.removeprefix("language_model."): t for k, t in hugging.items() if k.startswith("language_model.")})
    z = language.model(inputs_embeds=x).last_hidden_state[0, -1]
    net = {k.removeprefix("action_model.net."): t for k, t in tensors.items() if k.startswith("action_model.net.")}
    beta = [
        min(
            1 - math.cos(((k + 1) / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos((k / 100 + 0.008) / 1.008 * math.pi / 2) ** 2, 0.999
        )
        for k in range(100)
    ]
    kept = np.cumprod(1 - np.array(beta))
    x = noise
    for level in range(90, -1, -10):
        seen, none = denoiser(net, x, level, z), denoiser(net, x, level, net["z_embedder.uncondition"][0])
        eps = none + 1.5 * (seen - none)
        data = (x - math.sqrt(1 - kept[level]) * eps) / math.sqrt(kept[level])
        after = kept[level - 10] if level else 1.0
        x = math.sqrt(after) * data + math.sqrt(1 - after) * eps
    action = x.double().numpy().clip(-1, 1)
    action[:, 6] = np.where(action[:, 6] < 0.5, 0, 1)
    low, high, mask = (np.array(layouts.STATISTICS["action"][name]) for name in ("q01", "q99", "mask"))
    return np.where(mask, 0.5 * (action + 1) * (high - low) + low, action)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cogact") / "CogACT-Small"
    return folder, native(folder)


@torch.no_grad()
@pytest.mark.slow
def test_it_acts_as_theirs_does(published, tmp_path):
    folder, tensors = published
    report = import_checkpoint("cogact", Source(folder, ROBOT), tmp_path / "ours")
    assert report.taken + sum(report.left.values()) == len(tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]  # nothing unpacked stays
    policy = Policy.load(tmp_path / "ours")
    for key, text in enumerate(("open the door", "Push IT")):
        seen = layouts.observation(ROBOT, key, text=text)
        noise = Noise(torch.tensor([key]), 0).normal("eps", STEPS, 7)[0]
        want = theirs(tensors, seen.images["third_person"][0], text, noise)
        found = policy.act_batch([seen], [key])[0].action_TA
        np.testing.assert_allclose(found, want, atol=1e-4)
        assert np.abs(want[:, :3]).std() > 0.01 and set(want[:, 6]) <= {0.0, 1.0}


@pytest.mark.thorough
def test_a_pickle_with_more_than_tensors_is_refused(published, tmp_path):
    """By torch's restricted unpickler, in a process of its own: what it would have called is never called."""
    folder = tmp_path / "evil"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "dataset_statistics.json", "tokenizer.json"):
        (folder / name).write_bytes((published[0] / name).read_bytes())
    torch.save({"model": {"a": torch.zeros(1), "run": _Runs()}}, folder / "checkpoints" / "evil.pt")
    with pytest.raises(UserError, match="evil.pt was not read: it holds more than tensors"):
        plan_import("cogact", replace(Source(folder, ROBOT), scratch=tmp_path))
    assert not (tmp_path / "ran").exists()
    torch.save({"model": {}}, folder / "checkpoints" / "second.pt")
    with pytest.raises(UserError, match="holds evil.pt, second.pt; leave the one to import"):
        plan_import("cogact", replace(Source(folder, ROBOT), scratch=tmp_path))


class _Runs:
    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path("ran"),)
