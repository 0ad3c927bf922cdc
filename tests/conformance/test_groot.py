"""GR00T N1.7's action head (`gr00t_n1d7.py`, `dit.py`): shape, what its layers look at, maps per embodiment. Its flow: test_flow.py."""

from __future__ import annotations

import torch

from vla.decoders.conditioning import CrossAttention
from vla.decoders.dit import DiT
from vla.roster import Roster

HEAD = DiT(conditioning=CrossAttention(width=1536, depth=16, heads=32, style="dit", interleaved=True), time="adaptive", evaluations=4)


def test_the_published_head_builds_from_its_numbers():
    """16 layers x 32 heads x 48, chunk 40, action width 132, 32 embodiments; backbone states of width 2048 (Qwen3-VL 2B)."""
    with torch.device("meta"):
        decoder = HEAD.build(2048, Roster(tuple(f"robot{i}" for i in range(32)), 40, 132, 132))
    blocks = decoder.conditioning.expert.blocks
    assert len(blocks) == 16 and {(b.shape.heads, b.shape.head_width, b.shape.mlp_width) for b in blocks} == {(32, 48, 6144)}
    for index, block in enumerate(blocks):
        looks_at_backbone = index % 2 == 0
        assert (block.context_kv is not None) == looks_at_backbone and (block.kv is None) == looks_at_backbone
        if looks_at_backbone:
            assert block.context_kv.in_features == 2048 and block.context_kv.bias is not None
    assert decoder.action_in.weight_EIO.shape == (32, 132, 1536) and decoder.out.weight_EIO.shape == (32, 1536, 132)
    assert decoder.time_in.mlp[0].in_features == 256
    # Attention 4 D^2 or, from the backbone, 2 D^2 + 2 * 2048 D; MLP 8 D^2; adaptive norms: scale and shift of each and a gate, 6 D^2.
    D = 1536
    weights = 8 * (4 + 8 + 6) * D * D + 8 * ((2 + 8 + 6) * D * D + 2 * 2048 * D)
    found = sum(p.numel() for p in blocks.parameters())
    assert abs(found / weights - 1) < 0.002


def test_four_robots_have_four_maps():
    """A batch mixes embodiments: each row goes through its own robot's maps in and out."""
    from tests.parts import DECODERS, SOURCES, contents, samples
    from vla.noise import Noise

    torch.manual_seed(0)
    holds = contents(DECODERS["groot"])
    model = holds.build()
    batch = holds.collate(model).samples(samples(4, unlabelled=False), SOURCES)
    noise = Noise(batch.position_B)
    with torch.no_grad():
        before = model.sample(batch, noise)
        model.decoder.out.bias_EO[1] += 0.1  # the second robot's
        after = model.sample(batch, noise)
    moved_B = (before != after).flatten(1).any(1)
    assert moved_B.tolist() == (batch.spec.embodiment_B == 1).tolist() and 0 < moved_B.sum() < 4
