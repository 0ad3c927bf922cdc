"""Windows, instructions, proprioception and frozen features: each part of a latent-action model that only some of them have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.episodes import ROBOT as ARM
from tests.data.episodes import make_episode
from vla.backbones.tiny import Tiny
from vla.codecs.quantizer import VQ
from vla.config import from_json, to_json
from vla.data.reader import Dataset
from vla.data.shard import DatasetInfo, ShardWriter
from vla.errors import SchemaError, UserError
from vla.latent_action.decoder import ForwardConv
from vla.latent_action.encoder import PatchDifference, StateDifference, WindowTransformer
from vla.latent_action.features import TinyConv
from vla.latent_action.frozen import PolicyVision, TimmTower, TransformersTower
from vla.latent_action.label import encode_dataset
from vla.latent_action.language import Words
from vla.latent_action.model import LatentActionConfig
from vla.latent_action.moving_distractor import STEPS, write_moving_distractor
from vla.latent_action.proprio import Proprio
from vla.latent_action.train import frame_pairs
from vla.noise import Noise

SMALL = LatentActionConfig(
    gap_s=(0.1, 0.3),
    features=TinyConv(size=32, channels=4),
    encoder=StateDifference(width=4),
    quantizer=VQ(codes=2, vocabulary=4, width=4),
    decoder=ForwardConv(width=4),
)
WINDOW = replace(
    SMALL, gap_s=(0.2, 0.2), encoder=WindowTransformer(before=2, width=16, depth=1, heads=2, queries=2), history_s=(-0.2, -0.1)
)
DINO = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
TOWERS = {
    "timm": TimmTower(
        "vit_tiny_patch16_224", 32, pretrained=False, settings={"embed_dim": 12, "depth": 1, "num_heads": 2, "patch_size": 8}
    ),
    "transformers": TransformersTower({"model_type": "dinov2", **DINO}, size=28),
    "registers": TransformersTower({"model_type": "dinov2_with_registers", **DINO}, size=28),
    "policy": PolicyVision(Tiny(width=16, depth=1, heads=2, channels=4, keypoints=8), size=64),
}


@pytest.fixture(scope="module", name="labelled")
def _labelled(tmp_path_factory):
    return write_moving_distractor(tmp_path_factory.mktemp("toy") / "toy", 6, seed=0, labelled=True)


def build(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build()


@pytest.mark.parametrize("name", TOWERS)
def test_towers_are_frozen_and_predict_themselves(name, labelled):
    config = replace(SMALL, features=TOWERS[name], encoder=StateDifference(width=4, grid=1))
    model = build(config).train()
    assert from_json(to_json(config)) == config and not model.features.training
    assert not any(parameter.requires_grad for parameter in model.features.parameters())
    pairs = model.collate(frame_pairs(config, [labelled]).samples(range(8)))
    maps = model.features(pairs.now_BHW3)
    assert maps.shape == (8, model.features.channels, model.features.side, model.features.side)
    torch.testing.assert_close(model.features.target(pairs.now_BHW3), maps)
    torch.testing.assert_close(maps.mean(1), torch.zeros(8, *maps.shape[2:]), atol=1e-4, rtol=0)
    loss, code_BN = model(pairs, Noise(pairs.key_B))
    share = loss.parts["prediction"].sum.detach() / loss.parts["prediction"].weight
    assert code_BN.shape == (8, 2) and 0 < float(share) <= 1


def test_policy_features_are_those_of_its_checkpoint(tmp_path):
    features = TOWERS["policy"].build()
    with pytest.raises(UserError, match="no checkpoint"):
        replace(TOWERS["policy"], source=str(tmp_path / "nothing")).build().load_pretrained()
    assert features.side == 1 and features.channels == 16  # the tiny backbone sees one token a camera


def test_gaps_are_drawn_per_sample(labelled):
    gaps = [sample.gap_s for sample in frame_pairs(SMALL, [labelled]).samples(range(64))]
    assert {round(gap, 6) for gap in gaps} == {0.1, 0.2, 0.3}


def test_a_window_is_labelled_as_it_was_trained(labelled):
    model = build(WINDOW)
    pipeline = frame_pairs(WINDOW, [labelled])
    pairs = model.collate(pipeline.samples(range(32)))
    assert pairs.before_BFHW3 is not None and pairs.before_BFHW3.shape == (32, 2, 32, 32, 3)
    model.train()(pairs, Noise(pairs.key_B))
    model.eval()
    code_XN, bad = encode_dataset(Dataset.open(labelled), model, 0.2)
    rows = [anchor for anchor in range(2 * STEPS) if 2 <= anchor % STEPS < STEPS - 2]
    codes = model.encode(model.collate([pipeline.at_anchor("toy", anchor, 0.2) for anchor in rows])).numpy()
    assert bad == 0 and (codes == code_XN[rows]).mean() > 0.99
    moved = replace(pairs, before_BFHW3=255 - pairs.before_BFHW3)
    maps = model._maps(pairs)
    assert not torch.allclose(model._latent(pairs, *maps), model._latent(moved, *maps))  # the window is looked at
    with pytest.raises(SchemaError, match="frames before now"):
        model.encode(replace(pairs, before_BFHW3=None))


def test_a_second_view_stands_beside_the_first_where_there_is_one(tmp_path):
    folder = tmp_path / "arms"
    with ShardWriter(folder, DatasetInfo("arms", ARM.to_json())) as writer:
        for number in range(3):
            writer.add(make_episode(f"e{number}", 12, number, every=(1, 2)))
    config = replace(SMALL, camera="front", gap_s=(0.2, 0.2), beside=("side", "wrist"))
    model, pipeline = build(config), frame_pairs(config, [folder])
    pairs = model.collate(pipeline.samples(range(6)))
    left, right = pairs.now_BHW3[:, :, :14].float(), pairs.now_BHW3[:, :, 18:].float()
    assert (left[..., 1] < 3).all() and (right[..., 1] - 40).abs().max() < 4  # green tells the camera, red the step
    torch.testing.assert_close(left[:, 0, 0, 0], right[:, 0, 0, 0], atol=4, rtol=0)
    model.train()(pairs, Noise(pairs.key_B))
    code_XN, bad = encode_dataset(Dataset.open(folder), model.eval(), 0.2)
    codes = model.encode(model.collate([pipeline.at_anchor("arms", anchor, 0.2) for anchor in range(5)])).numpy()
    assert bad == 0 and (codes == code_XN[:5]).all()
    assert config.views(("front", "wrist")) == ("front", "wrist") and config.views(("front",)) == ("front",)
    assert model.hash() != replace(config, beside=None).build().hash()


def test_windows_and_stages_make_sense():
    with pytest.raises(SchemaError, match="history_s"):
        replace(WINDOW, history_s=None).build()
    with pytest.raises(UserError, match="rising"):
        replace(WINDOW, history_s=(-0.1, -0.2))
    first = replace(SMALL, language=Words(width=4))
    with pytest.raises(UserError, match="`language`"):
        replace(SMALL, first_stage=SMALL)
    with pytest.raises(UserError, match="same `camera`"):
        replace(SMALL, first_stage=replace(first, gap_s=(0.2, 0.2)))
    with pytest.raises(UserError, match="at least one"):
        Proprio(())


def test_the_instruction_reaches_the_forward_decoder_alone(labelled):
    model = build(replace(SMALL, language=Words(width=4)))
    samples = frame_pairs(SMALL, [labelled]).samples(range(16))
    pairs = model.collate(samples)
    model.train()(pairs, Noise(pairs.key_B))
    torch.nn.init.normal_(model.decoder.out.weight)
    model.eval()
    other = replace(pairs, word_BL=model.language.ids(["something else"] * 16))
    assert torch.equal(model.encode(pairs), model.encode(other))
    codes = model.encode(pairs)
    assert not torch.allclose(model.predict(pairs, codes), model.predict(other, codes))
    nothing = model.language(model.language.ids(["", "go left"]))
    assert torch.equal(nothing[0], torch.zeros(4)) and nothing[1].abs().sum() > 0


def test_going_back_is_the_negative_for_patches(labelled):
    config = replace(
        SMALL, encoder=PatchDifference(patch=4, width=16, depth=1, heads=2, grid=2), quantizer=VQ(codes=4, vocabulary=4, width=2)
    )
    model = build(config)
    pairs = model.collate(frame_pairs(config, [labelled]).samples(range(4)))
    now, later = model._maps(pairs)
    torch.testing.assert_close(model._latent(pairs, now, later), -model._latent(pairs, later, now))


def test_proprioception_counts_only_labelled_rows(labelled):
    config = replace(SMALL, proprio=Proprio((("toy_hand", 2, 2, 10.0), ("other", 5, 3, 20.0)), width=16))
    model = build(config).train()
    samples = frame_pairs(config, [labelled]).samples(range(12))
    without = [replace(sample, action_TA=None) for sample in samples[:8]]
    batch = model.collate([*without, *samples[8:]]).proprio
    np.testing.assert_array_equal(batch.robot_B, [-1] * 8 + [0] * 4)
    steps = [max(1, round(sample.gap_s * 10)) for sample in samples[8:]]
    want = np.stack([sample.action_TA[sample.valid_T][:n].mean(0) for sample, n in zip(samples[8:], steps, strict=True)])
    np.testing.assert_allclose(batch.move_BA[8:, :2], want, rtol=1e-5)
    pairs = model.collate([*without, *samples[8:]])
    loss, _ = model(pairs, Noise(pairs.key_B))
    assert float(loss.parts["proprio"].weight) == 4
    loss.parts["proprio"].sum.backward()
    assert model.encoder.out.weight.grad.abs().sum() > 0  # it pulls at the codes
    nothing = model.collate(without)
    assert float(model(nothing, Noise(nothing.key_B))[0].parts["proprio"].weight) == 0
    wrong = replace(config, proprio=Proprio((("toy_hand", 3, 2, 10.0),)))
    with pytest.raises(SchemaError, match="toy_hand"):
        build(wrong).collate(samples)
