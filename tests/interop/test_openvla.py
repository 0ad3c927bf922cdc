"""OpenVLA in its published layout -> a checkpoint of ours that says the same words, beside the library's own Llama and timm's towers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.interop import layouts
from vla.errors import SchemaError, UnknownName, UserError
from vla.interop.formats import import_checkpoint, plan_import
from vla.interop.plan import check
from vla.interop.source import Source
from vla.policy import Policy

ROBOT = layouts.robot()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvla") / "openvla-7b"
    return folder, layouts.openvla(folder)


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("ours") / "checkpoint"
    return out, import_checkpoint("openvla", Source(published[0], ROBOT, key="bridge_orig"), out)


def features_of(tensors, image: np.ndarray, words_D: torch.Tensor | None = None) -> torch.Tensor:
    """Both towers' second-to-last blocks, then the projector. `words_D`: the mean word, where blocks are modulated by it (OFT's FiLM)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    features = []
    for name, tower in layouts.towers().items():
        mine = {k.removeprefix(f"vision_backbone.{name}."): t for k, t in tensors.items() if k.startswith(f"vision_backbone.{name}.")}
        film = {k: t for k, t in mine.items() if ".scale." in k or ".shift." in k}
        tower.load_state_dict({k.replace(".scale_factor", ".gamma").replace(".block.", "."): t for k, t in mine.items() if k not in film})
        mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if name == "featurizer" else ((0.5,) * 3, (0.5,) * 3)
        seen = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        if words_D is None:
            features.append(tower.get_intermediate_layers(seen, n=[len(tower.blocks) - 2])[0])
            continue
        x = tower._pos_embed(tower.patch_embed(seen))
        for index, block in enumerate(tower.blocks[:-1]):
            scale, shift = (
                F.linear(words_D, film[f"blocks.{index}.{n}.weight"], film[f"blocks.{index}.{n}.bias"]) for n in ("scale", "shift")
            )
            x = (x + block.ls1(block.attn(block.norm1(x)))) * (1 + scale) + shift
            x = x + block.ls2(block.mlp(block.norm2(x)))
        features.append(x[:, tower.num_prefix_tokens :])
    x = torch.cat(features, dim=2)
    for layer in ("fc1", "fc2", "fc3"):
        x = F.linear(x, tensors[f"projector.{layer}.weight"], tensors[f"projector.{layer}.bias"])
        x = x if layer == "fc3" else F.gelu(x)
    return x


def prefix_of(tensors, image: np.ndarray, ids: list[int]) -> torch.Tensor:
    """BOS, patches, words: `modeling_prismatic.py`, by hand."""
    words = F.embedding(torch.tensor(ids)[None], tensors["language_model.model.embed_tokens.weight"])
    return torch.cat([words[:, :1], features_of(tensors, image), words[:, 1:]], dim=1)


def llama_of(tensors):
    model = layouts.llama(layouts.WORDS + 64)
    model.load_state_dict({k.removeprefix("language_model."): t for k, t in tensors.items() if k.startswith("language_model.")})
    return model


def theirs(tensors, image: np.ndarray, text: str, statistics: dict) -> np.ndarray:
    """`predict_action`: words one by one, the last 256 being actions; then centres of bins, un-normalised where there is a mask."""
    prompt = (
        layouts.ids_of("<s>") + layouts.ids_of(f"In: What action should the robot take to {text.lower()}?\nOut:") + [layouts.EMPTY_PIECE]
    )
    x, words, language = prefix_of(tensors, image, prompt), [], llama_of(tensors)
    for _ in range(7):
        logits = language(inputs_embeds=x).logits[0, -1]
        logits[: layouts.WORDS - 256] = logits[layouts.WORDS :] = -torch.inf  # a trained model says nothing else
        words.append(int(logits.argmax()))
        x = torch.cat([x, language.model.embed_tokens(torch.tensor([[words[-1]]]))], dim=1)
    edges = np.linspace(-1, 1, 256)
    centre = ((edges[:-1] + edges[1:]) / 2)[np.clip(layouts.WORDS - np.array(words) - 1, 0, 254)]
    low, high, mask = (np.array(statistics[name]) for name in ("q01", "q99", "mask"))
    return np.where(mask, 0.5 * (centre + 1) * (high - low) + low, centre)


@torch.no_grad()
def test_it_acts_as_theirs_does(published, imported):
    policy = Policy.load(imported[0])
    found, want = [], []
    for seed, text in enumerate(("open the door", "Close IT", "push", "open it", "push it", "close the door")):
        seen = layouts.observation(ROBOT, seed, text=text)
        found.append(policy.act(seen).action_TA[0])
        want.append(theirs(published[1], seen.images["third_person"][0], text, layouts.STATISTICS["action"]))
    np.testing.assert_allclose(np.stack(found), np.stack(want), atol=1e-6)
    assert np.unique(np.stack(want), axis=0).shape[0] > 3  # and they say different things


