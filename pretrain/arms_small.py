"""One small policy for four simulated robots: the checkpoint that comes with the repository (checkpoints/arms-small).

What      1.4M parameters, two 64 px cameras, proprioception and an instruction -> a chunk of 12 (ALOHA: 25) commands.
Hardware  one CPU core; 13 minutes of a quick one, 45 of a busy one.
Expect    its twelve tasks always, from unseen seeds, 20 episodes each: eight Sawyer tasks, Fetch's reach and lift, Panda's lift, ALOHA's;
          two of four tasks that it never saw (checkpoints/index.toml names the result files).
Command   the `vla collect` lines of data_mixtures/arms_small.yaml, then
          vla train pretrain/arms_small.py --data-root data --out runs/arms_small
"""

from vla.backbones.tiny import Tiny
from vla.decoders.parallel import Parallel
from vla.model import Model
from vla.train.optim import AdamW, Cosine
from vla.train.run import Run

RUN = Run(
    name="arms_small",
    model=Model(Tiny(width=128, depth=4, heads=4, channels=16, keypoints=64), Parallel(steps_per_token=3)),
    mixture="data_mixtures/arms_small.yaml",
    embodiments=("metaworld_sawyer", "fetch", "panda", "aloha"),
    steps=5000,
    batch_size=64,
    optim=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),
    schedule=Cosine(warmup_steps=50),
    ema_decay=0.995,
    validate_every=1000,
    save_every=500,
    workers=0,
    threads=1,
)
