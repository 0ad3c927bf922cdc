"""Where to put a serial arm's joints so that its tool is at a pose: damped least squares on the MuJoCo model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

if TYPE_CHECKING:
    import mujoco

DAMPING = 0.03
"""In metres and radians; keeps steps small near singular poses (Wampler 1986)."""


class Arm:
    """The joints of one arm and the site of its tool, on a model of which it keeps its own data."""

    def __init__(self, model: mujoco.MjModel, joints: list[str], site: str) -> None:
        import mujoco

        self._model, self._data, self._site = model, mujoco.MjData(model), model.site(site).id
        self._qpos = [int(model.joint(name).qposadr[0]) for name in joints]
        self._dof = [int(model.joint(name).dofadr[0]) for name in joints]
        self._range = np.array([model.joint(name).range for name in joints])

    def pose(self, angles: np.ndarray) -> tuple[np.ndarray, Rotation]:
        """The tool's position in metres and its rotation, in the world."""
        import mujoco

        self._data.qpos[self._qpos] = angles
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)  # the Jacobian stands on it
        return self._data.site_xpos[self._site].copy(), Rotation.from_matrix(self._data.site_xmat[self._site].reshape(3, 3))

    def solve(self, position: np.ndarray, rotation: Rotation, guess: np.ndarray, iterations: int = 20) -> np.ndarray:
        """Angles (n,) near `guess` that bring the tool to the pose, as nearly as joint limits let it."""
        import mujoco

        angles = np.array(guess, dtype=np.float64)
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(iterations):
            at, turn = self.pose(angles)
            error = np.concatenate([position - at, (rotation * turn.inv()).as_rotvec()])
            if np.linalg.norm(error) < 1e-4:
                break
            mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
            j = jacobian[:, self._dof]
            angles = angles + j.T @ np.linalg.solve(j @ j.T + DAMPING**2 * np.eye(6), error)
            angles = np.clip(angles, *self._range.T)
        return angles
