"""Distil the demo's denoiser, which takes four evaluations a chunk, into one that takes a single one.

What      a student with the teacher's weights learns where its sampler arrives, from the same noise (vla/decoders/one_step.py). The
          backbone, proprioception and the teacher stand still.
Hardware  one CPU core. Time: about 5 minutes.
Expect    actions near the teacher's at a quarter of its denoising steps; compare the two with `vla compare`.
Command   vla train pretrain/demo.py:dit --data-root runs/demo/data
          vla train finetune/one_step.py --init runs/demo_dit --data-root runs/demo/data
"""

from dataclasses import replace
from pathlib import Path

from vla.decoders.one_step import OneStep
from vla.train.optim import AdamW, Cosine
from vla.train.run import load_recipe

TEACHER = load_recipe(f"{Path(__file__).parent.parent / 'pretrain' / 'demo.py'}:dit")

RUN = replace(
    TEACHER,
    name="demo_one_step",
    model=replace(TEACHER.model, decoder=OneStep(TEACHER.model.decoder)),
    init="runs/demo_dit",
    init_parts=("backbone", "state_in", "decoder"),  # the decoder's weights become those of teacher and student
    freeze=("backbone", "state_in"),
    steps=500,
    optim=AdamW(lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0, grad_clip=1.0),
    schedule=Cosine(warmup_steps=20),
    validate_every=0,
)
