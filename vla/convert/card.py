"""Cards: every fact about one dataset, declared as data. `data_mixtures/sources/README.md` is the vocabulary, with an example.

card = Card.find("bridge")             # data_mixtures/sources/bridge.yaml, also from an installed package; or a path
card.robot, card.action_space          # the embodiment, and the frames its actions were recorded in

What a field's keys mean is executed by `vla/convert/fields.py`; what is checked here needs no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

import vla
from vla.blanks import refuse_blanks
from vla.convert.strict import build, choice, entry, listed, named, nested, optional, plain_tree, rational, text
from vla.convert.vocabulary import Camera, Drop, FieldMap, Instruction, Published, Time
from vla.data.format import DatasetInfo, check_name
from vla.embodiment import ROTATION_UNITS, Embodiment, Field, Space, built_in_embodiments, load_embodiment
from vla.errors import SchemaError, UnknownName
from vla.types import SUPERVISION, Supervision


@dataclass(frozen=True)
class Card:
    """One dataset. Field by field in `data_mixtures/sources/README.md`."""

    name: str = entry(text)
    title: str = entry(text)
    homepage: str = entry(text)
    licence: str = entry(text)
    citation: str = entry(text)
    facts: tuple[str, ...] = entry(listed(text))
    format: str = entry(text)
    source: Published = entry(nested(Published))
    supervision: Supervision = entry(choice(*SUPERVISION))
    cameras: Mapping[str, Camera] = entry(named(nested(Camera)))
    instruction: Instruction = entry(nested(Instruction))
    reasoning: Instruction | None = entry(nested(Instruction), default=None)
    embodiment: str | None = entry(optional(text), default=None)
    rate_hz: Fraction | None = entry(optional(rational), default=None)
    state: Mapping[str, FieldMap] = entry(named(nested(FieldMap)), default_factory=dict)
    action: Mapping[str, FieldMap] = entry(named(nested(FieldMap)), default_factory=dict)
    absent: Mapping[str, str] = entry(named(text), default_factory=dict)
    unused: Mapping[str, str] = entry(named(text), default_factory=dict)
    time: Time | None = entry(nested(Time), default=None)
    drop: Drop = entry(nested(Drop), default_factory=Drop)
    reader: Mapping[str, Any] = entry(plain_tree, default_factory=dict)
    doubts: tuple[str, ...] = entry(listed(text), default=())
    notes: str = entry(text, default="")
    data: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The card as it is written, which goes into the dataset's manifest."""
    given_robot: Embodiment | None = field(default=None, repr=False)
    """The robot that `embodiment` names, where it is none of the package's: from a file that the user named, never the card."""

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        for role in (*self.cameras, *self.absent):
            check_name(role, "camera")
        if not self.cameras:
            raise SchemaError("cameras: name at least one")
        if self.reasoning is not None and not (self.reasoning.column or self.reasoning.first_of):
            raise SchemaError("reasoning: what is to be said at a step is one text: give `from` or `first_of`")
        if self.supervision == "actions" and (self.embodiment is None or self.rate_hz is None):
            raise SchemaError("supervision `actions` needs `embodiment` and `rate_hz`")
        if self.supervision != "none" and self.embodiment is not None and self.rate_hz is None:
            raise SchemaError(f"supervision `{self.supervision}` of an embodiment needs `rate_hz`")
        if self.supervision == "none" and (self.state or self.action):
            raise SchemaError("supervision `none` has neither state nor action")
        if self.given_robot and self.given_robot.name != self.embodiment:
            raise SchemaError(f"the card is of embodiment '{self.embodiment}', and --embodiment gives '{self.given_robot.name}'")
        self._check_roles()
        for kind, space in (("state", self.state_space), ("action", self.action_space)):
            self._check_fields(kind, space)

    @staticmethod
    def find(name_or_path: str | Path, robot: Embodiment | None = None) -> Card:
        """The card of that name in data_mixtures/sources (of the checkout, or of the installed package), or at that path.

        `robot`: the one that the card names, where the package has it not.
        """
        path = Path(name_or_path)
        if path.suffix in (".yaml", ".yml"):
            return Card.load(path, robot)
        folder = cards_folder()
        if not (folder / f"{name_or_path}.yaml").is_file():
            raise UnknownName("card", name_or_path, card_names(), "Or give a .yaml file; data_mixtures/sources/README.md says how.")
        return Card.load(folder / f"{name_or_path}.yaml", robot)

    @staticmethod
    def load(path: str | Path, robot: Embodiment | None = None) -> Card:
        """Reads a card. UserError, one line with the place in it, for everything that is not as it should be."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SchemaError(f"no card {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SchemaError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        return Card.from_json(data, str(path), robot)

    @staticmethod
    def from_json(data: Any, where: str = "card", robot: Embodiment | None = None) -> Card:
        refuse_blanks(data, where)
        card = build(Card, data, where, given_robot=robot)
        object.__setattr__(card, "data", plain_tree(data, where))
        return card

    @cached_property
    def robot(self) -> Embodiment | None:
        if self.embodiment is None or self.given_robot is not None:
            return self.given_robot
        if self.embodiment not in built_in_embodiments():  # a path would be code, and a card must not name code
            fix = "For a robot of your own: --embodiment path/to/robot.py, and its name here."
            raise UnknownName("embodiment", self.embodiment, built_in_embodiments(), fix)
        return load_embodiment(self.embodiment)

    @cached_property
    def state_space(self) -> Space | None:
        """What the stored states are; None where none are stored."""
        if self.supervision != "none" and self.robot is not None:
            return self.robot.state if self.robot.state.fields else None
        return _own_space("state", self.state)

    @cached_property
    def action_space(self) -> Space | None:
        """What the stored actions are: the robot's command, in the frames that they were recorded in."""
        if self.supervision == "none" or self.robot is None:
            return _own_space("action", self.action)
        fields = self.robot.command.fields
        frames = {name: how.frame for name, how in self.action.items() if how.frame}
        return Space(tuple(Field(f.name, f.size, f.unit, frames.get(f.name, f.frame)) for f in fields))  # type: ignore[arg-type]

    @property
    def wanted(self) -> frozenset[str]:
        """Every column, text and camera of the source that the card reads."""
        fields = (*self.state.values(), *self.action.values())
        names = {name for how in fields for name in (*how.columns, how.seen_from) if name}
        names |= {camera.column for camera in self.cameras.values()} | set(self.instruction.columns)
        names |= set(self.reasoning.columns) if self.reasoning else set()
        names |= {where.column for where in (*self.drop.steps, *self.drop.episodes)}
        return frozenset(names | ({self.time.column} if self.time and self.time.column else set()))

    def dataset_info(self) -> DatasetInfo:
        """What the manifest of the converted dataset says; the card stands in it by value."""
        return DatasetInfo(
            name=self.name,
            embodiment=self.robot.to_json() if self.robot else None,
            action_space=self.action_space.to_json() if self.action_space else None,
            state_space=self.state_space.to_json() if self.state_space else None,
            licence=self.licence,
            supervision=self.supervision,
            notes=self.notes,
            info={"card": self.data},
        )

    def _check_roles(self) -> None:
        both = sorted(set(self.cameras) & set(self.absent))
        if both:
            raise SchemaError(f"absent: camera '{both[0]}' stands under `cameras` too")
        if self.robot is None:
            return
        roles = set(self.robot.cameras)
        for role in (*self.cameras, *self.absent):
            if role not in roles:
                raise SchemaError(f"camera '{role}' is no role of '{self.embodiment}', which has {', '.join(self.robot.cameras)}")
        left = sorted(roles - set(self.cameras) - set(self.absent))
        if left:
            raise SchemaError(f"camera '{left[0]}' of '{self.embodiment}' is missing: map it, or name it under `absent` with the reason")

    def _check_fields(self, kind: str, space: Space | None) -> None:
        given: Mapping[str, FieldMap] = getattr(self, kind)
        names = [f.name for f in space.fields] if space else []
        unknown, missing = sorted(set(given) - set(names)), [name for name in names if name not in given]
        if unknown:
            raise SchemaError(f"{kind}: unknown field '{unknown[0]}'; {self.embodiment} has {', '.join(names) or 'none'}")
        if missing:
            raise SchemaError(f"{kind}: field '{missing[0]}' of '{self.embodiment}' is missing; map it, or give a `constant` and why")
        for name, how in given.items():
            assert space is not None
            try:
                how.check(space.field(name))
                if how.delta and (self.state_space is None or self.state_space.field(how.delta.by).unit not in ROTATION_UNITS):
                    raise SchemaError(f"delta: by: '{how.delta.by}' is no rotation of the state")
            except SchemaError as error:
                raise SchemaError(f"{kind}: {name}: {error}") from error


def cards_folder() -> Path:
    """data_mixtures/sources: inside the installed package, else beside it in a checkout."""
    package = Path(vla.__file__).parent
    carried = package / "_data" / "data_mixtures" / "sources"
    return carried if carried.is_dir() else package.parent / "data_mixtures" / "sources"


def card_names() -> list[str]:
    """Names of the cards that come with the package; none is read."""
    return sorted(path.stem for path in cards_folder().glob("*.yaml"))


def _own_space(kind: str, fields: Mapping[str, FieldMap]) -> Space | None:
    """The space that a card without an embodiment declares field by field."""
    rows = []
    for name, how in fields.items():
        if how.field is None:
            raise SchemaError(f"{kind}: {name}: without an embodiment, give `field: {{size: ..., unit: ...}}`")
        rows.append(Field(name, how.field.size, how.field.unit, how.frame or "absolute"))  # type: ignore[arg-type]
    return Space(tuple(rows)) if rows else None
