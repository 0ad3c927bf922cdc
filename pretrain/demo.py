"""Pretraining of `make demo`: eight Sawyer tasks and a Fetch arm, from scratch, on a CPU.

What      1.4M parameters, two 64 px cameras, proprioception and an instruction -> 12 commands.
Hardware  one CPU core (2 in the machine: data and the rest of the demo take the other).
Time      4 to 8 minutes a variant, by the machine.
Expect    at least 80% success on the eight tasks from unseen seeds for `RUN`, 60% for each of the others (`make demo` reports it).
Command   vla train pretrain/demo.py --data-root runs/demo/data
          vla train pretrain/demo.py:masked --data-root runs/demo/data     (the other decoders: tokens, masked, dit, latent)
"""

from dataclasses import replace

from vla.backbones.tiny import Tiny
from vla.codecs.bins import Bins
from vla.codecs.fast import FAST
from vla.decoders.dit import DiT
from vla.decoders.latent import LatentActions
from vla.decoders.masked import MaskedDiffusion
from vla.decoders.parallel import Parallel
from vla.decoders.tokens import AutoregressiveTokens
from vla.diffusion.flow import Flow
from vla.model import Model
from vla.train.optim import AdamW, Cosine
from vla.train.run import Run

BACKBONE = Tiny(width=128, depth=4, heads=4, channels=16, keypoints=32)
CODEC = Bins(every=3)  # at 80 Hz neighbouring commands are nearly equal: 16 tokens a chunk instead of 48

RUN = Run(
    name="demo_parallel",
    model=Model(BACKBONE, Parallel(steps_per_token=3)),
    mixture="data_mixtures/demo.yaml",
    embodiments=("metaworld_sawyer", "fetch"),
    steps=1000,
    batch_size=64,
    optim=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),
    schedule=Cosine(warmup_steps=50),
    ema_decay=0.99,
    validate_every=500,
    workers=0,
    threads=1,
)

parallel = RUN
tokens = replace(RUN, name="demo_tokens", model=Model(BACKBONE, AutoregressiveTokens(codec=CODEC, hide=0.5)), steps=1600)
masked = replace(RUN, name="demo_masked", model=Model(BACKBONE, MaskedDiffusion(codec=CODEC, evaluations=4)), steps=1400)
dit = replace(
    RUN,
    name="demo_dit",
    model=Model(BACKBONE, DiT(path=Flow(predict="data", times="uniform"), samples_per_context=4, evaluations=4, steps_per_token=3)),
    steps=1100,
)
"""With K noise samples a context; `dit_one` is the same with one, `fast` has other codes: for `pretrain/heads.py` alone."""
dit_one = replace(
    RUN,
    name="demo_dit_one",
    model=Model(BACKBONE, DiT(path=Flow(predict="data", times="uniform"), samples_per_context=1, evaluations=4, steps_per_token=3)),
    steps=1100,
)
fast = replace(RUN, name="demo_fast", model=Model(BACKBONE, AutoregressiveTokens(codec=FAST(vocabulary=512), hide=0.5)), steps=1600)
latent = replace(RUN, name="demo_latent", model=Model(BACKBONE, LatentActions()), mixture="data_mixtures/demo_video.yaml", steps=1200)
