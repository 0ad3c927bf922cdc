"""SpatialVLA in its published layout -> the same words as its code written out, on the library's own SigLIP, ZoeDepth and Gemma 2."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.backbones.families import VOCABULARY, tokenizer_json
from tests.backbones.test_ego3d import ZOE
from tests.interop import layouts
from vla.errors import SchemaError, UnknownName, UserError
from vla.interop.formats import import_checkpoint, plan_import
from vla.interop.source import Source
from vla.policy import Policy
from vla.torchvision_cpu import prepare_torchvision

ROBOT, D, VISION, SIDE, PATCH, POINTS, STEPS = layouts.robot(), 32, 16, 32, 8, 2, 2
BINS = {"translation": {"theta_bins": 4, "phi_bins": 6, "r_bins": 2}, "rotation": {"roll_bins": 3, "pitch_bins": 3, "yaw_bins": 2}}
STARTS = (0, 48, 66, 68)
FIRST, WORDS = VOCABULARY, VOCABULARY + STARTS[-1]
TEXT = {"model_type": "gemma2", "vocab_size": WORDS, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0}
TEXT |= {"sliding_window": 128, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
TOWER = {"model_type": "siglip_vision_model", "hidden_size": VISION, "intermediate_size": 24, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False, "projection_dim": D}
CAMERA = {"intrinsic": [[623.588, 0, 319.501], [0, 600.0, 239.545], [0, 0, 1]], "height": 480, "width": 640}


def parts():
    """The library's own modules at these sizes: `vision_tower`, `language_model`, `vision_zoe_model`."""
    prepare_torchvision()
    from transformers import Gemma2Config, Gemma2Model, SiglipVisionConfig, SiglipVisionModel, ZoeDepthConfig, ZoeDepthForDepthEstimation

    text, tower = ({k: v for k, v in each.items() if k != "model_type"} for each in (TEXT, TOWER))
    gemma = Gemma2Model(Gemma2Config(**text, attn_implementation="eager")).eval()
    return SiglipVisionModel(SiglipVisionConfig(**tower)).eval(), gemma, ZoeDepthForDepthEstimation(ZoeDepthConfig.from_dict(ZOE)).eval()


def policy_of() -> dict:
    """Edges as `get_bin_policy` writes them: rising, not even."""
    ranges = {"theta": (0, math.pi), "phi": (-math.pi, math.pi), "r": (0, math.sqrt(3))}
    edges = lambda name, n: np.linspace(0, 1, n + 1) ** 1.3 * np.diff(r := ranges.get(name, (-1, 1)))[0] + r[0]  # noqa: E731
    return {group: {name: edges(name[:-5], count).tolist() for name, count in row.items()} for group, row in BINS.items()}


def published(folder) -> dict[str, torch.Tensor]:
    """Names and files of IPEC-COMMUNITY/spatialvla-4b-224-pt, with one `vision_model.` more than the library has today."""
    folder.mkdir()
    siglip, gemma, zoe = parts()
    tensors = {f"vision_tower.vision_model.{name.removeprefix('vision_model.')}": t for name, t in siglip.state_dict().items()}
    tensors |= {f"language_model.model.{name}": t for name, t in gemma.state_dict().items()}
    encoded = 3 * POINTS**2 * 17
    shapes = {"multi_modal_projector.linear": (D, VISION), "position_embedding_3d.position_embedding_head.0": (VISION, encoded)}
    shapes |= {f"position_embedding_3d.position_embedding_head.{i}": (VISION, VISION)[: 2 - (i == 1)] for i in (1, 3)}
    for name, shape in shapes.items():
        tensors |= {f"{name}.weight": torch.empty(shape), f"{name}.bias": torch.empty(shape[0])}
    tensors["spatial_embed_tokens.weight"] = torch.empty(STARTS[-1], D)
    tensors = layouts.randomise(tensors)
    norms = [name for name in tensors if name.startswith("language_model") and "norm" in name]
    tensors |= {name: tensors[name] - 1 for name in norms}  # Gemma's multiply by 1 + weight
    tensors |= {f"vision_zoe_model.{name}": t for name, t in zoe.state_dict().items()}
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "spatialvla", "text_config": TEXT, "vision_config": TOWER, "vision_zoe_config": ZOE, "use_vision_zoe": True}
    config |= {"action_token_begin_idx": FIRST, "spatial_token_num": STARTS[-1], "use_spatial_token": True, "ego3d_patch_reso": POINTS}
    (folder / "config.json").write_text(json.dumps({**config, "n_freqs": 8, "image_token_index": 285, "projection_dim": D}))
    processor = {"statistics": {"bridge_orig/1.0.0": layouts.STATISTICS, "other": layouts.STATISTICS}, "bin_policy": policy_of()}
    processor |= {"action_config": {"num_bins": {**BINS, "gripper": 2}, "use_spherical": True}, "action_chunk_size": STEPS}
    processor |= {"num_obs_steps": 1, "intrinsic_config": {"bridge_orig/1.0.0": CAMERA, "default": CAMERA}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "preprocessor_config.json").write_text(json.dumps({"resample": 3, "size": {"height": SIDE, "width": SIDE}}))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return tensors


