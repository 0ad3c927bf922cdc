"""Probes: what does a policy use? The same episodes with one thing taken away or changed, and the change written into the result.

What a policy observes is changed here, for every suite: words, images, delay. What a simulator shows (camera, background, objects) is
changed in the simulator (`vla.sim.disturb`). A probe changes neither seeds nor rules, so it pairs with the base run in `vla compare`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vla.errors import UnknownName, UserError
from vla.sim.disturb import Disturbance
from vla.sim.env import Suite
from vla.types import Observation

GREY = 127
"""Images of no-vision. Not black: some models drop black images (SmolVLM), which would be another question."""


@dataclass(frozen=True)
class Kind:
    """What is changed, in words for the reader, with `{value}`; `value`: the default amount, None where there is none to give."""

    what: str
    value: float | None = None
    unit: str = ""
    scene: bool = False


KINDS: dict[str, Kind] = {
    "no-language": Kind("the instruction is empty"),
    "no-vision": Kind("every image is one grey"),
    "swapped-instruction": Kind("the instruction is that of the suite's next task; success is still that of the own task"),
    "latency": Kind("a chunk arrives {value:g} s after its observation; until then the old chunk goes on, or the robot holds", 0.1, "s"),
    "camera-moved": Kind(
        "every camera but those on a wrist is moved by {value:g} degrees around the vertical axis 1 m in front of it", 10.0, "deg", True
    ),
    "background": Kind(
        "whatever cannot move and is no robot (floor, table, walls) has a colour drawn by the episode's seed", None, "", True
    ),
    "object-perturbed": Kind(
        "whatever can move and is no robot is mixed with a colour drawn by the episode's seed, {value:g} of it", 0.5, "", True
    ),
}
_SCENE = {"camera-moved": "camera", "background": "background", "object-perturbed": "object"}


@dataclass(frozen=True)
class Probe:
    """One declared perturbation. `value`: its amount, in the kind's unit."""

    kind: str
    value: float | None = None

    @staticmethod
    def of(spec: str) -> Probe:
        """`no-language`, `latency=0.1`: a kind, and its amount where it has one. Raises UserError with what there is."""
        kind, _, given = spec.partition("=")
        if kind not in KINDS:
            raise UnknownName("probe", kind, KINDS)
        default = KINDS[kind].value
        if default is None and given:
            raise UserError(f"probe {kind} takes no amount, so not '={given}'")
        if default is None:
            return Probe(kind)
        try:
            value = float(given) if given else default
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"probe {kind}={given}: give a positive number of {KINDS[kind].unit or 'shares'}, such as {kind}={default:g}")
        return Probe(kind, value)

    @property
    def spec(self) -> str:
        """What `of` reads."""
        return self.kind if self.value is None else f"{self.kind}={self.value:g}"

    def to_json(self) -> dict[str, Any]:
        """As results hold it."""
        return {"spec": self.spec, "kind": self.kind, "value": self.value, "what": KINDS[self.kind].what.format(value=self.value)}

    @property
    def disturbance(self) -> Disturbance | None:
        """What the simulator has to change, if anything."""
        return Disturbance(_SCENE[self.kind], self.value or 0.0) if KINDS[self.kind].scene else None

    @property
    def watched(self) -> bool:
        """Whether it changes what a policy is told, which the scripted experts never look at."""
        return not KINDS[self.kind].scene

    def delay(self, suite: Suite, execute: int) -> int:
        """Control steps that a chunk is late."""
        if self.kind != "latency":
            return 0
        assert self.value is not None
        steps = max(1, round(self.value * float(suite.embodiment.rate_hz)))
        if steps >= execute:
            raise UserError(
                f"latency of {self.value:g} s is {steps} steps at {suite.embodiment.rate_hz} Hz, but a chunk is replaced after {execute}: "
                f"none would be executed. Give latency below {execute / float(suite.embodiment.rate_hz):.3g}, or a larger --execute."
            )
        return steps

    def words(self, suite: Suite) -> Mapping[str, str]:
        """Task -> what the policy is told instead of the task's own instruction."""
        if self.kind == "no-language":
            return {task.name: "" for task in suite.tasks}
        if self.kind != "swapped-instruction":
            return {}
        tasks, told = suite.tasks, {}
        for place, task in enumerate(tasks):
            others = [other.instruction for other in (*tasks[place + 1 :], *tasks[:place]) if other.instruction != task.instruction]
            if not others:
                raise UserError(f"suite {suite.name} has no second instruction to swap with; use --probe no-language")
            told[task.name] = others[0]
        return told


@dataclass(frozen=True)
class Disguise:
    """What becomes of an observation on its way to the policy. `words`: task -> instruction; others keep their own."""

    words: Mapping[str, str]
    blind: bool = False

    def __call__(self, task: str, observation: Observation) -> Observation:
        images = {role: np.full_like(image, GREY) for role, image in observation.images.items()} if self.blind else observation.images
        return replace(observation, images=images, instruction=self.words.get(task, observation.instruction))


def disguise(probe: Probe | None, suite: Suite) -> Disguise:
    """The probe's part that concerns observations; without a probe, none."""
    return Disguise({}) if probe is None else Disguise(probe.words(suite), probe.kind == "no-vision")
