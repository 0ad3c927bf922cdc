"""Ten Meta-World tasks on two cores: MT10, one small policy, from scratch.

What      1.4M parameters, two 64 px cameras, proprioception and an instruction -> a chunk of 12 commands.
Hardware  one CPU core of two, no GPU.
Time      at most 30 minutes: collecting, training, 10 episodes a task.
Expect    all of the seven tasks whose goal is an object in the picture, and a part of reach, push and pick-place, which show theirs by a
          marker of one or two pixels. docs/results.md has what was measured.
Command   vla collect --suite metaworld-mt10 --episodes 50 --noise-share 0.5 --out data/mt10
          vla train pretrain/mt10.py
          vla eval runs/mt10 --suite metaworld-mt10 --episodes 10 --json runs/mt10/eval.json
Parts     each goes on where it was stopped: `vla collect` and `vla train` with --resume, `vla eval` by the same command; or all by
          python -m benchmarks.from_scratch pretrain/mt10.py
"""

from vla.backbones.tiny import Tiny
from vla.decoders.parallel import Parallel
from vla.model import Model
from vla.train.optim import AdamW, Cosine
from vla.train.run import Run

RUN = Run(
    name="mt10",
    model=Model(Tiny(width=128, depth=4, heads=4, channels=16, keypoints=64), Parallel(steps_per_token=3)),
    mixture="data_mixtures/mt10.yaml",
    embodiments=("metaworld_sawyer",),
    steps=6000,
    batch_size=64,
    optim=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),
    schedule=Cosine(warmup_steps=50),
    ema_decay=0.99,
    validate_every=3000,
    save_every=200,
    workers=0,
    threads=1,
)
