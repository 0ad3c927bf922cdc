"""One source of a mixture, ready to be sampled for the robots that are to be learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vla.data.latents import read_latents
from vla.data.mixture import Source
from vla.data.split import Split
from vla.data.window import Targets
from vla.embodiment import Embodiment
from vla.errors import SchemaError, StatsMissing, UnknownName


@dataclass(frozen=True)
class Feed:
    """Its split, what its numbers mean, and the roles it shows, in the robot's order."""

    source: Source
    split: Split
    robot: Embodiment | None
    targets: Targets | None
    roles: tuple[str, ...]
    latents: np.ndarray | None
    nothing_valid_T: np.ndarray
    frame_shape: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of each role's last frame: what the next will have

    @staticmethod
    def open(source: Source, embodiments: Mapping[str, Embodiment], split: Split, latents: str | None) -> Feed:
        """Raises UnknownName, SchemaError or StatsMissing where source, robot, cameras or codes do not fit each other."""
        dataset, info = source.dataset, source.dataset.info
        robot, targets = info.robot, None
        roles = source.cameras or dataset.cameras
        if robot is not None:
            if robot.name in embodiments:
                robot = embodiments[robot.name]
            elif info.supervision != "none":
                raise UnknownName("embodiment", robot.name, embodiments, f"Source '{source.name}' was recorded on it.")
            if set(roles) != set(robot.cameras):
                raise SchemaError(
                    f"source '{source.name}' shows the camera roles {sorted(roles)}; '{robot.name}' has {sorted(robot.cameras)}. "
                    "Name the roles to use in the mixture (`cameras:`), or rename them in the embodiment or the data."
                )
            roles = robot.cameras
            if info.recorded_state is not None and info.recorded_state != robot.state:
                raise SchemaError(
                    f"source '{source.name}' recorded the state {info.recorded_state.to_json()}; '{robot.name}' has {robot.state.to_json()}"
                )
            if info.recorded_action is not None:
                targets = Targets(robot, info.recorded_action)
        codes = None
        if latents is not None and source.latents:
            try:
                codes = read_latents(dataset, latents)
            except StatsMissing as error:
                raise StatsMissing(f"{error} If source '{source.name}' is to have none, say `latents: false` in the mixture.") from error
        nothing_T = np.zeros(robot.horizon if robot else 0, bool)
        return Feed(source, split, robot, targets, tuple(roles), codes, nothing_T)

    @cached_property
    def whole(self) -> Split:
        return Split(self.source.dataset, "all", 0.0)

    @cached_property
    def first_anchor_E(self) -> np.ndarray:
        anchors_E = self.source.dataset.anchors_E
        return np.cumsum(anchors_E) - anchors_E
