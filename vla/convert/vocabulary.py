"""The words that a card is written in, each a frozen dataclass; what a field's words do is in `vla/convert/fields.py`.

What is checked here needs no data. `data_mixtures/sources/README.md` explains every word, with an example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla.convert.strict import boolean, choice, entry, integer, listed, named, nested, number, optional, plain, text
from vla.data.images import Exif
from vla.embodiment import ROTATION_UNITS, Field
from vla.errors import SchemaError

UNIT_FACTORS: dict[str, dict[str, float]] = {
    "m": {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "inch": 0.0254},
    "rad": {"rad": 1.0, "deg": 0.017453292519943295, "turn": 6.283185307179586},
    "m/s": {"m/s": 1.0, "cm/s": 1e-2, "mm/s": 1e-3},
    "rad/s": {"rad/s": 1.0, "deg/s": 0.017453292519943295, "rpm": 0.10471975511965977},
    "N": {"N": 1.0},
    "px": {"px": 1.0},
}
"""Unit of a field -> what one of a source's units is in it."""

ROTATIONS = ("quat_xyzw", "quat_wxyz", "axis_angle", "matrix", "rot6d_columns", "rot6d_rows", "euler_<xyz>_<extrinsic|intrinsic>")
ROTATION_WIDTHS = {"quat_xyzw": 4, "quat_wxyz": 4, "axis_angle": 3, "matrix": 9, "rot6d_columns": 6, "rot6d_rows": 6}
_EULER = re.compile(r"euler_(?!.?(.)\1)[xyz]{3}_(extrinsic|intrinsic)")  # turning twice about one axis is turning once

TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def _slice(value: Any, where: str) -> tuple[int | None, int | None]:
    if not isinstance(value, list) or len(value) != 2:
        raise SchemaError(f"{where}: {value!r} must be [start, stop], the stop not included, either of them null for the end")
    start, stop = (optional(integer)(item, where) for item in value)
    return start, stop


def _rotation(value: Any, where: str) -> str:
    if value not in ROTATION_WIDTHS and not (isinstance(value, str) and _EULER.fullmatch(value)):
        raise SchemaError(f"{where}: {value!r}; choose one of {', '.join(ROTATIONS)}")
    return value


@dataclass(frozen=True)
class Binarise:
    """Openings above and below are decided; those between take the next decided one (Octo's `binarize_gripper_actions`)."""

    above: float = entry(number, default=0.95)
    below: float = entry(number, default=0.05)

    def __post_init__(self) -> None:
        if not 0 <= self.below < self.above <= 1:
            raise SchemaError("binarise needs 0 <= below < above <= 1, as openings")


@dataclass(frozen=True)
class Gripper:
    """Source numbers -> opening, 0 closed and 1 open. `relative`: the number only says that it opens or closes, past `threshold`
    of the way from the middle, and what it is until then is remembered (Octo's `rel2abs_gripper_actions`)."""

    open: float = entry(number)
    closed: float = entry(number)
    clip: bool = entry(boolean, default=False)
    binarise: Binarise | None = entry(nested(Binarise), default=None)
    relative: bool = entry(boolean, default=False)
    threshold: float = entry(number, default=0.1)

    def __post_init__(self) -> None:
        if self.open == self.closed:
            raise SchemaError("the values for open and closed are the same")
        if not 0 <= self.threshold < 1:
            raise SchemaError("threshold must be at least 0 and below 1: the share of the way from the middle to an end")
        if self.relative and (self.binarise or self.clip):
            raise SchemaError("`relative` gives 0 or 1 already: remove `binarise` and `clip`")


@dataclass(frozen=True)
class Delta:
    """Along which axes a recorded difference is written: `base` or `tool`; `by`: the state field that holds the tool's rotation."""

    axes: str = entry(choice("base", "tool"))
    by: str = entry(text)


@dataclass(frozen=True)
class Packed:
    """Numbers inside a string column: little-endian `dtype`, perhaps compressed."""

    dtype: str = entry(choice("float32", "float64", "int32", "int64", "uint8"))
    compression: str = entry(choice("none", "zlib"), default="none")


@dataclass(frozen=True)
class Own:
    """What a field is, where no embodiment says it (video with hands or tracks)."""

    size: int = entry(integer)
    unit: str = entry(text)


