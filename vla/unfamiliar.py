"""States that training never came near: another unit, zero or order of numbers is said before anyone wonders what the robot is doing."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla.embodiment import Embodiment
from vla.normalize import Normalizer, dimension_names
from vla.types import Observation

FAR = 10.0
"""Normalised, a number that is nothing like those of training: degrees for radians are 57 times as far out, millimetres 1,000 times."""
OFTEN = 0.1
"""Share of the observations from which on it is said. Rare numbers of training lie outside of q01..q99 too, at most one in fifty."""


class Unfamiliar:
    """Counts the numbers of one robot's states that lie `FAR` out. Nothing is refused: a policy may well bear one that is."""

    def __init__(self, robot: Embodiment, normalizer: Normalizer) -> None:
        self.seen = 0
        self._names = dimension_names(robot.state)
        self._offset_P, self._scale_P = normalizer.fitted()
        self._far_P = np.zeros(len(self._names), np.int64)
        self._farthest_P, self._value_P = np.zeros(len(self._names)), np.zeros(len(self._names))

    @staticmethod
    def of(actor: Any, robot: Embodiment) -> Unfamiliar | None:
        """For a policy with a checkpoint's `contents`; None for one that was fitted on no states."""
        contents = getattr(actor, "contents", None)
        both = contents.normalizers.get(robot.name) if contents is not None else None
        return Unfamiliar(robot, both.state) if both is not None and both.state.method != "identity" else None

    def look(self, observation: Observation) -> None:
        """At the newest state, in physical units; not at a client's that sends none."""
        state_P = observation.state[-1]
        if len(state_P) != len(self._names):
            return
        self.seen += 1
        distance_P = np.abs((state_P - self._offset_P) / self._scale_P)
        self._far_P += distance_P > FAR
        farther_P = distance_P > self._farthest_P
        self._farthest_P[farther_P], self._value_P[farther_P] = distance_P[farther_P], state_P[farther_P]

    def lines(self) -> list[str]:
        """One for each number that is often far out, with what it was and what training had."""
        return [
            f"state {self._names[at]} was far from training's {self._offset_P[at]:.4g} ± {self._scale_P[at]:.4g} in {self._far_P[at]} of "
            f"{self.seen} observations, {self._value_P[at]:.4g} at the farthest. Is it in the embodiment's unit, and in its place?"
            for at in np.flatnonzero(self._far_P > OFTEN * self.seen).tolist()
        ]
