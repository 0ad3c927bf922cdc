"""What a robot's numbers mean: fields with units and frames, spaces of fields, and the robot that has them.

Frames. `absolute`: a value in the world or at the joint. `from_state`: relative to the state at the start of the chunk.
`step`: relative to the previous step (the first to the state at the start). For additive units these are differences; for
rotations they are compositions (R_ref^-1 R), so that encode and decode are inverses of each other.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vla.errors import SchemaError, UnknownName, UserError

if TYPE_CHECKING:  # a third of a second, which simulator processes need not pay
    from scipy.spatial.transform import Rotation

Frame = Literal["absolute", "from_state", "step"]
FRAMES = ("absolute", "from_state", "step")

ADDITIVE_UNITS = ("m", "rad", "m/s", "rad/s", "N", "px", "open01", "command")
ROTATION_UNITS = {"quat_xyzw": 4, "axis_angle": 3, "rot6d": 6}
"""Rotation units and their widths. rot6d is the first two *columns* of R, stacked (Zhou et al. 2019)."""
UNITS = (*ADDITIVE_UNITS, *ROTATION_UNITS)
TREMBLE = {"m": 2e-3, "rad": 1e-2, "open01": 1e-2, "quat_xyzw": 1e-2, "axis_angle": 1e-2, "rot6d": 1e-2}
"""By unit: a state whose middle 98% lie this near their centre stands still, and what is left is play, droop and sensor noise."""


@dataclass(frozen=True)
class Field:
    """`size` numbers of one unit in one frame. `open01`: gripper opening, 0 closed and 1 open. `command`: the controller's own
    dimensionless command (say in the robot's file what 1.0 means)."""

    name: str
    size: int
    unit: str
    frame: Frame = "absolute"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UnknownName("unit", self.unit, UNITS)
        if self.frame not in FRAMES:
            raise UnknownName("frame", self.frame, FRAMES)
        if self.size < 1 or self.size != ROTATION_UNITS.get(self.unit, self.size):
            raise SchemaError(f"field '{self.name}': size {self.size} does not fit unit '{self.unit}'")


@dataclass(frozen=True)
class Space:
    """An ordered tuple of fields: what each number of a packed vector is."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            raise SchemaError(f"field names repeat: {names}")

    @cached_property  # this and the next: asked for several times per sample and request
    def size(self) -> int:
        return sum(field.size for field in self.fields)

    @property
    def tremble_A(self) -> np.ndarray:
        """`TREMBLE` of each number, float64 (size,); 0 for units that have none."""
        return np.array([TREMBLE.get(field.unit, 0.0) for field in self.fields for _ in range(field.size)])

    def slices(self) -> Mapping[str, slice]:
        """Where each field lies in a packed vector."""
        return self._slices

    @cached_property
    def _slices(self) -> Mapping[str, slice]:
        stops = list(itertools.accumulate((field.size for field in self.fields), initial=0))
        names = (field.name for field in self.fields)
        return {name: slice(a, b) for name, (a, b) in zip(names, itertools.pairwise(stops), strict=True)}

    def field(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise UnknownName("field", name, [field.name for field in self.fields])

    def pack(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """{name: (..., size)} -> (..., size of the space), float64. Missing, extra or mis-sized parts are errors."""
        if set(parts) != {field.name for field in self.fields}:
            raise SchemaError(f"fields {sorted(parts)} given; the space has {[field.name for field in self.fields]}")
        arrays = []
        for field in self.fields:
            array = np.asarray(parts[field.name], dtype=np.float64)
            if array.shape[-1:] != (field.size,):
                raise SchemaError(f"field '{field.name}' has shape {array.shape}; its last axis must be {field.size}")
            arrays.append(array)
        return np.concatenate(arrays, axis=-1) if arrays else np.zeros(0)

    def unpack(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """The inverse of `pack`."""
        self.check(packed, "vector")
        return {name: packed[..., where] for name, where in self.slices().items()}

    def check(self, packed: np.ndarray, what: str) -> None:
        """Raises SchemaError unless the last axis is as wide as the space and every number is finite."""
        if packed.ndim < 1 or packed.shape[-1] != self.size:
            listed = ", ".join(f"{field.name}[{field.size} {field.unit}]" for field in self.fields)
            raise SchemaError(f"{what} of shape {packed.shape}: the last axis must be {self.size} ({listed})")
        if not np.isfinite(packed).all():
            raise SchemaError(f"{what} holds NaN or infinity")

    def to_json(self) -> list[dict]:
        return [{"name": f.name, "size": f.size, "unit": f.unit, "frame": f.frame} for f in self.fields]

    @staticmethod
    def from_json(rows: Iterable[Mapping]) -> Space:
        return Space(tuple(Field(str(r["name"]), int(r["size"]), str(r["unit"]), r["frame"]) for r in rows))


@dataclass(frozen=True)
class Embodiment:
    """A robot under one control mode.

    `cameras`: roles, not device names. `command`: what the controller takes, and what `Policy.act` returns. `action`: the same
    fields in the frames that are learned. `rate_hz`: rate of commands; `horizon`: commands per chunk. `limits`: (low, high) per
    number of `command`; nothing outside is ever sent. None where nobody published them: the robot can be learned from, and every
    attempt to act as it is refused.
    """

    name: str
    cameras: tuple[str, ...]
    state: Space
    command: Space
    action: Space
    rate_hz: Fraction
    horizon: int
    limits: tuple[tuple[float, float], ...] | None

    def __post_init__(self) -> None:
        if "." in self.name or "/" in self.name or not self.name:
            raise SchemaError(f"embodiment name '{self.name}' must be non-empty without '.' or '/'")
        if [(f.name, f.size, f.unit) for f in self.command.fields] != [(f.name, f.size, f.unit) for f in self.action.fields]:
            raise SchemaError(f"{self.name}: command and action must have the same fields and units; only frames may differ")
        if self.limits is not None and (len(self.limits) != self.command.size or any(not low < high for low, high in self.limits)):
            raise SchemaError(f"{self.name}: limits must be {self.command.size} pairs (low, high) with low < high, or None if not known")
        if self.rate_hz <= 0 or self.horizon < 1:
            raise SchemaError(f"{self.name}: rate_hz and horizon must be positive")

    def encode(self, action_TA: np.ndarray, state_P: np.ndarray, recorded: Space | None = None) -> np.ndarray:
        """Actions as recorded (by default in `command`'s frames) -> float64 (T, A) in the learned frames."""
        return convert(action_TA, recorded or self.command, self.action, state_P, self.state)

    def decode(self, action_TA: np.ndarray, state_P: np.ndarray) -> np.ndarray:
        """The inverse of `encode`: learned frames -> float64 (T, A) in command frames, not yet limited."""
        return convert(action_TA, self.action, self.command, state_P, self.state)

    def limit(self, action_TA: np.ndarray) -> np.ndarray:
        """Clips commands to the limits; refuses what is not finite (a clipped NaN would still move a motor)."""
        self.command.check(action_TA, f"{self.name} command")
        return np.clip(action_TA, *self.bounds())

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low_A, high_A), float64, of what may be sent. UserError where the robot's limits are not known."""
        if self.limits is None:
            raise UserError(
                f"'{self.name}' has no limits, so it can be learned from but nothing may be sent to it. Copy its file, write "
                f"limits=((low, high), ...) for the {self.command.size} numbers of a command, and fine-tune for that robot."
            )
        low_A, high_A = np.array(self.limits, dtype=np.float64).T
        return low_A, high_A

    def to_json(self) -> dict:
        """Every fact by value, as checkpoints and datasets keep it."""
        return {
            "name": self.name,
            "cameras": list(self.cameras),
            "state": self.state.to_json(),
            "command": self.command.to_json(),
            "action": self.action.to_json(),
            "rate_hz": str(self.rate_hz),
            "horizon": self.horizon,
            "limits": None if self.limits is None else [list(pair) for pair in self.limits],
        }

    @staticmethod
    def from_json(data: Mapping) -> Embodiment:
        """The inverse of `to_json`."""
        return Embodiment(
            name=str(data["name"]),
            cameras=tuple(map(str, data["cameras"])),
            state=Space.from_json(data["state"]),
            command=Space.from_json(data["command"]),
            action=Space.from_json(data["action"]),
            rate_hz=Fraction(str(data["rate_hz"])),
            horizon=int(data["horizon"]),
            limits=None if data["limits"] is None else tuple((float(low), float(high)) for low, high in data["limits"]),
        )


def convert(action_TA: np.ndarray, source: Space, target: Space, state_P: np.ndarray, state: Space) -> np.ndarray:
    """Re-expresses a chunk in other frames; float64 in and out.

    The reference of a relative field is the state field of the same name. Inverse of itself with source and target swapped:
    within 1e-12 relative for additive units, 1e-9 rad for rotations (axis_angle: for angles below pi, where it is unique).
    Units never change here, since that could lose information: a differing field, unit or size is refused.
    """
    action_TA = np.asarray(action_TA, dtype=np.float64)
    source.check(action_TA, "action")
    if [(f.name, f.size, f.unit) for f in source.fields] != [(f.name, f.size, f.unit) for f in target.fields]:
        raise SchemaError(f"cannot convert {[f.name for f in source.fields]} to {[f.name for f in target.fields]}: only frames may differ")
    out = action_TA.copy()
    for name, where in source.slices().items():
        old, new = source.field(name), target.field(name)
        if old.frame == new.frame:
            continue
        reference = _reference(old, state_P, state)
        maths = _rotation_frames if old.unit in ROTATION_UNITS else _additive_frames
        out[:, where] = maths(action_TA[:, where], reference, old.unit, old.frame, new.frame)
    return out


def resample(action_TA: np.ndarray, space: Space, from_hz: Fraction, to_hz: Fraction, steps: int) -> np.ndarray:
    """Actions at one rate -> `steps` actions at another; float64.

    Row i holds from i/from_hz to (i+1)/from_hz. A `step` field is integrated, sampled and differenced, so the motion per
    second is unchanged; others are interpolated linearly (rotations along the geodesic, angles that jump by more than half a turn
    the short way round), gripper openings held.
    """
    if from_hz == to_hz:
        return action_TA[:steps]
    action_TA = np.asarray(action_TA, dtype=np.float64)
    old_n = len(action_TA)
    ratio = float(from_hz / to_hz)
    rows, ticks = (from_hz / to_hz).as_integer_ratio()
    held_N = np.arange(steps) * rows // ticks  # in whole numbers: 45 * 1.4 is less than 63 in floats
    out = np.zeros((steps, space.size))
    for name, where in space.slices().items():
        field = space.field(name)
        part = action_TA[:, where]
        if field.frame == "step" and field.unit in ROTATION_UNITS:
            raise UserError(f"field '{name}': step rotations cannot be resampled without loss; record them absolute")
        if field.frame == "step":
            summed = np.concatenate([np.zeros((1, part.shape[1])), np.cumsum(part, axis=0)])
            at = np.minimum(np.arange(steps + 1) * ratio, old_n)
            out[:, where] = np.diff(_interpolate(summed, at), axis=0)
        elif field.unit == "open01" or field.unit == "command":
            out[:, where] = part[np.minimum(held_N, old_n - 1)]
        elif field.unit in ROTATION_UNITS:
            out[:, where] = _slerp(part, np.minimum(np.arange(steps) * ratio, old_n - 1), field.unit)
        else:
            turned = np.unwrap(part, axis=0) if field.unit == "rad" else part
            between = _interpolate(turned, np.minimum(np.arange(steps) * ratio, old_n - 1))
            out[:, where] = between - (turned - part)[np.minimum(held_N, old_n - 1)]
    return out


def load_embodiment(name_or_path: str) -> Embodiment:
    """A built-in robot by name (`metaworld_sawyer`), or one from a Python file that defines `EMBODIMENT` (`my_robot.py`).

    A path is code that the user named, and is run.
    """
    if name_or_path.endswith(".py"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(
                f"no embodiment file {path}; give a .py file that defines EMBODIMENT, or one of {', '.join(built_in_embodiments())}"
            )
        spec = importlib.util.spec_from_file_location(f"vla_embodiment_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise UserError(f"{error.filename}, line {error.lineno}: no Python: {error.msg}") from error
    elif name_or_path in built_in_embodiments():
        module = importlib.import_module(f"vla.embodiments.{name_or_path}")
    else:
        raise UnknownName("embodiment", name_or_path, built_in_embodiments(), "Or give a .py file that defines EMBODIMENT.")
    found = getattr(module, "EMBODIMENT", None)
    if not isinstance(found, Embodiment):
        raise UserError(f"{name_or_path} defines no EMBODIMENT of type vla.embodiment.Embodiment")
    return found


def built_in_embodiments() -> list[str]:
    """Names of the robots that come with the package; no robot's file is imported."""
    import vla.embodiments

    return sorted(module.name for module in pkgutil.iter_modules(vla.embodiments.__path__))


def _reference(field: Field, state_P: np.ndarray, state: Space) -> np.ndarray:
    if field.name not in state.slices():
        raise SchemaError(
            f"action field '{field.name}' changes frame, which needs a state field of the same name; "
            f"the state has {list(state.slices())}. Add it to the state, or keep the recorded frame."
        )
    if (state.field(field.name).unit, state.field(field.name).size) != (field.unit, field.size):
        raise SchemaError(f"state field '{field.name}' has another unit or size than the action field of that name")
    state.check(state_P, "state")
    return np.asarray(state_P, dtype=np.float64)[state.slices()[field.name]]


def _additive_frames(part: np.ndarray, reference: np.ndarray, unit: str, old: Frame, new: Frame) -> np.ndarray:
    if old == "absolute":
        absolute = part
    elif old == "from_state":
        absolute = part + reference
    else:
        absolute = reference + np.cumsum(part, axis=0)
    if new == "absolute":
        return absolute
    if new == "from_state":
        return absolute - reference
    return np.diff(absolute, axis=0, prepend=reference[None])


def _rotation_frames(part: np.ndarray, reference: np.ndarray, unit: str, old: Frame, new: Frame) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    turns, base = to_rotation(part, unit), to_rotation(reference[None], unit)[0]
    if old == "absolute":
        absolute = list(turns)
    elif old == "from_state":
        absolute = [base * turn for turn in turns]
    else:
        absolute, now = [], base
        for turn in turns:
            now = now * turn
            absolute.append(now)
    if new == "absolute":
        result = absolute
    elif new == "from_state":
        result = [base.inv() * turn for turn in absolute]
    else:
        result = [before.inv() * turn for before, turn in zip([base, *absolute[:-1]], absolute, strict=True)]
    return from_rotation(Rotation.concatenate(result), unit)


def to_rotation(values: np.ndarray, unit: str) -> Rotation:
    """(n, width of the unit) -> n rotations. A quaternion or matrix that is not one within 1e-3 is refused, not repaired."""
    from scipy.spatial.transform import Rotation

    if unit == "axis_angle":
        return Rotation.from_rotvec(np.array(values, dtype=np.float64))  # scipy refuses what is read-only, as shards are
    if unit == "quat_xyzw":
        norm = np.linalg.norm(values, axis=-1)
        if np.abs(norm - 1).max(initial=0) > 1e-3:
            raise SchemaError(f"quaternion of norm {norm[np.abs(norm - 1).argmax()]:.4g}; is it stored as xyzw?")
        return Rotation.from_quat(values)
    first, second = values[:, :3], values[:, 3:]
    crooked = max(
        np.abs(np.linalg.norm(first, axis=-1) - 1).max(initial=0),
        np.abs(np.linalg.norm(second, axis=-1) - 1).max(initial=0),
        np.abs((first * second).sum(-1)).max(initial=0),
    )
    if crooked > 1e-3:
        raise SchemaError(f"rot6d is not orthonormal (off by {crooked:.3g}); is it stored as two stacked columns?")
    return Rotation.from_matrix(np.stack([first, second, np.cross(first, second)], axis=-1))


def nearest_rotations(rows: np.ndarray, space: Space) -> np.ndarray:
    """float64 (n, size of the space), each rotation field made one: a network's numbers are a rotation but for its error. Quaternions are
    divided by their length, rot6d goes through Gram-Schmidt (Zhou et al. 2019). SchemaError for what says no direction at all."""
    rows = np.array(rows, dtype=np.float64)
    for name, where in space.slices().items():
        unit = space.field(name).unit
        if unit == "quat_xyzw":
            rows[:, where] = _unit_length(rows[:, where], name)
        elif unit == "rot6d":
            first, second = np.split(rows[:, where], 2, axis=-1)
            first = _unit_length(first, name)
            second = _unit_length(second - (first * second).sum(-1, keepdims=True) * first, name)
            rows[:, where] = np.concatenate([first, second], axis=-1)
    return rows


def _unit_length(vectors: np.ndarray, name: str) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (length > 1e-6).all():  # NaN too
        raise SchemaError(f"'{name}' is no rotation, and near none: a vector of length {length.min():.2g} has no direction")
    return vectors / length


def from_rotation(rotation: Rotation, unit: str) -> np.ndarray:
    """n rotations -> (n, width of the unit). Quaternions come with w >= 0."""
    if unit == "axis_angle":
        return rotation.as_rotvec()
    if unit == "quat_xyzw":
        return rotation.as_quat(canonical=True)
    matrix = rotation.as_matrix()
    return np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], axis=-1)


def _interpolate(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    grid = np.arange(len(values))
    return np.stack([np.interp(at, grid, column) for column in values.T], axis=-1)


def _slerp(values: np.ndarray, at: np.ndarray, unit: str) -> np.ndarray:
    from scipy.spatial.transform import Slerp

    if len(values) == 1:
        return np.repeat(values, len(at), axis=0)
    return from_rotation(Slerp(np.arange(len(values)), to_rotation(values, unit))(at), unit)
