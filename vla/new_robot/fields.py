"""What one field of a robot is, as far as it is known: the numbers of a column, their unit as recorded, frame, polarity and limits."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from vla.convert.vocabulary import ROTATION_WIDTHS, UNIT_FACTORS
from vla.embodiment import ROTATION_UNITS
from vla.errors import UnknownName, UserError
from vla.new_robot.source import Column

RECORDED = tuple(dict.fromkeys(unit for units in UNIT_FACTORS.values() for unit in units))
"""Units that a card converts from."""
EULER = tuple(f"euler_{axes}_{how}" for axes in ("xyz", "zyx") for how in ("extrinsic", "intrinsic"))
UNITS = (*RECORDED, "open01", "command", *ROTATION_WIDTHS, *EULER)
"""What a person may say that the numbers of a column are."""
_GRIPPER = re.compile(r"grip|jaw|finger|claw", re.IGNORECASE)
_SIDE = re.compile(r"(?:^|[_./ ])(left|right)(?:[_./ ]|$)", re.IGNORECASE)
TURN = 2 * math.pi


@dataclass(frozen=True)
class FieldPlan:
    """Numbers start <= i < stop of a column. Empty where nobody has said it yet: `recorded` (a unit of UNITS), `frame`, `ends` (the
    source's values for open and closed), `limits` (of a command, in the field's own unit)."""

    name: str
    start: int
    stop: int
    recorded: str = ""
    frame: str = ""
    ends: tuple[float, float] | None = None
    limits: tuple[tuple[float, float], ...] | None = None

    @property
    def width(self) -> int:
        """Numbers of the source."""
        return self.stop - self.start

    @property
    def unit(self) -> str:
        """The field's own unit, '' where the recorded one is not known."""
        if self.recorded in (*ROTATION_WIDTHS, *EULER):
            return "quat_xyzw" if self.recorded.startswith("quat") else "axis_angle" if self._turns else "rot6d"
        if self.recorded in ("open01", "command", ""):
            return self.recorded
        return next(unit for unit, units in UNIT_FACTORS.items() if self.recorded in units)

    @property
    def size(self) -> int:
        """Numbers of the robot's field."""
        return ROTATION_UNITS.get(self.unit, self.width)

    @property
    def factor(self) -> float:
        """What one of the source's units is in the field's."""
        return UNIT_FACTORS.get(self.unit, {}).get(self.recorded, 1.0)

    @property
    def is_rotation(self) -> bool:
        return self.unit in ROTATION_UNITS

    @property
    def known_limits(self) -> tuple[tuple[float, float], ...] | None:
        """Those that were given; an opening lies in 0..1 and the numbers of a rotation within its own bounds whatever the robot."""
        if self.limits is not None:
            return self.limits
        if self.unit == "open01":
            return ((0.0, 1.0),) * self.size
        if self.is_rotation and self.frame:
            bound = TURN if self.unit == "axis_angle" else 1.0
            return ((-bound, bound),) * self.size
        return None

    @property
    def _turns(self) -> bool:
        return self.recorded.startswith("euler") or self.recorded == "axis_angle"

    def checked(self) -> FieldPlan:
        """UserError where the unit is none, or takes another number of numbers."""
        if self.recorded and self.recorded not in UNITS:
            raise UnknownName(f"unit of '{self.name}'", self.recorded, UNITS)
        wanted = ROTATION_WIDTHS.get(self.recorded, 3 if self.recorded in EULER else self.width)
        if wanted != self.width:
            raise UserError(f"'{self.name}' has {self.width} numbers; {self.recorded} takes {wanted}")
        if self.frame not in ("", "absolute", "step"):
            raise UnknownName(f"frame of '{self.name}'", self.frame, ("absolute", "step"))
        if self.recorded in EULER and self.frame == "step":
            raise UserError(f"'{self.name}': differences of Euler angles are no rotations; say that they are rad (or deg), in frame step")
        if self.ends is not None and self.recorded != "open01":
            raise UserError(
                f"'{self.name}' is {self.recorded or 'of no known unit'}: only an opening (open01) has values for open and closed"
            )
        if self.limits is not None and len(self.limits) != self.size:
            raise UserError(f"'{self.name}' has {self.size} numbers and {len(self.limits)} pairs of limits")
        return self


def propose(column: Column, split: str = "") -> list[FieldPlan]:
    """The fields of a column: as `split` says (`arm:6,gripper:1`), else by the names of its numbers, else one."""
    if split:
        return _given(column, split)
    if len(column.names) != column.width:
        return [FieldPlan(_plain_name(column.name), 0, column.width)]
    keys = [_key(name) for name in column.names]
    found: list[FieldPlan] = []
    start = 0
    for key, run in itertools.groupby(keys):
        stop = start + len(list(run))
        taken = sum(plan.name.rstrip("_0123456789") == key for plan in found)
        found.append(FieldPlan(f"{key}_{taken + 1}" if taken else key, start, stop))
        start = stop
    return found


