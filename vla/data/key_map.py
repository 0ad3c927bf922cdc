"""What the members of foreign webdataset shards mean (`vla.data.foreign`), declared as data.

A file beside the mixture that names it (`foreign: bridge_wds.yaml`):

name: bridge_wds
shards: bridge/*.tar                 # under the data root, or from /; sorted by name
embodiment: widowx                   # a built-in robot, or one by value (`Embodiment.to_json`)
rate_hz: 5                           # steps per second, also as a fraction ("30000/1001")
sample: step                         # or `chunk`: each sample stands alone, with all the actions that follow
cameras: {third_person: jpg, wrist: wrist.jpg}                     # role: extension; JPEG
state: [{member: json, field: state, start: 0, stop: 7}]           # parts, joined; from .json (a dotted field) or .npy
action: [{member: action.npy}]       # (A,) a step; (T, A) for `sample: chunk`; in the robot's command space and units
instruction: {member: txt}           # or {member: json, field: task}, or {text: "open the drawer"}
reasoning: {member: json, field: why}        # optional: what is to be said before acting; "" where nothing is
episode: {member: json, field: episode_id}   # `chunk` may do without: then each sample is held out or not for itself
step: {member: json, field: step}    # optional: without it, steps are in the order of the tar
licence: CC-BY-4.0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from vla.data import format as fmt
from vla.data.foreign_values import check_part
from vla.embodiment import Embodiment, built_in_embodiments, load_embodiment
from vla.errors import SchemaError, UnknownName, UserError

_NEEDED = ("name", "shards", "embodiment", "rate_hz", "sample", "cameras", "state", "action", "instruction", "licence")
_KEYS = (*_NEEDED, "reasoning", "episode", "step")


@dataclass(frozen=True)
class KeyMap:
    """What the members of foreign shards are; see the top of this file. Parts: {member, field, start, stop}."""

    name: str
    shards: tuple[str, ...]
    robot: Embodiment
    rate_hz: Fraction
    chunk: bool
    cameras: Mapping[str, str]
    state: tuple[Mapping[str, Any], ...]
    action: tuple[Mapping[str, Any], ...]
    instruction: Mapping[str, Any]
    reasoning: Mapping[str, Any] | None
    episode: Mapping[str, Any] | None
    step: Mapping[str, Any] | None
    licence: str

    @staticmethod
    def load(path: Path) -> KeyMap:
        """From YAML; SchemaError or UnknownName with the file and the choices for anything that is not as described."""
        if not path.is_file():
            raise UserError(f"no key map {path}")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SchemaError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        return KeyMap.of(data, str(path))

    @staticmethod
    def of(data: Any, where: str) -> KeyMap:
        if not isinstance(data, Mapping):
            raise SchemaError(f"{where} must be a mapping with keys among {', '.join(_KEYS)}")
        for key in data:
            if key not in _KEYS:
                raise UnknownName("key", key, _KEYS, f"It stands in {where}.")
        lacking = [key for key in _NEEDED if data.get(key) is None]
        if lacking:
            raise SchemaError(f"{where} lacks {', '.join(lacking)}")
        fmt.check_name(data["name"], f"{where}: name")
        chunk = data["sample"] == "chunk"
        if data["sample"] not in ("step", "chunk"):
            raise UnknownName("kind of sample", data["sample"], ("step", "chunk"), f"It stands in {where}.")
        if (not chunk and data.get("episode") is None) or (chunk and data.get("step") is not None):
            raise SchemaError(f"{where}: `sample: step` needs `episode`, and `sample: chunk` takes no `step`")
        robot = _robot(data["embodiment"], where)
        cameras = data["cameras"]
        if not isinstance(cameras, Mapping) or set(cameras) != set(robot.cameras):
            raise SchemaError(f"{where}: cameras are {cameras}; '{robot.name}' has the roles {sorted(robot.cameras)}")
        try:
            rate_hz = Fraction(str(data["rate_hz"]))
        except (ValueError, ZeroDivisionError) as error:
            raise SchemaError(f"{where}: rate_hz {data['rate_hz']!r} is no number") from error
        if rate_hz <= 0:
            raise SchemaError(f"{where}: rate_hz {rate_hz} must be positive")
        shards = data["shards"] if isinstance(data["shards"], list) else [data["shards"]]
        parts = {}
        for key in ("state", "action"):
            rows = data[key] if isinstance(data[key], list) else [data[key]]
            if not rows:
                raise SchemaError(f"{where}: {key} is an empty list; give the parts that it is joined from")
            parts[key] = tuple(check_part(row, f"{where}: {key}") for row in rows)
        text = check_part(data["instruction"], f"{where}: instruction", text=True)
        said = check_part(data["reasoning"], f"{where}: reasoning", text=True) if data.get("reasoning") is not None else None
        if said is not None and "text" in said:
            raise SchemaError(f"{where}: reasoning is of a step, and one text for all says nothing: give `member`")
        ids = {key: check_part(data[key], f"{where}: {key}") if data.get(key) is not None else None for key in ("episode", "step")}
        return KeyMap(
            name=data["name"],
            shards=tuple(map(str, shards)),
            robot=robot,
            rate_hz=rate_hz,
            chunk=chunk,
            cameras={str(role): str(ext).lower() for role, ext in cameras.items()},
            instruction=text,
            reasoning=said,
            licence=str(data["licence"]),
            **parts,
            **ids,
        )

    @property
    def wanted(self) -> set[str]:
        """Extensions of the members that are read."""
        parts = [*self.state, *self.action, self.instruction, self.reasoning or {}, self.episode or {}, self.step or {}]
        return {*self.cameras.values(), *(part["member"] for part in parts if "member" in part)}

    def info(self) -> fmt.DatasetInfo:
        return fmt.DatasetInfo(name=self.name, embodiment=self.robot.to_json(), licence=self.licence)


def _robot(given: Any, where: str) -> Embodiment:
    if isinstance(given, Mapping):
        try:
            return Embodiment.from_json(given)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise SchemaError(f"{where}: embodiment is no robot by value, as `Embodiment.to_json` writes it ({error!r})") from error
    if given not in built_in_embodiments():  # never a file: data names no code
        raise UnknownName("embodiment", given, built_in_embodiments(), f"It stands in {where}; another robot is given by value.")
    return load_embodiment(str(given))
