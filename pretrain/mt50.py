"""Fifty Meta-World tasks on one large GPU: MT50, one policy of 28M parameters, from scratch.

What      28M parameters, one 128 px camera (as others report this benchmark), proprioception and an instruction -> a chunk of 12 commands.
          `two_cameras` sees by the wrist's as well.
Hardware  one GPU of 80 GB or more and 16 cores; pretrain/mt50_two_cores.py is for a machine without one.
Time      meant for 30 minutes of an H200, which nobody has timed, in parts of under 10, each of which goes on where the last was stopped.
Expect    not run yet: it needs a GPU. The goal is 75% over the four groups of difficulty (SmolVLA 2.25B: 68.2, StarVLA 3B: 70.9).
Command   vla collect --suite metaworld-mt50 --episodes 50 --noise-share 0.5 --image-size 128 --workers 16 --out data/mt50
          timeout 540 vla train pretrain/mt50.py --resume    (again until it says that it is done)
          vla eval runs/mt50 --suite metaworld-mt50 --episodes 10 --device cuda --workers 16 --json runs/mt50/eval.json
Parts     `vla collect` and `vla train` with --resume, `vla eval` by the same command; a run that is told to stop saves first.
"""

from dataclasses import replace

from vla.backbones.tiny import Tiny
from vla.decoders.parallel import Parallel
from vla.embodiment import load_embodiment
from vla.model import Model
from vla.train.optim import AdamW, Cosine
from vla.train.run import Run

BOTH = load_embodiment("metaworld_sawyer")

RUN = Run(
    name="mt50",
    model=Model(Tiny(width=512, depth=8, heads=8, channels=32, keypoints=128, image_size=128, stride=8), Parallel(steps_per_token=3)),
    mixture="data_mixtures/mt50.yaml",
    embodiments=(replace(BOTH, cameras=("third_person",)),),
    steps=20_000,
    batch_size=512,
    precision="bf16",
    optim=AdamW(lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),
    schedule=Cosine(warmup_steps=500),
    ema_decay=0.999,
    validate_every=2500,
    save_every=500,
    workers=12,
)
two_cameras = replace(RUN, name="mt50_two_cameras", mixture="data_mixtures/mt50_two_cameras.yaml", embodiments=(BOTH,))
