"""LAPO (Schmidt, Jiang 2024): latent actions from an inverse and a forward model, from video alone.

What      two frames a tenth of a second apart -> 4 codes of 64 entries (config.yaml: 4 latents of 2 codebooks, 64 entries of width 16).
          Here: one codebook a code, and a latent state of each frame whose difference is quantized instead of an IMPALA network.
Hardware  one GPU of 8 GB; `tiny` one CPU core.
Time      hours for 50,000 steps, which was not measured here; `tiny` seconds.
Expect    over half of the codebook in use, and codes that tell the hand's motion where nothing else moves (health.json).
Command   vla train pretrain/lapo.py --data-root data
          vla label runs/lapo data/video
"""

from dataclasses import replace

from vla.codecs.quantizer import VQ
from vla.latent_action.decoder import ForwardConv
from vla.latent_action.encoder import StateDifference
from vla.latent_action.features import TinyConv
from vla.latent_action.model import LatentActionConfig
from vla.latent_action.run import LatentRun

MODEL = LatentActionConfig(
    gap_s=(0.08, 0.12),
    features=TinyConv(size=64, channels=32, target_size=32),
    encoder=StateDifference(width=64),
    quantizer=VQ(codes=4, vocabulary=64, width=16, commitment=0.05, decay=0.999),
    decoder=ForwardConv(width=96),
)

RUN = LatentRun(name="lapo", mixture="data_mixtures/demo_latent_action.yaml", steps=50_000, batch_size=128, model=MODEL, learning_rate=3e-4)

tiny = replace(
    RUN,
    name="lapo_tiny",
    steps=40,
    batch_size=16,
    learning_rate=3e-3,
    threads=1,
    min_perplexity_share=0.05,
    model=replace(
        MODEL,
        features=TinyConv(size=32, channels=8),
        encoder=StateDifference(width=8),
        quantizer=VQ(codes=2, vocabulary=8, width=4),
        decoder=ForwardConv(width=8),
    ),
)
