"""villa-X (Chen et al. 2025): latent actions from a window of frames, held to the robot by a proprioceptive forward model.

What      8 frames (6 before now, now, later); 4 codes of 32 entries, width 128; 12 blocks of encoder, 8 of decoder. Beside the visual
          forward model one per embodiment predicts what the robot was commanded, from state and codes;
          video without labels trains the first only.
Hardware  8 GPUs of 80 GB for the published size; one process here, on one GPU. `tiny` one CPU core.
Time      days on one GPU, which was not measured here; `tiny` seconds.
Expect    codes that a linear probe reads better than those of vision alone where labelled robot data is in the mixture.
Command   vla train pretrain/villa_x.py --data-root data
          vla label runs/villa_x data/video
"""

from dataclasses import replace

from vla.codecs.quantizer import VQ
from vla.latent_action.decoder import ForwardTransformer
from vla.latent_action.encoder import WindowTransformer
from vla.latent_action.features import Pixels, TinyConv
from vla.latent_action.model import LatentActionConfig
from vla.latent_action.proprio import Proprio
from vla.latent_action.run import LatentRun

MODEL = LatentActionConfig(
    gap_s=(0.2, 0.4),
    features=Pixels(size=224, target_size=224),
    encoder=WindowTransformer(before=6, patch=14, width=768, depth=6, heads=12, queries=4),
    quantizer=VQ(codes=4, vocabulary=32, width=128),
    decoder=ForwardTransformer(patch=14, width=768, depth=8, heads=12),
    history_s=(-1.8, -1.5, -1.2, -0.9, -0.6, -0.3),
    proprio=Proprio.of("metaworld_sawyer", "fetch", width=256),
)

RUN = LatentRun(
    name="villa_x",
    mixture="data_mixtures/demo_video.yaml",
    steps=100_000,
    batch_size=128,
    model=MODEL,
    learning_rate=1e-4,
    save_every=1000,
    device="cuda",
)

tiny = replace(
    RUN,
    name="villa_x_tiny",
    mixture="data_mixtures/demo_latent_action.yaml",
    steps=40,
    batch_size=16,
    learning_rate=3e-3,
    threads=1,
    device="cpu",
    min_perplexity_share=0.05,
    model=replace(
        MODEL,
        gap_s=(0.1, 0.2),
        features=TinyConv(size=32, channels=8),
        encoder=WindowTransformer(before=2, patch=4, width=32, depth=1, heads=2, queries=2),
        quantizer=VQ(codes=2, vocabulary=8, width=8),
        decoder=ForwardTransformer(patch=4, width=32, depth=1, heads=2),
        history_s=(-0.2, -0.1),
        proprio=Proprio((("toy_hand", 2, 2, 10.0), ("metaworld_sawyer", 4, 4, 80.0))),
    ),
)
