"""Few labels, much video: five labelled demonstrations a task and forty more without labels, against the five alone.

What      the demo's policy on eight Sawyer tasks. `latent_action`: codes for what changes, from the frames of all; a label holds those of
          three pairs, so that it tells of a whole chunk. `begun`: predicts codes on all frames, and acts; labels say what codes mean, and
          that teaches to act on the rest. `latent` goes on from there with the labelled ones. `labelled_only`: the demo's best decoder on
          the labelled ones, for as many optimizer steps as both, and `augmented` the same on images that are cropped and coloured at
          random. `together`: `begun` for as many steps as both.
Hardware  one CPU core.
Time      15 to 30 minutes an arm.
Expect    about 79% for `latent` and 71% for `labelled_only`, 100 episodes a task; `docs/results.md` has it by task, and where it does not
          help.
Command   vla collect --suite metaworld-objects --episodes 5 --noise-share 0.5 --out data/few
          vla collect --suite metaworld-video --episodes 40 --seed 150000 --out data/few_video
          vla train pretrain/few_labels.py:latent_action --data-root data --out runs/few_latent_action
          vla label runs/few_latent_action data/few data/few_video
          vla train pretrain/few_labels.py:begun --data-root data --latents runs/few_latent_action
          vla train pretrain/few_labels.py --data-root data --init runs/few_labels_begun
          vla train pretrain/few_labels.py:labelled_only --data-root data
"""

from dataclasses import replace

from vla.backbones.tiny import Tiny
from vla.data.augment import Augment
from vla.decoders.latent import LatentActions
from vla.decoders.parallel import Parallel
from vla.latent_action.model import LatentActionConfig
from vla.latent_action.run import LatentRun
from vla.model import Model
from vla.train.optim import AdamW, Cosine
from vla.train.run import Run

BACKBONE = Tiny(width=128, depth=4, heads=4, channels=16, keypoints=32, sharpness=None)  # as in docs/results.md

latent_action = LatentRun(
    name="few_latent_action",
    mixture="data_mixtures/few_labels.yaml",
    model=LatentActionConfig(gap_s=(0.1, 0.1), spans=3),  # a chunk of 0.15 s, which the hand follows a little late
    steps=450,
    batch_size=64,
    threads=1,
)

begun = Run(
    name="few_labels_begun",
    model=Model(BACKBONE, LatentActions(codes=12, latent_scale=0.2, taught_scale=1.0, steps_per_query=12)),
    mixture="data_mixtures/few_labels.yaml",
    embodiments=("metaworld_sawyer",),
    steps=4500,
    batch_size=32,
    optim=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),
    schedule=Cosine(warmup_steps=50),
    ema_decay=0.99,
    threads=1,
)
RUN = latent = replace(
    begun,
    name="few_labels",
    mixture="data_mixtures/few_labels_only.yaml",
    steps=1500,
    optim=replace(begun.optim, lr=5e-4),
    schedule=Cosine(warmup_steps=20),
)
together = replace(begun, name="few_labels_together", steps=6000)
labelled_only = replace(
    begun,
    name="few_labels_only",
    model=Model(BACKBONE, Parallel(steps_per_token=3)),
    mixture="data_mixtures/few_labels_only.yaml",
    steps=6000,
)
COLOURS = Augment(crop_area=(0.8, 1.0), brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), steady=("wrist",))
augmented = replace(labelled_only, name="few_labels_augmented", augment=COLOURS)
