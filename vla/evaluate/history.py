"""The frames that a policy sees at a decision, of an episode in progress: drawn at the steps that some decision will look back to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from vla.types import Observation


class History:
    """Frames at `offsets_s` (seconds relative to a decision, rising to 0), at the robot's rate, as a training sample has them
    (`vla.data.window.history_steps`): the latest at or before each time, within half a tick; before the first step, the first.

    `every`: steps from one decision to the next, None where these vary; what no decision looks back to is never drawn.

        history.start(step, observation)
        history.at(step, observation)        # at a decision
        if history.wants(step):              # after every other step
            history.keep(step, observation)
    """

    def __init__(self, offsets_s: Sequence[float], rate_hz: Fraction, every: int | None) -> None:
        self.offsets_s, self.every = tuple(offsets_s), every
        # A hair more than half a tick, as there, so that rounding decides no tie.
        self._back = [min(math.floor(offset_s * float(rate_hz) + 0.5 + 1e-6), 0) for offset_s in self.offsets_s]
        self._first = 0
        self._seen: dict[int, Observation] = {}

    def start(self, step: int, observation: Observation) -> None:
        """From this step on there is something to look back to."""
        self._first, self._seen = step, {step: observation}

    def wants(self, step: int) -> bool:
        """Whether a later decision looks back to this step, which is none itself."""
        if self.every is None:
            return min(self._back) < 0
        since = step - self._first
        return since % self.every > 0 and any((since - back) % self.every == 0 for back in self._back)

    def keep(self, step: int, observation: Observation) -> None:
        """One frame, of a step that is wanted."""
        self._seen[step] = observation

    def at(self, step: int, observation: Observation) -> Observation:
        """What is seen in a decision at this step, whose own frame is `observation`. Frames that no later one looks back to are dropped."""
        self._seen[step] = observation
        frames = [self._seen[max(step + back, self._first)] for back in self._back]
        oldest = step + min(self._back)
        self._seen = {at: seen for at, seen in self._seen.items() if at > oldest}
        images = {role: np.concatenate([frame.images[role] for frame in frames]) for role in observation.images}
        return replace(observation, images=images, state=np.concatenate([frame.state for frame in frames]), offsets_s=self.offsets_s)
