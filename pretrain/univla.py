"""UniVLA (Bu et al. 2025): task-centric latent actions in DINOv2's features, in two stages.

What      stage 1 (`stage1`): the forward model is told the instruction, so its codes hold what the instruction does not say: the
          camera, other people. Stage 2 (`RUN`): those codes are frozen, and 4 new ones of 16 entries, width 128, take what is left,
          the task.
          DINOv2 ViT-B/14 with registers through timm, 12 + 12 blocks of width 768, beta 0.25, learning rate 1e-4 (`lam-stage-1.yaml`).
          Here: hashed words instead of T5, and the decoder alone is told them; the first stage is frozen with its encoder.
Hardware  8 GPUs of 80 GB in the paper; one process here, on one GPU. `tiny1` and `tiny2` one CPU core.
Time      days a stage on one GPU, which was not measured here; the tiny ones seconds.
Expect    with things moving in the background, codes that a linear probe reads better than those of one stage
          (`benchmarks/latent.py`).
Command   vla train pretrain/univla.py:stage1 --data-root data
          vla train pretrain/univla.py --init runs/univla_stage1 --data-root data
          vla label runs/univla data/video
"""

from dataclasses import replace

from vla.codecs.quantizer import VQ
from vla.latent_action.decoder import ForwardTransformer
from vla.latent_action.encoder import WindowTransformer
from vla.latent_action.frozen import TimmTower
from vla.latent_action.language import Words
from vla.latent_action.model import LatentActionConfig
from vla.latent_action.run import LatentRun

BASE = LatentActionConfig(
    gap_s=(0.8, 1.2),
    features=TimmTower("vit_base_patch14_reg4_dinov2.lvd142m", size=224),
    encoder=WindowTransformer(before=0, patch=1, width=768, depth=6, heads=12, queries=4),
    quantizer=VQ(codes=4, vocabulary=16, width=128, commitment=0.25),
    decoder=ForwardTransformer(patch=1, width=768, depth=12, heads=12),
)
FIRST = replace(BASE, language=Words(width=128))

stage1 = LatentRun(
    name="univla_stage1",
    mixture="data_mixtures/demo_latent_action.yaml",
    steps=100_000,
    batch_size=128,
    model=FIRST,
    learning_rate=1e-4,
    save_every=1000,
    device="cuda",
)
RUN = stage2 = replace(stage1, name="univla", model=replace(BASE, first_stage=FIRST))

TINY = replace(
    BASE,
    gap_s=(0.1, 0.2),
    features=TimmTower(
        "vit_tiny_patch16_224", size=32, pretrained=False, settings={"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 4}
    ),
    encoder=WindowTransformer(before=0, patch=2, width=32, depth=1, heads=2, queries=2),
    quantizer=VQ(codes=2, vocabulary=8, width=8),
    decoder=ForwardTransformer(patch=2, width=32, depth=1, heads=2),
)
TINY_FIRST = replace(TINY, language=Words(width=8, buckets=256))

tiny1 = replace(
    stage1,
    name="univla_tiny1",
    steps=40,
    batch_size=16,
    learning_rate=3e-3,
    threads=1,
    device="cpu",
    min_perplexity_share=0.05,
    model=TINY_FIRST,
)
tiny2 = tiny = replace(tiny1, name="univla_tiny2", model=replace(TINY, first_stage=TINY_FIRST))
