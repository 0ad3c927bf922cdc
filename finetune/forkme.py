"""Fine-tune a pretrained checkpoint for a new robot. Copy this file, and change what is marked <-.

What      All weights train. What is about one robot alone (its proprioception in, its actions out) starts fresh where the checkpoint
          does not know it; everything else is carried, whatever the widths of the actions.
Hardware  as it stands: one CPU core. A 3B checkpoint in full: one 80 GB GPU with bf16 and --zero pretrain/zero2.json.
Hours     as it stands: 2 minutes.                                                             <- what it took you
Expect    as it stands: at least 90% success on lifting ALOHA's cube, from 50 demonstrations.  <- the number you will compare with
Command   vla collect --suite aloha --tasks lift --episodes 50 --out data/new_robot            <- or `vla convert`, for data you have
          vla train finetune/forkme.py --init runs/demo/pretrain --data-root data --dry-run
          vla train finetune/forkme.py --init runs/demo/pretrain --data-root data
          vla eval runs/my_robot --suite aloha --tasks lift --episodes 40
"""

from dataclasses import replace

from vla.backbones.adapters import LoRA
from vla.data.augment import PI0
from vla.train.optim import AdamW, Cosine
from vla.train.run import Run

RUN = Run(
    name="my_robot",  # <- the folder under runs/
    # Which checkpoint to start from: a folder of one, or of a run (its last). --init on the command line says it instead.
    init="runs/demo/pretrain",
    model=None,  # that of the checkpoint; with another decoder here, all but the decoder is carried
    # Your data, and how much of each: a file like data_mixtures/demo_new_robot.yaml. To keep what the checkpoint could do before,
    # add a share of what it was trained on (and that robot below): a tenth is usual.
    mixture="data_mixtures/demo_new_robot.yaml",  # <-
    # What your robot's numbers mean: a built-in name, or a file that defines EMBODIMENT ("my_robot.py", beside this one).
    embodiments=("aloha",),  # <-
    # 50 demonstrations of 100 steps are 5,000 samples; 700 steps of 64 see each about nine times. More overfits without more data.
    steps=700,  # <-
    batch_size=64,
    # A tenth of the pretraining rate is safe for a large backbone; a small one from scratch takes 1e-3.
    optim=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),  # <-
    schedule=Cosine(warmup_steps=50),
    ema_decay=0.99,  # the average of about the last hundred updates acts; 0.999 for runs of tens of thousands
    precision="fp32",  # bf16 on a GPU
    # Held-out episodes (val_fraction in the mixture) are never trained on; their loss rises when the run is too long.
    validate_every=350,
    val_batches=8,
    save_every=0,  # steps between checkpoints for --resume; 0: only at the end
    threads=1,  # of a forward pass on a CPU; 0: all
)

# Variants, by what they change; docs/finetune.md says when to take which: `vla train finetune/forkme.py:frozen ...`
frozen = replace(RUN, name="my_robot_frozen", freeze=("backbone",))  # least memory; enough where the scenes look alike
lora = replace(
    RUN,
    name="my_robot_lora",
    # Of a library's backbone all three parts (the default) and rank 32. The tiny one has adapters on its transformer alone, so that
    # what they do not stand on is frozen by name.
    lora=LoRA(rank=8, parts=("language",)),
    freeze=("backbone.stem", "backbone.image_in", "backbone.word_in", "backbone.role_in", "backbone.age_in"),
)
new_head = replace(RUN, name="my_robot_new_head", init_parts=("backbone", "state_in"))  # the decoder from fresh weights; or another `model`
few_shot = replace(  # five to ten demonstrations: what little there is must not move much
    RUN, name="my_robot_few_shot", freeze=("backbone",), steps=200, schedule=Cosine(warmup_steps=20), validate_every=100, augment=PI0
)
# The robots that the checkpoint knows beside the new one, which may be the same arm under another control mode. All that robots share
# is frozen, and nothing decays: the old ones keep their weights bit for bit, and the new one learns its own maps.
beside = replace(
    RUN,
    name="my_robot_beside",
    embodiments=("metaworld_sawyer", "fetch", "aloha"),
    freeze=("backbone", "decoder.query_TD"),
    optim=replace(RUN.optim, weight_decay=0.0),
)
# Everything trains, and a tenth of the draws is what it was pretrained on: against forgetting.
co_training = replace(
    RUN,
    name="my_robot_co_training",
    mixture="data_mixtures/demo_co_training.yaml",
    embodiments=("metaworld_sawyer", "fetch", "aloha"),
)
scratch = replace(RUN, name="my_robot_scratch", init_parts=())  # the control: the same architecture and data, nothing carried
