"""Fast, upright camera images from MuJoCo on machines without a GPU.

At 64 px a software rasteriser spends most of its time on the vertices of robot meshes, so besides switching off multisampling,
shadows and reflections we draw coarser meshes (2 ms an image instead of 8). The physics never sees them.
"""

from __future__ import annotations

import atexit
import ctypes.util
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla.errors import UserError
from vla.sim.disturb import turn_camera

if TYPE_CHECKING:
    import mujoco

MOST_GEOMS = 10_000
"""That a scene can show; a MuJoCo renderer's own limit."""
_GL_PX = (64, 64)
"""Of a GL context's window, which nothing is drawn into: each camera set has a buffer of its own."""
FINE_MESH_FACES = 1000
"""Meshes with fewer faces (most task objects) are drawn as they are."""


def configure_rendering() -> None:
    """Chooses MuJoCo's off-screen backend (EGL, else OSMesa) for this process, unless MUJOCO_GL says it already.

    Call it before anything imports mujoco, which reads the variable only once. Mesa gets one thread: render workers run side
    by side, and a second thread each slows a training beside them threefold.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if "MUJOCO_GL" in os.environ or sys.platform != "linux":
        return
    if "mujoco" in sys.modules:
        raise UserError("mujoco was imported before a rendering backend was chosen; set MUJOCO_GL=egl in the environment")
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return
    raise UserError("no off-screen OpenGL library. Run: apt-get install -y libegl1 libgl1-mesa-dri  (or libosmesa6)")


class Cameras:
    """Draws several cameras of one MuJoCo model, in the thread that made it; what of it is in the GL context is there until `close`.

    `views`: role -> name of a camera in the model, or an `MjvCamera` (a free one). Images are uint8 (size, size, 3), RGB.
    `hidden_geoms`: groups of geoms that are not drawn. `turn_deg`: views that are on no wrist are moved by so much (`vla.sim.disturb`).
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        views: Mapping[str, str | mujoco.MjvCamera],
        size: int,
        hidden_geoms: Sequence[int] = (),
        turn_deg: float = 0.0,
    ) -> None:
        import mujoco

        self._views, self._option, self._turn_deg, self._model = dict(views), mujoco.MjvOption(), turn_deg, model
        for group in hidden_geoms:
            self._option.geomgroup[group] = 0
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        fine = _coarsen_meshes(model, cell_m=0.75 / size if size <= 160 else 0.0)  # 12 mm at 64 px: below one pixel
        self._scene = mujoco.MjvScene(model, maxgeom=MOST_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._gl = _gl_context()
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self._rectangle = mujoco.MjrRect(0, 0, size, size)
        _OPEN.add(self)
        # A context that is freed after EGL itself complains. Simulators end EGL at exit too, so ours must come last, to go first.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
        _restore_meshes(model, fine)

    def draw(self, data: mujoco.MjData, roles: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Role -> image of the state in `data`, of all views or of some."""
        import mujoco

        images = {}
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        for role in self._views if roles is None else roles:
            self._aim(data, role)
            mujoco.mjr_render(self._rectangle, self._scene, self._context)
            bottom_up = np.empty((self._rectangle.height, self._rectangle.width, 3), np.uint8)
            mujoco.mjr_readPixels(bottom_up, None, self._rectangle, self._context)
            images[role] = np.ascontiguousarray(bottom_up[::-1])
        return images

    def places(self, data: mujoco.MjData, role: str, points_X3: np.ndarray) -> np.ndarray:
        """Where points of the world are seen: float64 (X, 2), x and y as shares of the picture, 0 at its left and upper edge."""
        import mujoco

        self._aim(data, role)
        eye = mujoco.mjv_averageCamera(*self._scene.camera)
        away_X3 = points_X3 - np.asarray(eye.pos)
        depth_X = away_X3 @ np.asarray(eye.forward)
        slope = eye.frustum_top / eye.frustum_near  # half of the picture, which is square, one metre away
        right_X, up_X = (away_X3 @ axis / depth_X / slope for axis in (np.cross(eye.forward, eye.up), np.asarray(eye.up)))
        return 0.5 + 0.5 * np.stack([right_X, -up_X], axis=1)

    def _aim(self, data: mujoco.MjData, role: str) -> None:
        import mujoco

        view = self._views[role]
        if isinstance(view, str):
            name, view = view, mujoco.MjvCamera()
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(name).id
        mujoco.mjv_updateScene(self._model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        if self._turn_deg and not role.startswith("wrist"):
            for camera in self._scene.camera:  # two, for stereo; a picture shows their mean
                turn_camera(camera, self._turn_deg)

    def close(self) -> None:
        """Frees what of it is in the GL context; once more does nothing."""
        if self in _OPEN:
            _OPEN.discard(self)
            self._gl.make_current()
            self._context.free()


def tracked(cameras: Cameras, data: mujoco.MjData, hand: Sequence[np.ndarray]) -> np.ndarray:
    """The state of `human_tracks`: places (3,) in the world of wrist, thumb tip and index tip -> float64 (6,), pixels."""
    from vla.embodiments.human_tracks import SIDE_PX

    return (cameras.places(data, "third_person", np.stack(hand)) * SIDE_PX).reshape(-1)


_OPEN: set[Cameras] = set()
_THREAD = threading.local()


def _gl_context() -> mujoco.GLContext:
    """The thread's, made once: most of what a context costs (0.45 of 0.6 s of CPU) is the shaders that Mesa compiles for it."""
    import mujoco

    if not hasattr(_THREAD, "gl"):
        _THREAD.gl = mujoco.GLContext(*_GL_PX)
    return _THREAD.gl


def _close_all() -> None:
    while _OPEN:
        next(iter(_OPEN)).close()
    if hasattr(_THREAD, "gl"):
        _THREAD.gl.free()


def aim_camera(model: mujoco.MjModel, camera: str, lookat: tuple[float, float, float], fovy_deg: float) -> None:
    """Fixes a camera of the model to what it is mounted on, and turns it to look at a point, with z upwards in the image.

    Point and z are those of the body that carries the camera (the world's, for one that stands). Takes effect at the next reset.
    """
    import mujoco
    from scipy.spatial.transform import Rotation

    back = np.asarray(model.camera(camera).pos) - lookat
    right = np.cross((0.0, 0.0, 1.0), back)
    axes = np.stack([right, np.cross(back, right), back], axis=-1)  # a camera looks along its -z, with y up
    turn = Rotation.from_matrix(axes / np.linalg.norm(axes, axis=0))
    model.camera(camera).mode[:] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED  # not one that tracks, and flips when it looks straight down
    model.camera(camera).quat[:] = turn.as_quat(scalar_first=True)
    model.camera(camera).fovy[:] = fovy_deg


def free_camera(lookat: tuple[float, float, float], distance_m: float, azimuth_deg: float, elevation_deg: float) -> mujoco.MjvCamera:
    """A camera that stands still and looks at a point; it needs no place in the model."""
    import mujoco

    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = lookat
    camera.distance, camera.azimuth, camera.elevation = distance_m, azimuth_deg, elevation_deg
    return camera


_FACES = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum")


def _coarsen_meshes(model: mujoco.MjModel, cell_m: float) -> dict[str, np.ndarray]:
    """Vertex clustering (Rossignac and Borrel 1993) on the faces that are drawn; returns the fine ones for `_restore_meshes`.

    Faces are moved onto one existing vertex per cell; those that collapse or repeat are dropped. Vertices stay.
    """
    fine = {name: getattr(model, name).copy() for name in _FACES}
    for mesh in range(model.nmesh) if cell_m > 0 else ():
        faces = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
        first = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
        if faces.stop - faces.start < FINE_MESH_FACES:
            continue
        corners = _one_vertex_per_cell(vertices, cell_m)[model.mesh_face[faces]]
        kept = _proper_faces(corners)
        target = slice(faces.start, faces.start + len(kept))
        model.mesh_face[target] = corners[kept]
        for name in ("mesh_facenormal", "mesh_facetexcoord"):
            getattr(model, name)[target] = fine[name][faces][kept]
        model.mesh_facenum[mesh] = len(kept)
    return fine


def _one_vertex_per_cell(vertices: np.ndarray, cell_m: float) -> np.ndarray:
    """For each vertex, the index of the vertex nearest the mean of its cell."""
    _, cell = np.unique(_row_numbers(np.floor(vertices / cell_m).astype(np.int64)), return_inverse=True)
    count = np.bincount(cell)
    mean = np.stack([np.bincount(cell, vertices[:, axis]) / count for axis in range(3)], axis=-1)
    distance = ((vertices - mean[cell]) ** 2).sum(-1)
    order = np.lexsort((distance, cell))
    nearest = order[np.searchsorted(cell[order], np.arange(len(count)))]
    return nearest[cell]


def _proper_faces(corners: np.ndarray) -> np.ndarray:
    """Indices of the faces with three different corners, each set of corners once."""
    a, b, c = corners.T
    _, once = np.unique(_row_numbers(np.sort(corners, axis=1).astype(np.int64)), return_index=True)
    return np.intersect1d(once, np.flatnonzero((a != b) & (b != c) & (c != a)))


def _row_numbers(rows: np.ndarray) -> np.ndarray:
    """int64 (N, 3) -> (N,): equal for equal rows and in their order, so that sorting need not compare rows (six times slower)."""
    rows = rows - rows.min(axis=0)
    return np.ravel_multi_index(tuple(rows.T), tuple(rows.max(axis=0) + 1))


def _restore_meshes(model: mujoco.MjModel, fine: Mapping[str, np.ndarray]) -> None:
    for name, values in fine.items():
        getattr(model, name)[:] = values