@dataclass(frozen=True)
class FieldMap:
    """Where one field of a state or action comes from; the keys are carried out in this order."""

    columns: tuple[str, ...] = entry(listed(text, lone=True), key="from", default=())
    packed: Packed | None = entry(nested(Packed), default=None)
    slice: tuple[int | None, int | None] | None = entry(_slice, default=None)
    index: tuple[int, ...] | None = entry(listed(integer, lone=True), default=None)
    unit: str = entry(text, default="")
    scale: tuple[float, ...] | None = entry(listed(number, lone=True), default=None)
    offset: tuple[float, ...] | None = entry(listed(number, lone=True), default=None)
    clip: tuple[float, ...] | None = entry(listed(number), default=None)
    rotation: str = entry(_rotation, default="")
    seen_from: str = entry(text, default="")
    gripper: Gripper | None = entry(nested(Gripper), default=None)
    next: bool = entry(boolean, default=False)
    difference: bool = entry(boolean, default=False)
    wrap: bool = entry(boolean, default=False)
    delta: Delta | None = entry(nested(Delta), default=None)
    frame: str = entry(choice("absolute", "step"), default="")
    constant: tuple[float, ...] | None = entry(listed(number), default=None)
    why: str = entry(text, default="")
    field: Own | None = entry(nested(Own), default=None)

    def __post_init__(self) -> None:
        if (self.constant is None) != bool(self.columns):
            raise SchemaError("give `from`, or a `constant` and why")
        if self.constant is not None and (not self.why or set(self.used()) - {"constant", "why", "frame", "field"}):
            raise SchemaError("a `constant` stands for what was not recorded: it takes `why`, and nothing that reads a column")
        if self.slice is not None and self.index is not None:
            raise SchemaError("give `slice` or `index`, not both")
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise SchemaError("clip must be [low, high]")
        if self.seen_from and (self.rotation or self.gripper):
            raise SchemaError("`seen_from` moves points; remove rotation and gripper")
        if self.next and self.difference:
            raise SchemaError("`difference` is the following value minus this one; remove `next`")
        if self.wrap and not self.difference:
            raise SchemaError("`wrap` brings a difference of angles to -pi..pi; it needs `difference`")
        if self.gripper and (self.rotation or self.unit or self.scale or self.offset):
            raise SchemaError("`gripper` maps by its open and closed values; remove unit, scale, offset and rotation")

    def used(self) -> list[str]:
        return [name for name in self.__dataclass_fields__ if getattr(self, name) not in ((), "", None, False)]

    @property
    def following(self) -> bool:
        """Whether it needs the step after, which the last step has not."""
        return self.next or self.difference

    def check(self, target: Field) -> None:
        """SchemaError unless this can give numbers of the field's unit and width."""
        own, size = target.unit, target.size
        if own in ROTATION_UNITS and not self.rotation and self.constant is None:
            raise SchemaError(f"a rotation ({own}) needs `rotation`: which convention the source has ({', '.join(ROTATIONS)})")
        if self.rotation and own not in ROTATION_UNITS:
            raise SchemaError(f"`rotation` gives a rotation, and the field's unit is {own}")
        if self.gripper and own != "open01":
            raise SchemaError(f"`gripper` gives an opening (open01), and the field's unit is {own}")
        if own == "open01" and not self.gripper and self.constant is None:
            raise SchemaError("an opening (open01) needs `gripper`: which value of the source is open, and which closed")
        factors = UNIT_FACTORS["rad"] if self._angles else UNIT_FACTORS.get(own, {})
        if self.unit and self.unit not in factors:
            raise SchemaError(f"unit '{self.unit}' cannot become {own}; choose one of {', '.join(factors) or 'none: use scale and offset'}")
        if self.seen_from and (own != "m" or size % 3):
            raise SchemaError(f"`seen_from` is for points, 3 numbers in metres each; the field has {size} {own}")
        if self.difference and target.frame != "step":
            raise SchemaError("`difference` gives steps: the field's frame must be `step`")
        if self.wrap and own != "rad":
            raise SchemaError(f"`wrap` is for angles (rad), not {own}")
        if self.delta and (target.frame != "step" or (own not in ROTATION_UNITS and size != 3)):
            raise SchemaError("`delta` says along which axes a step is written: frame `step`, and 3 numbers or a rotation")
        for name in ("scale", "offset", "constant"):
            given = getattr(self, name)
            if given is not None and len(given) not in ((size,) if name == "constant" else (1, self.source_size(target))):
                raise SchemaError(f"{name} has {len(given)} numbers; the field takes {size}")
        chosen = len(self.index) if self.index is not None else self._sliced
        if chosen is not None and chosen != self.source_size(target):
            raise SchemaError(f"{chosen} numbers are chosen; {self.rotation or f'the field ({own})'} takes {self.source_size(target)}")

    def source_size(self, target: Field) -> int:
        """How many numbers of the source make one value."""
        return ROTATION_WIDTHS.get(self.rotation, 3) if self.rotation else target.size

    @property
    def _sliced(self) -> int | None:
        """How many numbers the slice chooses, where that does not depend on the column's width."""
        start, stop = self.slice or (None, None)
        if stop is None or (start or 0) * stop < 0 or (not start and stop < 0):
            return -start if start is not None and start < 0 and stop is None else None
        return stop - (start or 0)

    @property
    def _angles(self) -> bool:
        return self.rotation.startswith("euler") or self.rotation == "axis_angle"