def test_every_tensor_is_accounted_for(published, imported):
    _, report = imported
    cut = [name for name in published[1] if ".blocks.2." in name and "vision_backbone.featurizer" in name]
    assert report.taken + sum(report.left.values()) == len(published[1]) and len(cut) > 5
    assert next(iter(report.left)).startswith("the last block of a vision tower")
    assert any("limits are those of 'arm'" in note for note in report.notes)
    config = json.loads((imported[0] / "config.json").read_text())
    assert config["run"]["imported"] == {"format": "openvla", "statistics": "bridge_orig"} and config["run"]["left_out"] == report.left
    assert str(published[0].parent) not in json.dumps(config)  # no path of this machine


def test_the_top_word_is_an_open_gripper(published, imported):
    """Exactly 1, which an open gripper is, has a word of its own (31744), and both directions know it."""
    from vla.types import ActionSpec

    policy = Policy.load(imported[0])
    codec = policy.model.decoder.codes.codec
    spec = ActionSpec(torch.zeros(1, dtype=torch.int64), torch.ones(1, 1, 7, dtype=torch.bool))
    code = codec.encode(torch.tensor([[[-1.0, 0.0, 0.999, 1.0, 1.5, -2.0, 0.25]]]), spec)
    assert code.tolist() == [[0, 127, 254, 255, 255, 0, 159]]
    embedding = published[1]["language_model.model.embed_tokens.weight"]
    assert torch.equal(policy.model.decoder.codes.code_in.weight[255], embedding[31744])
    assert codec.decode(code, spec)[0, 0, 3] == codec.decode(code, spec)[0, 0, 2]


def test_what_is_missing_left_over_or_of_another_shape_is_named(published, tmp_path):
    source = Source(published[0], ROBOT, key="bridge_orig")
    plan, stored = plan_import("openvla", source), dict(source.stored)
    gone = "language_model.model.layers.1.mlp.up_proj.weight"
    with pytest.raises(SchemaError, match=rf"'{gone}' missing; nearest there: .*up_proj"):
        check(plan, {k: v for k, v in stored.items() if k != gone}, "openvla-7b")
    with pytest.raises(SchemaError, match="nothing here takes 'film.weight'"):
        check(plan, {**stored, "film.weight": stored[gone]}, "openvla-7b")
    with pytest.raises(SchemaError, match=r"'projector.fc1.bias' \(1,\) would make \(1,\); its configuration says \(544,\)"):
        check(plan, {**stored, "projector.fc1.bias": stored["projector.fc1.bias"].rows(0, 1)}, "openvla-7b")
    with pytest.raises(SchemaError, match=r"embed_tokens.weight' \(4, 32\) would make \(4, 32\)"):
        check(
            plan, {**stored, "language_model.model.embed_tokens.weight": stored["language_model.model.embed_tokens.weight"].rows(0, 4)}, "x"
        )
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists; give a folder that does not"):
        import_checkpoint("openvla", source, tmp_path / "there")


def test_robots_and_statistics_that_do_not_fit_are_refused(published, tmp_path):
    folder, _ = published
    with pytest.raises(UnknownName, match="unknown key of statistics ''. Choices: bridge_orig, fractal"):
        plan_import("openvla", Source(folder, ROBOT))
    with pytest.raises(SchemaError, match=r"actions of 7 numbers; 'arm' has 5 \(move\[4 command\], gripper\[1 open01\]\)"):
        plan_import("openvla", Source(folder, layouts.robot(action=5), key="bridge_orig"))
    two = layouts.robot(cameras=("third_person", "wrist"))
    with pytest.raises(UserError, match="takes 1 image; say which"):
        plan_import("openvla", Source(folder, two, key="bridge_orig"))
    robot = plan_import("openvla", Source(folder, two, ("wrist",), key="bridge_orig")).contents.embodiments[0]
    assert (robot.cameras, robot.horizon) == (("wrist",), 1)


def test_damaged_and_incomplete_downloads_are_named(published, tmp_path):
    import shutil

    from vla.errors import Damaged

    folder = tmp_path / "copy"
    shutil.copytree(published[0], folder)
    second = folder / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    with pytest.raises(Damaged, match="model-00002-of-00002.safetensors is no readable safetensors file"):
        plan_import("openvla", Source(folder, ROBOT, key="bridge_orig"))
        _ = Source(folder, ROBOT).stored
    second.unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002.safetensors of its index"):
        _ = Source(folder, ROBOT).stored
    save_file(load_file(folder / "model-00001-of-00002.safetensors"), second)
    with pytest.raises(SchemaError, match="is in two files"):
        _ = Source(folder, ROBOT).stored


def test_the_command(published, tmp_path, capsys):
    from vla.cli import main

    robot = tmp_path / "my_arm.py"
    robot.write_text("from tests.interop.layouts import robot\n\nEMBODIMENT = robot()\n")
    args = ["import", "openvla", str(published[0]), str(tmp_path / "out"), "--embodiment", str(robot)]
    assert main(args) == 2
    assert "Choices: bridge_orig, fractal" in capsys.readouterr().err
    assert main([*args, "--key", "fractal"]) == 0
    said = capsys.readouterr().out
    assert "left out: " in said and "note: units, frames and limits are those of 'arm'" in said
    assert Policy.load(tmp_path / "out").act(layouts.observation(ROBOT)).action_TA.shape == (1, 7)