def loaded(tensors):
    siglip, gemma, zoe = parts()
    own = next(iter(siglip.state_dict())).startswith("vision_model.")
    for module, prefix in ((siglip, "vision_tower." if own else "vision_tower.vision_model."), (gemma, "language_model.model.")):
        module.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    zoe.load_state_dict({k.removeprefix("vision_zoe_model."): t for k, t in tensors.items() if k.startswith("vision_zoe_model.")})
    return siglip, gemma, zoe


def features_of(tensors, siglip, zoe, image: np.ndarray) -> torch.Tensor:
    """`get_image_features`, before the division that Gemma's scaling undoes."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    small = F.interpolate(F.pad(pixels, (31,) * 4, mode="reflect"), size=(384, 384), mode="bicubic", align_corners=True)
    depth = zoe(pixel_values=(small - 0.5) / 0.5).predicted_depth[:, None]
    depth = F.interpolate(depth, size=(SIDE + 62, SIDE + 62), mode="bicubic", align_corners=True)[..., 31:-31, 31:-31]
    grid = SIDE // PATCH * POINTS
    depth = F.interpolate(depth, size=(grid, grid), mode="area").view(1, 1, -1)
    step = PATCH // POINTS
    y, x = torch.meshgrid(torch.arange(0, SIDE, step), torch.arange(0, SIDE, step), indexing="ij")
    pixel = torch.stack([x + step / 2, y + step / 2, torch.ones_like(x)]).view(3, -1).float()
    K = torch.tensor(CAMERA["intrinsic"])
    K[:2] *= torch.tensor([SIDE / CAMERA["width"], SIDE / CAMERA["height"]])[:, None]
    xyz = (torch.linalg.inv(K) @ pixel)[None] * depth
    xyz = xyz.view(1, 3, SIDE // PATCH, POINTS, SIDE // PATCH, POINTS).permute(0, 2, 4, 3, 5, 1).reshape(1, (SIDE // PATCH) ** 2, -1)
    normal = ((xyz - torch.tensor([0.0, 0, 2]).repeat(POINTS**2)) / 2)[..., None]
    waves = normal * 2 ** torch.arange(8)
    h = torch.cat([normal, waves.sin(), waves.cos()], -1).flatten(-2)
    w = {k.removeprefix("position_embedding_3d.position_embedding_head."): t for k, t in tensors.items()}
    h = F.relu(F.layer_norm(F.linear(h, w["0.weight"], w["0.bias"]), (VISION,), w["1.weight"], w["1.bias"]))
    seen = siglip(pixel_values=(pixels - 0.5) / 0.5).last_hidden_state + F.linear(h, w["3.weight"], w["3.bias"])
    return F.linear(seen, tensors["multi_modal_projector.linear.weight"], tensors["multi_modal_projector.linear.bias"])


def theirs(tensors, models, image, text: str) -> np.ndarray:
    """`predict_action` and `decode_actions`: the prompt sees all of itself, words one by one; then middles of cells."""
    siglip, gemma, zoe = models
    words, spatial = tensors["language_model.model.embed_tokens.weight"], tensors["spatial_embed_tokens.weight"]
    prompt = words[layouts.ids_of(f"<bos>{text.lower()}\n")][None] * math.sqrt(D)
    x, ids = torch.cat([features_of(tensors, siglip, zoe, image), prompt], dim=1), []
    before = x.shape[1]
    for place in range(3 * STEPS):
        S = x.shape[1]
        hidden = torch.arange(S)[None, :] > torch.arange(S)[:, None].clamp(min=before - 1)
        mask = torch.zeros(1, 1, S, S).masked_fill(hidden, torch.finfo(torch.float32).min)
        masks = dict.fromkeys(("full_attention", "sliding_attention"), mask)
        states = gemma(inputs_embeds=x, attention_mask=masks, position_ids=torch.arange(S)[None] + 1)
        logits = F.linear(states.last_hidden_state[0, -1], spatial)
        low, high = STARTS[place % 3], STARTS[place % 3 + 1]
        ids.append(low + int(logits[low:high].argmax()))  # a trained model says nothing else
        x = torch.cat([x, spatial[ids[-1]][None, None] * math.sqrt(D)], dim=1)
    policy, actions = policy_of(), []
    middle = {name: (np.array(e)[1:] + np.array(e)[:-1]) / 2 for row in policy.values() for name, e in row.items()}
    for trans, turn, grip in np.array(ids).reshape(STEPS, 3) - np.array(STARTS[:3]):
        t, p, r = np.unravel_index(trans, tuple(BINS["translation"].values()))
        theta, phi, rho = middle["theta_bins"][t], middle["phi_bins"][p], middle["r_bins"][r]
        xyz = rho * np.array([math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)])
        angles = [middle[n][i] for n, i in zip(BINS["rotation"], np.unravel_index(turn, tuple(BINS["rotation"].values())), strict=True)]
        actions.append([*np.clip(xyz, -1, 1), *angles, float(grip)])
    low, high, mask = (np.array(layouts.STATISTICS["action"][name]) for name in ("q01", "q99", "mask"))
    return np.where(mask, 0.5 * (np.array(actions) + 1) * (high - low) + low, actions)


@torch.no_grad()
@pytest.mark.slow
def test_it_acts_as_theirs_does(tmp_path):
    folder = tmp_path / "spatialvla"
    tensors = published(folder)
    report = import_checkpoint("spatialvla", Source(folder, ROBOT, key="bridge_orig/1.0.0"), tmp_path / "ours")
    assert report.taken == len(tensors) and not report.left
    policy, models, found = Policy.load(tmp_path / "ours"), loaded(tensors), []
    for seed, text in enumerate(("open the door", "Push IT", "close it")):
        seen = layouts.observation(ROBOT, seed, side=SIDE, text=text)
        want = theirs(tensors, models, seen.images["third_person"][0], text)
        np.testing.assert_allclose(policy.act(seen).action_TA, want, atol=1e-6)
        found.append(want)
    assert len(np.unique(np.stack(found).reshape(-1, 7), axis=0)) > 2  # and they say different things


@pytest.mark.slow
def test_a_head_of_words_that_is_not_tied_and_a_tower_without_positions(tmp_path):
    folder = tmp_path / "spatialvla"
    tensors = published(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_vision_zoe": False, "text_config": {**TEXT, "tie_word_embeddings": False}}
    (folder / "config.json").write_text(json.dumps(config))
    source = Source(folder, ROBOT, key="other")
    with pytest.raises(SchemaError, match="'language_model.lm_head.weight' missing"):
        import_checkpoint("spatialvla", source, tmp_path / "none")
    kept = {k: t for k, t in tensors.items() if not k.startswith(("vision_zoe_model.", "position_embedding_3d."))}
    head = torch.randn(WORDS, D)
    save_file({**{k: t.contiguous() for k, t in kept.items()}, "language_model.lm_head.weight": head}, folder / "model.safetensors")
    import_checkpoint("spatialvla", Source(folder, ROBOT, key="other"), tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(ours["decoder.codes.head.weight"], head[FIRST:]) and not any(name.startswith("backbone.ego3d") for name in ours)


def test_another_kind_of_grid_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "paligemma"}')
    with pytest.raises(UserError, match="is a 'paligemma', not SpatialVLA"):
        plan_import("spatialvla", Source(tmp_path, ROBOT))
    (tmp_path / "config.json").write_text('{"model_type": "spatialvla"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    processor = {"statistics": {"a": layouts.STATISTICS, "b": {}}, "bin_policy": policy_of(), "action_chunk_size": 4}
    processor |= {"action_config": {"num_bins": {**BINS, "gripper": 2}, "use_spherical": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(SchemaError, match="what is known is one frame and spherical coordinates"):
        plan_import("spatialvla", Source(tmp_path, ROBOT))
    processor["action_config"]["use_spherical"] = True
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UnknownName, match="unknown key of statistics ''. Choices: a, b"):
        plan_import("spatialvla", Source(tmp_path, ROBOT))
    processor["bin_policy"]["translation"]["phi_bins"] = [0.0, 1.0]
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(SchemaError, match="2 edges of 'phi' for 6 cells"):
        plan_import("spatialvla", Source(tmp_path, ROBOT, key="a"))