def suspicious(plan: FieldPlan, column: Column) -> str:
    """What the numbers of a column say against the unit that was given, or ''."""
    if not column.low_A:
        return ""
    low, high = column.low_A[plan.start : plan.stop], column.high_A[plan.start : plan.stop]
    reach = max(map(abs, (*low, *high)), default=0.0)
    where = f"'{plan.name}' reaches {reach:.4g} in the data"
    if plan.recorded in ("rad", "axis_angle", *EULER) and reach > 2 * TURN:
        return f"{where}, more than two turns: is it in degrees?"
    if plan.recorded == "deg" and 0 < reach <= TURN / 2:
        return f"{where}, less than four degrees: is it in rad?"
    if plan.recorded == "m" and reach > 20:
        return f"{where} m: is it in mm or cm?"
    if plan.recorded == "mm" and 0 < reach < 2:
        return f"{where} mm: is it in m?"
    if plan.ends is not None:
        least, most = min(plan.ends), max(plan.ends)
        slack = 0.1 * (most - least)
        if min(low) < least - slack or max(high) > most + slack:
            return f"{where} ({min(low):.4g} .. {max(high):.4g}), beyond its values for open and closed {plan.ends}"
    return ""


def observed_limits(plan: FieldPlan, column: Column) -> tuple[tuple[float, float], ...] | None:
    """What the data reached, in the field's unit; None where that is no bound (a rotation, an unknown unit, a number that never moved)."""
    if not column.low_A or not plan.recorded or plan.is_rotation or plan.unit == "open01":
        return None
    pairs = tuple(
        (low * plan.factor, high * plan.factor)
        for low, high in zip(column.low_A[plan.start : plan.stop], column.high_A[plan.start : plan.stop], strict=True)
    )
    return pairs if all(low < high for low, high in pairs) else None


def pairs_of(text: str, size: int, what: str) -> tuple[tuple[float, float], ...]:
    """`-3.1:3.1` for all numbers, or `-3:3,-1:1` for each."""
    try:
        found = [tuple(map(float, pair.split(":"))) for pair in text.split(",")]
    except ValueError as error:
        raise UserError(f"{what}: '{text}' is no LOW:HIGH, such as -3.1:3.1") from error
    if any(len(pair) != 2 or not pair[0] < pair[1] for pair in found) or len(found) not in (1, size):
        raise UserError(f"{what}: '{text}' must be LOW:HIGH with LOW < HIGH, one pair for all or one for each of {size} numbers")
    pairs = tuple((pair[0], pair[1]) for pair in found)
    return pairs * size if len(pairs) == 1 else pairs


def within_two_turns(pairs: tuple[tuple[float, float], ...], plan: FieldPlan, column: Column) -> tuple[tuple[float, float], ...]:
    """The pairs. UserError where limits in rad lie beyond two turns and the data do not: they are degrees, and would bound nothing."""
    most = max(abs(bound) for pair in pairs for bound in pair)
    seen = max(map(abs, (*column.low_A[plan.start : plan.stop], *column.high_A[plan.start : plan.stop])), default=0.0) * plan.factor
    if plan.unit == "rad" and most > 2 * TURN >= seen:
        inside = ",".join(dict.fromkeys(f"{math.radians(low):.4g}:{math.radians(high):.4g}" for low, high in pairs))
        fix = f"If they are degrees: --limit {plan.name}={inside}. A joint that does turn so far: write its limits into the robot's file."
        raise UserError(f"limits of '{plan.name}' are in rad, and {most:g} rad is more than two turns, which the data stay within. {fix}")
    return pairs


def _given(column: Column, split: str) -> list[FieldPlan]:
    found, start = [], 0
    for word in split.split(","):
        name, _, size = word.strip().partition(":")
        if not size.isdigit() or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"'{word}' is no field; give NAME:SIZE, such as arm:6")
        found.append(FieldPlan(name, start, start + int(size)))
        start += int(size)
    if start != column.width or len({plan.name for plan in found}) != len(found):
        raise UserError(f"'{split}' names {start} numbers; '{column.name}' has {column.width} (and names must differ)")
    return found


def _key(name: str) -> str:
    side = _SIDE.search(name)
    return "_".join([*([side[1].lower()] if side else []), "gripper" if _GRIPPER.search(name) else "arm"])


def _plain_name(column: str) -> str:
    return re.sub(r"\W+", "_", column.rpartition("/")[2].rpartition(".")[2]) or "numbers"
