"""Fifty Meta-World tasks on two cores: MT50, one small policy, from scratch.

What      2.8M parameters, one 128 px camera (as others report this benchmark), proprioception and an instruction -> a chunk of 12 commands.
Hardware  two CPU cores, no GPU; pretrain/mt50.py is for one.
Time      an hour and a half: 18 minutes of collecting, 73 of training, 10 episodes a task.
Expect    30% over the four groups of difficulty, easy tasks 63% (docs/results.md); its loss was still falling, and pretrain/mt10.py, with
          two views, does eight of its ten tasks better. It is the small version of what pretrain/mt50.py is for.
Command   vla collect --suite metaworld-mt50 --episodes 50 --noise-share 0.5 --image-size 128 --out data/mt50
          torchrun --nproc-per-node 2 -m vla train pretrain/mt50_two_cores.py
          vla eval runs/mt50_two_cores --suite metaworld-mt50 --episodes 10 --json runs/mt50_two_cores/eval.json
Parts     `vla collect` and `vla train` with --resume, `vla eval` by the same command; or all by
          python -m benchmarks.from_scratch pretrain/mt50_two_cores.py
"""

from dataclasses import replace

from vla.backbones.tiny import Tiny
from vla.decoders.parallel import Parallel
from vla.embodiment import load_embodiment
from vla.model import Model
from vla.train.optim import AdamW, Cosine
from vla.train.run import Run

RUN = Run(
    name="mt50_two_cores",
    model=Model(Tiny(width=192, depth=4, heads=4, channels=16, keypoints=128, image_size=128, stride=8), Parallel(steps_per_token=3)),
    mixture="data_mixtures/mt50.yaml",
    embodiments=(replace(load_embodiment("metaworld_sawyer"), cameras=("third_person",)),),
    steps=24_000,
    batch_size=64,
    optim=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),
    schedule=Cosine(warmup_steps=100),
    ema_decay=0.999,
    validate_every=5000,
    save_every=1000,
    workers=0,
    threads=1,
)
