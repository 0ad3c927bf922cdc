"""Numbers of published settings, read off the modules that the presets build (on the meta device, without weights)."""

from __future__ import annotations

import pytest
import torch

from vla.backbones.empty import build_empty
from vla.presets import preset
from vla.roster import Roster

LLAMA_2_7B = 4096
"""The width of the backbone that CogACT and UniVLA stand on."""


def model(name: str, width: int = 7):
    """The whole model, for heads that take their sizes from the backbone."""
    chosen = preset(name)
    return build_empty(chosen.model(), Roster(("arm",), chosen.horizon, width, width)), chosen


def head(name: str):
    """The decoder alone, beside a backbone of `LLAMA_2_7B`."""
    chosen = preset(name)
    with torch.device("meta"):
        return chosen.decoder.build(LLAMA_2_7B, Roster(("arm",), chosen.horizon, 7, 7)), chosen


def test_pi0():
    """openpi `gemma.py` (gemma_300m), `pi0.py`: width 1024, depth 18, MLP 4096, 8 heads, 1 KV head of 256; chunk 50; 10 steps."""
    made, chosen = model("pi0", width=32)
    decoder = made.decoder
    blocks = decoder.conditioning.expert.blocks
    assert len(blocks) == 18 == made.backbone.depth
    for block in blocks:
        assert (block.q.in_features, block.q.out_features, block.kv.out_features) == (1024, 8 * 256, 2 * 256)
        assert (block.mlp.up.out_features, block.mlp.down.in_features) == (2 * 4096, 4096)
    assert decoder.action_in.weight_EIO.shape == (1, 32, 1024) and decoder.step_TD.shape[0] == 50 == chosen.horizon
    assert (decoder.config.evaluations, decoder.path.config.times, decoder.path.config.reverse) == (10, "pi0", True)
    assert decoder.takes_state  # its own block before the actions


@pytest.mark.parametrize("size, width, depth, heads", [("s", 384, 6, 4), ("b", 768, 12, 12), ("l", 1024, 24, 16)])
def test_cogact(size, width, depth, heads):
    """`action_model.py`, `cogactvla.py`: sizes; 100 steps, 8 repeated noises, dropout 0.1; 10 DDIM steps, guidance 1.5; chunks of 16."""
    decoder, chosen = head(f"cogact_{size}")
    blocks = decoder.conditioning.expert.blocks
    assert (len(blocks), blocks[0].q.in_features, blocks[0].shape.heads, blocks[0].mlp.up.out_features) == (depth, width, heads, 4 * width)
    assert decoder.conditioning.context_in.in_features == 4096 and decoder.conditioning.query_1D is None  # the last token's own state
    assert len(decoder.path.alphas_cumprod_K) == 100 and decoder.path.levels(decoder.config.evaluations) == list(range(90, -1, -10))
    config = decoder.config
    assert (config.samples_per_context, config.condition_dropout, config.guidance, config.path.clip) == (8, 0.1, 1.5, None)
    assert chosen.horizon == 16 == decoder.step_TD.shape[0]


def test_dita():
    """100 squared-cosine steps, in context: no expert of its own."""
    made, _ = model("dita")
    assert len(made.decoder.path.alphas_cumprod_K) == 100
    assert not hasattr(made.decoder.conditioning, "expert") and made.decoder.conditioning.width == made.backbone.width


def test_univla_readout():
    """`finetune_libero.py`: two attention poolings, 512 wide, beside a backbone of 4096; 12 steps."""
    decoder, _ = head("univla")
    for pool in (decoder.seen, decoder.said):
        assert (pool.inward.in_features, pool.inward.out_features, pool.heads, pool.up.out_features) == (4096, 512, 512 // 64, 2 * 4 * 512)
    assert decoder.out_ETIA.shape == (1, 12, 512, 7)
