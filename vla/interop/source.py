"""What an importer is given: the public folder, and what its files do not say (`vla import --embodiment ...`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vla.backbones.prompts import pack_tokenizer
from vla.embodiment import Embodiment
from vla.errors import SchemaError, UnknownName, UserError
from vla.interop.tensors import Stored, scan
from vla.interop.torch_file import to_safetensors
from vla.weights import INDEX


@dataclass(frozen=True)
class Source:
    """A folder as it was published. `robot`: of `--embodiment`. `cameras`: roles in the order of the model's images. `key`: of the
    statistics, where there are several. `tokenizer`, `action_tokenizer`: where the folder has none. `platform`: whose constants and scripts
    it was made with, where no file says that (OFT, UniVLA). `preset`: whose decoder a model without one gets."""

    folder: Path
    robot: Embodiment
    cameras: tuple[str, ...] = ()
    key: str = ""
    tokenizer: Path | None = None
    action_tokenizer: Path | None = None
    platform: str = ""
    preset: str = ""
    scratch: Path = field(default=Path("."))
    """Where `.pt` files may be unpacked: a folder that is removed afterwards."""

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder. UserError where it is missing, SchemaError where it is none."""
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{self.name} has no {name}; files there: {', '.join(self.files()[:8]) or 'none'}")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SchemaError(f"{self.name}/{name} is not readable ({error})") from error
        if not isinstance(data, dict):
            raise SchemaError(f"{self.name}/{name} is no JSON object")
        return data

    def files(self, pattern: str = "*") -> list[str]:
        """Names of the files in the folder itself, sorted."""
        return sorted(path.name for path in self.folder.glob(pattern))

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        """The tensors of the safetensors files beside config.json. UserError where a file of the index is missing.

        Without such files, those of the one `.pt` in `checkpoints/` (CogACT), unpacked in another process into `scratch`, without the
        `model.` in front.
        """
        pickled = sorted(self.folder.glob("checkpoints/*.pt"))
        if pickled and not self.files("*.safetensors"):
            return self._unpacked(pickled)
        names = self.files("*.safetensors")
        if (self.folder / INDEX).is_file():
            named = sorted(set(self.json(INDEX).get("weight_map", {}).values()))
            lost = [name for name in named if name not in names]
            if lost:
                raise UserError(f"{self.name} lacks {', '.join(lost)} of its index; download them again")
            names = named
        names = [name for name in names if "processor" not in name]  # lerobot keeps statistics in such files
        if not names:
            raise UserError(f"{self.name} has no *.safetensors; weights in other formats (pickles can run code) are not read")
        return scan(self.folder / name for name in names)

    def _unpacked(self, pickled: Sequence[Path]) -> Mapping[str, Stored]:
        if len(pickled) > 1:
            raise UserError(f"{self.name}/checkpoints holds {', '.join(path.name for path in pickled)}; leave the one to import")
        unpacked = self.scratch / "unpacked.safetensors"
        to_safetensors({pickled[0]: unpacked})
        found = scan([unpacked])
        return {name.removeprefix("model."): stored for name, stored in found.items() if name.startswith("model.")}

    def parts(self) -> dict[str, Stored]:
        """Tensors of `PART--STEP_checkpoint.pt` files beside the weights, as `PART.name` (OFT). The `module.` that training on several GPUs
        puts in front is left off. UserError where a part is there twice."""
        parts: dict[str, str] = {}
        for name in self.files("*--*checkpoint.pt"):
            part = name.split("--")[0]
            if part in parts:
                raise UserError(f"{self.name} holds {parts[part]} and {name}; leave the one that belongs to the weights")
            parts[part] = name
        return self._beside(parts)

    def part(self, name: str) -> dict[str, Stored]:
        """Likewise of the one file `NAME*.pt`, as `NAME.name` (UniVLA); {} where there is none."""
        found = self.files(f"{name}*.pt")
        if len(found) > 1:
            raise UserError(f"{self.name} holds {', '.join(found)}; leave the one that belongs to the weights")
        return self._beside({name: found[0]} if found else {})

    def _beside(self, parts: Mapping[str, str]) -> dict[str, Stored]:
        if parts:
            to_safetensors({self.folder / name: self.scratch / f"{part}.safetensors" for part, name in parts.items()})
        found: dict[str, Stored] = {}
        for part in parts:
            tensors = scan([self.scratch / f"{part}.safetensors"])
            found |= {f"{part}.{key.removeprefix('module.')}": stored for key, stored in tensors.items()}
        return found

    def packed_tokenizer(self) -> str:
        """The text tokenizer by value: of `--tokenizer`, or of the folder."""
        path = self.tokenizer or self.folder
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"{self.name} has no tokenizer.json; give the one of its language model: --tokenizer FOLDER_OR_FILE")
        return pack_tokenizer(path.read_text(encoding="utf-8"))

    def robot_of(self, horizon: int, least: int, most: int, width: int) -> Embodiment:
        """The robot with this model's horizon and cameras. `least`..`most`: images the model takes; `width`: its actions' numbers."""
        robot = self.robot
        if robot.action.size != width:
            fields = ", ".join(f"{f.name}[{f.size} {f.unit}]" for f in robot.action.fields)
            raise SchemaError(f"{self.name} makes actions of {width} numbers; '{robot.name}' has {robot.action.size} ({fields})")
        cameras = self.cameras or robot.cameras
        for role in cameras:
            if role not in robot.cameras:
                raise UnknownName("camera", role, robot.cameras, f"Those are the roles of '{robot.name}'.")
        takes = str(least) if least == most else f"{least} to {most}"
        if not least <= len(cameras) <= most:
            raise UserError(
                f"{self.name} takes {takes} image{'s' * (takes != '1')}; say which of {robot.cameras} in its order: --cameras ..."
            )
        if len(cameras) > 1 and not self.cameras:
            raise UserError(f"{self.name} takes images in an order of its own; say it: --cameras {','.join(cameras)} (or another order)")
        return replace(robot, horizon=horizon, cameras=tuple(cameras))

    def choose(self, found: Mapping[str, Any], what: str = "statistics") -> tuple[str, Any]:
        """The entry of `--key`, or the only one. UnknownName lists them."""
        if not self.key and len(found) == 1:
            return next(iter(found.items()))
        if self.key not in found:
            raise UnknownName(f"key of {what}", self.key, found, "Choose the one that this robot's data had: --key NAME.")
        return self.key, found[self.key]


def robot_notes(robot: Embodiment) -> list[str]:
    """What the embodiment's file added to what the public one says, and what it lacks."""
    meant = ", ".join(f"{f.name} {f.unit} {f.frame}" for f in robot.action.fields)
    notes = [f"units, frames and limits are those of '{robot.name}' ({meant}), not of the file: check them against its training data"]
    if robot.limits is None:
        notes.append(f"'{robot.name}' has no limits: nothing will be sent to it until its file has some")
    return notes


def require(data: Mapping[str, Any], names: Sequence[str], where: str) -> list[Any]:
    """Values by name, in order. SchemaError lists what is missing."""
    missing = [name for name in names if name not in data]
    if missing:
        raise SchemaError(f"{where} lacks {', '.join(missing)}; it has {', '.join(sorted(data)[:12])}")
    return [data[name] for name in names]
