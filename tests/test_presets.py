"""Presets at the published sizes, without weights; and each head on the tiny backbone, with weights, through the checkpoint's JSON."""

from __future__ import annotations

import pytest
import torch

from tests.parts import SOURCES, TINY, contents, robot, samples
from vla.backbones.empty import build_empty, count_parameters
from vla.backbones.published import PUBLISHED, published
from vla.config import from_json, to_json
from vla.decoders.base import total_loss
from vla.errors import UnknownName
from vla.noise import Noise
from vla.presets import PRESETS, preset
from vla.roster import Roster

SIZES = {
    # (millions of parameters of the decoder, share it may be off, where the figure is from)
    "cogact_s": (13, 0.05, "CogACT, arXiv:2411.19650, table 5"),
    "cogact_b": (89, 0.01, "the same"),
    "cogact_l": (308, 0.01, "the same"),
    "pi0": (311, 0.02, "openpi, src/openpi/models/gemma.py: gemma_300m"),
    "univla": (12, 0.15, "UniVLA, arXiv:2505.06111, section 3.3: 12M"),
}
WHOLE = {
    # (millions of parameters that act, seven numbers a command, source)
    "act": (34.2, "lerobot 0.4.4, ACTConfig() without the CVAE's encoder"),
    "diffusion_policy": (11.2 + 8.4, "ResNet-18 and diffusion_policy's train_diffusion_transformer_hybrid_workspace.yaml: 8 layers of 256"),
}
BACKBONES = {
    # (billions without a vocabulary head of its own, source)
    "google/paligemma-3b-pt-224": (2.923, "model card"),
    "google/paligemma2-3b-pt-224": (3.032, "model card: 3.03B"),
    "openvla/openvla-7b": (7.541 - 0.131 - 0.043, "model card: 7.54B, less the vocabulary head and the towers' last blocks"),
    "Qwen/Qwen3-VL-2B-Instruct": (2.127, "model card: 2.13B"),
}


QUICK = ("openvla", "cogact_b", "pi0", "spatialvla", "gr00t_n1", "vq_bet")
"""One of each backbone and kind of decoder; of the others it is a thorough test."""


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in PRESETS])
def test_builds_at_its_published_size_without_weights(name):
    chosen = preset(name)
    model = build_empty(chosen.model(), Roster(("arm",), chosen.horizon, 7, 8))
    assert all(p.is_meta for p in model.parameters())
    if name in WHOLE:
        assert count_parameters(model) / 1e6 == pytest.approx(WHOLE[name][0], rel=0.04)
    if name in SIZES:
        millions, share, _ = SIZES[name]
        assert count_parameters(model.decoder) / 1e6 == pytest.approx(millions, rel=share)


@pytest.mark.parametrize("source", BACKBONES)
def test_backbones_have_their_published_sizes(source):
    assert count_parameters(build_empty(published(source))) / 1e9 == pytest.approx(BACKBONES[source][0], abs=3e-3)


def test_every_preset_names_a_known_backbone_and_its_paper():
    assert {each.backbone for each in PRESETS.values() if isinstance(each.backbone, str)} <= set(PUBLISHED)
    assert all(each.paper and each.horizon > 0 for each in PRESETS.values())


def test_unknown_names_list_the_choices():
    with pytest.raises(UnknownName, match="cogact_b"):
        preset("cogact")
    with pytest.raises(UnknownName, match="openvla/openvla-7b"):
        published("openvla")


LIGHT = ["openvla", "openvla_oft", "discrete_diffusion_vla", "pi0", "spatialvla", "vq_bet", "univla"]
FITTED = ("vq_bet",)
"""Codebooks are fitted for longer than heads learn."""
ARM = robot("arm", 7, 3, 4)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in FITTED else []) for name in LIGHT])
def test_its_head_learns_and_acts_on_another_backbone(name):
    chosen = preset(name)
    holds = contents(from_json(to_json(chosen.decoder)), TINY, (ARM,))
    torch.manual_seed(0)
    model = holds.build()
    batch = holds.collate(model).samples(
        samples(4, robots=(ARM,), unlabelled=False, latents=model.decoder.latent_codes), {**SOURCES, "arm": 3}
    )
    if model.decoder.latent_codes:
        assert batch.target.latent_BN.shape[1] == model.decoder.latent_codes
    if model.decoder.fits:
        model.decoder.fit(batch.target)
    loss = total_loss(model(batch, Noise(batch.position_B)))
    loss.backward()
    assert torch.isfinite(loss) and any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    with torch.inference_mode():
        assert torch.isfinite(model.eval().sample(batch, Noise(batch.position_B))).all()
