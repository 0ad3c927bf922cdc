"""What a probe changes in a MuJoCo scene: colours, and where cameras stand. Physics, seeds and experts are untouched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    import mujoco

Part = Literal["camera", "background", "object"]
PARTS: tuple[Part, ...] = get_args(Part)
LOOK_M = 1.0
"""So far in front of a camera lies the axis that it is moved around: about the middle of a table scene."""


@dataclass(frozen=True)
class Disturbance:
    """`part` of the scene, and how much: degrees for the camera, the share of the new colour for objects (background: all of it)."""

    part: str
    amount: float = 0.0

    def __post_init__(self) -> None:
        assert self.part in PARTS, self.part


class Recolouring:
    """Gives the parts of a model new colours, one to each kinematic tree, by the episode's seed. Textures go."""

    def __init__(self, model: mujoco.MjModel, part: str, share: float) -> None:
        self._model, self._share = model, share
        rgba = np.array(model.geom_rgba)
        textured = model.geom_matid >= 0
        rgba[textured] = np.array(model.mat_rgba)[model.geom_matid[textured]]
        self._geoms = np.flatnonzero((_part_of_geoms(model) == part) & (rgba[:, 3] > 0))
        self._rgba = rgba[self._geoms]
        self._trees = model.body_rootid[model.geom_bodyid[self._geoms]]
        # The world holds floor and walls, which need not be of one colour.
        self._trees = np.where(self._trees == 0, -1 - self._geoms, self._trees)

    @property
    def geoms(self) -> int:
        """How many are recoloured."""
        return len(self._geoms)

    def apply(self, seed: int) -> None:
        """Call it after each reset: simulators put their own colours back."""
        rng = np.random.default_rng([seed, 2])
        colours = {tree: rng.uniform(0.05, 0.95, 3) for tree in np.unique(self._trees)}
        for geom, rgba, tree in zip(self._geoms, self._rgba, self._trees, strict=True):
            self._model.geom_matid[geom] = -1
            mixed = (1 - self._share) * rgba[:3] + self._share * colours[tree]
            self._model.geom_rgba[geom] = [*mixed, rgba[3]]


def _part_of_geoms(model: mujoco.MjModel) -> np.ndarray:
    """ "robot" for what hangs on a driven joint's tree, "object" for other trees with joints, "background" for what cannot move."""
    driven = {int(model.body_rootid[model.jnt_bodyid[joint]]) for joint in _driven_joints(model)}
    moving = {int(model.body_rootid[body]) for body in model.jnt_bodyid}
    kinds = {
        tree: "robot" if tree in driven else "object" if tree in moving and tree else "background"
        for tree in set(map(int, model.body_rootid))
    }
    return np.array([kinds[int(model.body_rootid[body])] for body in model.geom_bodyid])


def _driven_joints(model: mujoco.MjModel) -> set[int]:
    import mujoco

    joint = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    return {int(model.actuator_trnid[i, 0]) for i in range(model.nu) if model.actuator_trntype[i] in joint}


def turn_camera(camera: Any, degrees: float) -> None:
    """Moves an `mjvGLCamera` around the vertical through the point `LOOK_M` in front of it."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    at, forward = np.array(camera.pos, dtype=np.float64), np.array(camera.forward, dtype=np.float64)
    middle = at + LOOK_M * forward
    camera.pos[:] = middle + turn @ (at - middle)
    camera.forward[:] = turn @ forward
    camera.up[:] = turn @ np.array(camera.up, dtype=np.float64)