@dataclass(frozen=True)
class Camera:
    """Where one camera's pictures come from; turned clockwise, then flipped, then cropped."""

    column: str = entry(text, key="from")
    colour: str = entry(choice("rgb", "bgr", "cmyk"), default="rgb")
    bits: int = entry(choice(8, 16), default=8)
    exif: Exif = entry(choice("refuse", "apply", "ignore"), default="refuse")
    rotate: int = entry(choice(0, 90, 180, 270), default=0)
    flip: str = entry(choice("none", "horizontal", "vertical"), default="none")
    crop: tuple[int, ...] | None = entry(listed(integer), default=None)
    every: int = entry(integer, default=1)
    store: str = entry(choice("jpgs", "mp4"), default="jpgs")

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 4 or min(self.crop) < 0 or min(self.crop[2:]) < 1):
            raise SchemaError("crop must be [top, left, height, width] in pixels")
        if self.every < 1:
            raise SchemaError("every must be at least 1: keep each so many-th picture")


@dataclass(frozen=True)
class Instruction:
    """The words of an episode: one column; the first of several that says something; all of several (paraphrases); or a text."""

    column: str = entry(text, key="from", default="")
    first_of: tuple[str, ...] = entry(listed(text), default=())
    all_of: tuple[str, ...] = entry(listed(text), default=())
    text: str = entry(text, default="")
    codes: bool = entry(boolean, default=False)
    replace: Mapping[str, str] = entry(named(lambda value, where: str(plain(value, where))), default_factory=dict)
    missing: str = entry(choice("refuse", "drop", "empty"), default="refuse")

    def __post_init__(self) -> None:
        if sum(map(bool, (self.column, self.first_of, self.all_of, self.text))) != 1:
            raise SchemaError("give exactly one of `from`, `first_of`, `all_of` and `text`")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.column else self.first_of or self.all_of


@dataclass(frozen=True)
class Time:
    """Where the time of a step comes from; without it, the format's own clock, and without that, the rate."""

    column: str = entry(text, key="from", default="")
    unit: str = entry(choice(*TIME_UNITS), default="s")
    by_rate: bool = entry(boolean, default=False)

    def __post_init__(self) -> None:
        if bool(self.column) is self.by_rate:
            raise SchemaError("give `from`, or `by_rate: true` to count steps instead of trusting the clock")


@dataclass(frozen=True)
class Where:
    """Which steps (or episodes: any step, or the episode's fact of that name) a filter takes out, and why."""

    column: str = entry(text)
    why: str = entry(text)
    equals: Any = entry(plain, default=None)
    below: float | None = entry(number, default=None)
    above: float | None = entry(number, default=None)

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.equals, self.below, self.above)) != 1:
            raise SchemaError("give exactly one of `equals`, `below` and `above`")


@dataclass(frozen=True)
class Idle:
    """Steps at which every number of these action fields is at most `at_most` in size: nothing was commanded."""

    fields: tuple[str, ...] = entry(listed(text))
    at_most: float = entry(number, default=0.0)


@dataclass(frozen=True)
class Drop:
    """What is left out; the report of a conversion counts each."""

    first_steps: int = entry(integer, default=0)
    last_steps: int = entry(integer, default=0)
    shorter_than: int = entry(integer, default=1)
    idle: Idle | None = entry(nested(Idle), default=None)
    steps: tuple[Where, ...] = entry(listed(nested(Where)), default=())
    episodes: tuple[Where, ...] = entry(listed(nested(Where)), default=())

    def __post_init__(self) -> None:
        if min(self.first_steps, self.last_steps, self.shorter_than - 1) < 0:
            raise SchemaError("steps to drop must not be negative, nor `shorter_than` below 1")


@dataclass(frozen=True)
class Published:
    """The name, version, address and size under which the dataset was published."""

    name: str = entry(text)
    version: str = entry(text, default="")
    url: str = entry(text, default="")
    episodes: int | None = entry(integer, default=None)
    steps: int | None = entry(integer, default=None)
    gigabytes: float | None = entry(number, default=None)
