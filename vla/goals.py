"""Goals as words or as an image, by the same policy (MDT, Reuss et al. 2024: multimodal goals in one latent).

A goal image is one more camera role of an observation, and words are then not needed: `instruction=""`. In training some samples show how
the scene looked a while later instead of saying what was asked, so both lead the same decoder to the same actions. Where an episode has no
frame so much later, near its end, words tell: no sample is left out for want of a goal. `Model(align=Align())`
also pulls the two latents of a sample together, as MDT does (vla/alignment.py).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla.data.keyed import uniform
from vla.types import Observation, Sample

GOAL = "goal"
"""The role of a goal image."""


def with_goal(sample: Sample, share: float) -> Observation:
    """The sample's observation; for a `share` of the samples with a future, chosen by position, with a goal image and without words.

    The goal is seen by the robot's first camera, and repeated for each frame of history.
    """
    seen = sample.observation
    if not share or not sample.future or uniform(0x60A1, sample.position)[0] >= share:
        return seen
    frames = len(seen.offsets_s)
    goal = next(sample.future[role] for role in seen.images if role in sample.future)
    return replace(seen, images={**seen.images, GOAL: np.repeat(goal[None], frames, axis=0)}, instruction="")


def told_otherwise(sample: Sample, share: float) -> tuple[Observation, bool]:
    """What `with_goal` gives, told the other way: by words instead of an image, or by an image instead of words. And whether it can be."""
    seen, words = with_goal(sample, share), sample.observation
    other = words if GOAL in seen.images else with_goal(sample, 1.0)
    return other, words.instruction != "" and (GOAL in seen.images) != (GOAL in other.images)
