"""The latent-action model of `make demo`: what changes between two frames, in four codes, from video without actions.

Hardware  one CPU core.
Time      about a minute.
Expect    most of the codebook in use, and codes from which a linear map tells the hand's motion (`vla label` prints both).
Command   vla train pretrain/demo_latent_action.py --data-root runs/demo/data
          vla label runs/demo_latent_action runs/demo/data/sawyer

`two_robots` watches a Sawyer and a Fetch arm. The Fetch's first camera looks along the arm, so its second one stands beside it.
"""

from dataclasses import replace

from vla.latent_action.model import LatentActionConfig
from vla.latent_action.run import LatentRun

RUN = LatentRun(name="demo_latent_action", mixture="data_mixtures/demo_latent_action.yaml", steps=450, batch_size=64, threads=1)

two_robots = replace(
    RUN, name="two_robots", mixture="data_mixtures/two_robots_video.yaml", steps=900, model=LatentActionConfig(beside=("side",))
)
