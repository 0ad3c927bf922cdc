"""LAPA (Ye et al. 2024): codes for what changes in the pixels over a long gap, for pretraining on human video.

What      256 px, patches of 32; 4 codes of 8 entries, width 32, by NSVQ on the difference of two frames 30 frames apart, which at the 12
          frames per second of Something-Something v2 are 2.5 s (`laq/train_sthv2.py`). Width 1024, 8 + 8 blocks.
Hardware  8 GPUs of 40 GB in the paper; one process here, on one GPU. `tiny` one CPU core.
Time      days for 100,000 steps on one GPU, which was not measured here; `tiny` seconds.
Expect    4096 possible codes, most entries of each in use (`health.json`); what follows: `docs/latent-actions.md`.
Command   vla train pretrain/lapa.py --data-root data
          vla label runs/lapa data/video
"""

from dataclasses import replace

from vla.codecs.quantizer import NSVQ
from vla.latent_action.decoder import ForwardTransformer
from vla.latent_action.encoder import PatchDifference
from vla.latent_action.features import Pixels
from vla.latent_action.model import LatentActionConfig
from vla.latent_action.run import LatentRun

MODEL = LatentActionConfig(
    gap_s=(2.5, 2.5),
    features=Pixels(size=256, target_size=256),
    encoder=PatchDifference(patch=32, width=1024, depth=16, heads=16, grid=2),
    quantizer=NSVQ(codes=4, vocabulary=8, width=32),
    decoder=ForwardTransformer(patch=32, width=1024, depth=8, heads=16),
)

RUN = LatentRun(
    name="lapa",
    mixture="data_mixtures/demo_latent_action.yaml",
    steps=100_000,
    batch_size=64,
    model=MODEL,
    learning_rate=1e-4,
    device="cuda",
)

tiny = replace(
    RUN,
    name="lapa_tiny",
    steps=40,
    batch_size=16,
    learning_rate=3e-3,
    threads=1,
    device="cpu",
    min_perplexity_share=0.05,
    model=replace(
        MODEL,
        gap_s=(0.2, 0.2),  # the toy's episodes are shorter than LAPA's gap
        features=Pixels(size=32, target_size=16),
        encoder=PatchDifference(patch=4, width=32, depth=1, heads=2),
        quantizer=NSVQ(codes=4, vocabulary=8, width=4),
        decoder=ForwardTransformer(patch=4, width=32, depth=1, heads=2),
    ),
)
