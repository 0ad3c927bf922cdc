"""Fine-tuning of `make demo`: a Panda arm that pretraining never saw, from at most 50 demonstrations.

What      every weight trains; the robot's own maps (proprioception in, actions out) start fresh, all else from pretraining.
Hardware  one CPU core. Time: one to two minutes.
Expect    at least 60% success on robosuite's Lift (`make demo` reports it, beside the same run from scratch).
Command   vla train finetune/demo.py --init runs/demo/pretrain --data-root runs/demo/data
          vla train finetune/demo.py:scratch_parallel --data-root runs/demo/data
          (the control: the same model, data and steps, from fresh weights; one variant for each decoder of pretrain/demo.py)
"""

from dataclasses import replace
from pathlib import Path

from vla.train.optim import AdamW, Cosine
from vla.train.run import Run, load_recipe

RUN = Run(
    name="demo_new_robot",
    model=None,  # that of --init
    init="runs/demo/pretrain",
    mixture="data_mixtures/demo_new_robot.yaml",
    embodiments=("panda",),
    steps=300,
    batch_size=64,
    optim=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),
    schedule=Cosine(warmup_steps=50),
    ema_decay=0.99,
    workers=0,
    threads=1,
)


def _from_scratch(decoder: str) -> Run:
    pretraining = load_recipe(f"{Path(__file__).parent.parent / 'pretrain' / 'demo.py'}:{decoder}")
    return replace(RUN, name=f"demo_scratch_{decoder}", init=None, model=pretraining.model)


scratch_parallel = _from_scratch("parallel")
scratch_tokens = _from_scratch("tokens")
scratch_masked = _from_scratch("masked")
scratch_dit = _from_scratch("dit")
scratch_latent = _from_scratch("latent")
