"""From what a dataset offers and what was said to a plan of the files: flags first, then questions, and what is left is a blank.

Read from the data: columns, widths, names, cameras, texts, the rate where the format states it. Chosen, and said aloud: the roles of
cameras, the chunk's length, names of fields. Never chosen: units, frames, polarity, limits, an unstated rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from vla.data.format import check_name
from vla.embodiment import Embodiment
from vla.errors import UnknownName, UserError
from vla.new_robot.fields import UNITS, FieldPlan, observed_limits, pairs_of, propose, suspicious, within_two_turns
from vla.new_robot.source import Column, Offer

Ask = Callable[[str, str, Sequence[str]], str]
"""(question, default, choices) -> the answer, '' to leave it blank. `nobody` where there is no one to ask."""
OBSERVED = "observed"
_WRIST = re.compile(r"wrist|hand|gripper|eye_in", re.IGNORECASE)


def nobody(question: str, default: str, choices: Sequence[str]) -> str:
    """Takes the default, which is '' for everything that moves a motor."""
    return default


@dataclass(frozen=True)
class Answers:
    """What the command line said. Keys of `units`, `frames`, `grippers` and `limits`: `arm`, or `state.arm` and `action.arm`."""

    name: str
    state: str = ""
    action: str = ""
    state_fields: str = ""
    action_fields: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, str] = field(default_factory=dict)
    grippers: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    cameras: Mapping[str, str] = field(default_factory=dict)
    instruction: str = ""
    rate_hz: str = ""
    horizon: int | None = None
    licence: str = ""
    init: str = "runs/demo/pretrain"


@dataclass(frozen=True)
class Part:
    """State or action: a column and its fields."""

    column: Column
    fields: tuple[FieldPlan, ...]


@dataclass(frozen=True)
class Plan:
    """What will be written. `texts`: the column of the instruction, or `instruction` says it for all episodes ('' and '': a blank).
    `robot`: by value, where the dataset has it. `notes`: what was chosen, and what looks wrong."""

    name: str
    offer: Offer
    cameras: Mapping[str, str]
    rate_hz: Fraction | None
    horizon: int
    init: str
    state: Part | None = None
    action: Part | None = None
    texts: str = ""
    instruction: str = ""
    licence: str = ""
    robot: Embodiment | None = None
    notes: tuple[str, ...] = ()


def plan(offer: Offer, said: Answers, ask: Ask = nobody) -> Plan:
    """UserError for an answer that does not fit the data."""
    check_name(said.name, "name of the robot")
    if offer.robot is not None:
        return _of_shards(offer, said)
    notes: list[str] = []
    action_column = _column(offer, "action", said.action, ("action", "actions"), ask)
    state_column = _column(offer, "state", said.state, ("observation.state", "observations/qpos", "state", "states"), ask)
    split = {
        "action": _split("action", action_column, said.action_fields, ask),
        "state": _split("state", state_column, said.state_fields, ask),
    }
    _refuse_unknown(said, split, {"action": action_column, "state": state_column})
    action = Part(action_column, tuple(_field("action", each, action_column, said, ask, None) for each in split["action"]))
    known = {each.name: each for each in action.fields}
    state = Part(state_column, tuple(_field("state", each, state_column, said, ask, known.get(each.name)) for each in split["state"]))
    _refuse_unused(said, {"action": action.fields, "state": state.fields})
    notes += [note for part in (state, action) for each in part.fields if (note := suspicious(each, part.column))]
    notes += [note for each in action.fields if (note := _limits_note(each))]
    cameras = _cameras(offer, said, notes)
    texts, instruction = _instruction(offer, said, ask)
    rate_hz = _rate(offer, said, ask)
    horizon = _horizon(said, rate_hz, notes)
    licence = said.licence or ask("licence of the data (SPDX, such as CC-BY-4.0)", "unknown", ())
    return Plan(said.name, offer, cameras, rate_hz, horizon, said.init, state, action, texts, instruction, licence, None, tuple(notes))


def _of_shards(offer: Offer, said: Answers) -> Plan:
    """Our own shards know their robot; only what depends on the run, and limits that nobody has given, may be said."""
    robot = offer.robot
    assert robot is not None
    given = [
        key for key in ("state", "action", "state_fields", "action_fields", "units", "frames", "grippers", "cameras") if getattr(said, key)
    ]
    if given or said.rate_hz or said.instruction:
        raise UserError(
            f"{offer.path} says what its numbers mean: it was recorded on '{robot.name}'; leave {', '.join(given) or 'the rate'} out"
        )
    if said.name != robot.name:
        raise UserError(f"{offer.path} was recorded on '{robot.name}', and shards name their robot: --name {robot.name}")
    if said.limits:
        pairs: list[tuple[float, float]] = []
        for each in robot.command.fields:
            if each.name not in said.limits:
                raise UserError(f"limits are given for some fields and not for '{each.name}': --limit {each.name}=LOW:HIGH")
            pairs += pairs_of(said.limits[each.name], each.size, f"limits of '{each.name}'")
        robot = replace(robot, limits=tuple(pairs))
    robot = replace(robot, horizon=said.horizon or robot.horizon)
    cameras = {role: role for role in robot.cameras}
    return Plan(said.name, offer, cameras, robot.rate_hz, robot.horizon, said.init, licence=offer.licence, robot=robot)


def _column(offer: Offer, kind: str, said: str, usual: Sequence[str], ask: Ask) -> Column:
    """A column that bears one of the usual names is read as what it says; another has to be named."""
    there = [name for name in usual if name in offer.columns]
    name = said or (there[0] if there else ask(f"which column holds the {kind}", "", sorted(offer.columns)))
    if name not in offer.columns:
        fix = f"Say which holds the {kind}: --{kind} COLUMN"
        raise UnknownName(f"column for the {kind}", name or "(none is named so)", offer.columns, fix)
    return offer.columns[name]


def _split(kind: str, column: Column, split: str, ask: Ask) -> Sequence[FieldPlan]:
    proposed = propose(column, split)
    if split:
        return proposed
    default = ",".join(f"{each.name}:{each.width}" for each in proposed)
    listed = f" ({', '.join(column.names)})" if column.names else ""
    return propose(column, ask(f"fields of the {kind} '{column.name}', {column.width} numbers{listed}", default, ()) or default)


def _refuse_unknown(said: Answers, split: Mapping[str, Sequence[FieldPlan]], columns: Mapping[str, Column]) -> None:
    """UnknownName for an answer about a field that there is not: its number would be left a blank, or out, without a word."""
    told = (
        ("unit", said.units, ("action", "state")),
        ("frame", said.frames, ("action",)),
        ("gripper", said.grippers, ("action", "state")),
        ("limit", said.limits, ("action",)),
    )
    for flag, given, kinds in told:
        names = sorted({each.name for kind in kinds for each in split[kind]})
        qualified = {f"{kind}.{each.name}" for kind in kinds for each in split[kind]}
        for key in given:
            if key in qualified or key in names:
                continue
            whole = [kind for kind in kinds if len(split[kind]) == 1 and columns[kind].width > 1 and not columns[kind].names]
            hints = [f"--{kind}-fields {_example(columns[kind].width)}" for kind in whole]
            fix = f"Numbers without names are one field; divide them: {' '.join(hints)}." if hints else ""
            of = " (only commands have one)" if len(kinds) == 1 else ""
            raise UnknownName(f"field in --{flag} {key}={given[key]}{of}:", key, names, fix)


def _refuse_unused(said: Answers, fields: Mapping[str, Sequence[FieldPlan]]) -> None:
    """UserError for an answer that its field has no use for."""

    def named(key: str, kinds: Sequence[str]) -> list[FieldPlan]:
        return [each for kind in kinds for each in fields[kind] if key in (each.name, f"{kind}.{each.name}")]

    for key, ends in said.grippers.items():
        those = named(key, ("action", "state"))
        if not any(each.ends for each in those):
            unit = those[0].recorded or "of no known unit"
            raise UserError(
                f"--gripper {key}={ends}: '{key}' is {unit}; only an opening has values for open and closed: --unit {key}=open01"
            )
    for key, limits in said.limits.items():
        if not any(each.limits for each in named(key, ("action",))):
            raise UserError(f"--limit {key}={limits}: limits are in the field's unit, which nobody has said: --unit {key}=UNIT")


def _example(width: int) -> str:
    return f"arm:{width - 1},gripper:1"


def _field(kind: str, one: FieldPlan, column: Column, said: Answers, ask: Ask, twin: FieldPlan | None) -> FieldPlan:
    """`twin`: the action's field of this name, whose answers a person is offered again."""
    what = f"{kind} '{one.name}' ({column.name}[{one.start}:{one.stop}], reaches {_reach(column, one)})"

    def answer(given: Mapping[str, str], question: str, default: str, choices: Sequence[str]) -> str:
        found = given.get(f"{kind}.{one.name}", given.get(one.name, ""))
        return found or ask(question, default, choices)

    offered = "" if ask is nobody or twin is None else twin.recorded
    unit = answer(said.units, f"unit of {what}, as recorded", offered, UNITS)
    one = replace(one, recorded=unit, frame="absolute" if kind == "state" else "").checked()
    if kind == "action":
        question = f"what the controller takes for {what}: absolute targets, or the step from the last"
        one = replace(one, frame=answer(said.frames, question, "", ("absolute", "step"))).checked()
    if one.recorded == "open01":
        offered = f"{twin.ends[0]:g}:{twin.ends[1]:g}" if ask is not nobody and twin is not None and twin.ends else ""
        ends = answer(said.grippers, f"values of {what} when open and when closed, OPEN:CLOSED", offered, ())
        one = replace(one, ends=_ends(ends, one.name) if ends else None)
    told = f"{kind}.{one.name}" in said.limits or one.name in said.limits
    if kind == "action" and one.unit and (told or one.known_limits is None):
        limits = answer(said.limits, f"limits of {what} in {one.unit}, LOW:HIGH, or `{OBSERVED}` for what the data reached", "", ())
        one = replace(one, limits=_limits(limits, one, column))
    return one.checked()


def _limits(text: str, one: FieldPlan, column: Column) -> tuple[tuple[float, float], ...] | None:
    if text != OBSERVED:
        return within_two_turns(pairs_of(text, one.size, f"limits of '{one.name}'"), one, column) if text else None
    found = observed_limits(one, column)
    if found is None:
        raise UserError(f"limits of '{one.name}': a number of it never moved in the data, so that these bound nothing; give LOW:HIGH")
    return found


def _limits_note(one: FieldPlan) -> str:
    """What limits are in the data's unit, where that is another: the two are easily taken for each other."""
    if not one.limits or one.factor == 1.0:
        return ""
    own, theirs = (", ".join(dict.fromkeys(f"{a / by:.4g}:{b / by:.4g}" for a, b in one.limits)) for by in (1.0, one.factor))
    return f"limits of '{one.name}' in {one.unit}: {own} (in {one.recorded}, as the data are: {theirs})"


def _ends(text: str, name: str) -> tuple[float, float]:
    open_at, _, closed_at = text.partition(":")
    try:
        ends = (float(open_at), float(closed_at))
    except ValueError as error:
        raise UserError(f"gripper '{name}': '{text}' is no OPEN:CLOSED, such as 100:0") from error
    if ends[0] == ends[1]:
        raise UserError(f"gripper '{name}': open and closed cannot both be {ends[0]:g}")
    return ends


def _cameras(offer: Offer, said: Answers, notes: list[str]) -> dict[str, str]:
    if offer.no_bytes:
        listed = ", ".join(f"'{name}' ({dtype})" for name, dtype in offer.no_bytes.items())
        notes.append(f"{listed}: no camera, since pictures are uint8 (0..255); write them as (255 * x).round(), where they lie in 0..1")
    for role, column in said.cameras.items():
        check_name(role, "camera")
        if column not in offer.cameras:
            why = f"Its numbers are {offer.no_bytes[column]}; pictures are uint8 (0..255)." if column in offer.no_bytes else ""
            raise UnknownName(f"camera for '{role}'", column, offer.cameras, why)
    if said.cameras or not offer.cameras:
        return dict(said.cameras)
    chosen: dict[str, str] = {}
    for column in offer.cameras:
        last = column.rpartition(".")[2].rpartition("/")[2]
        side = next((word for word in ("left", "right") if word in last.lower()), "")
        role = f"wrist_{side}".rstrip("_") if _WRIST.search(last) else "third_person"
        taken = sum(each == role or (each.startswith(f"{role}_") and each[len(role) + 1 :].isdigit()) for each in chosen)
        chosen[f"{role}_{taken + 1}" if taken else role] = column
    listed = ", ".join(f"{role} = {column}" for role, column in chosen.items())
    notes.append(f"cameras by their names: {listed} (say otherwise with --camera ROLE=COLUMN)")
    return chosen


def _instruction(offer: Offer, said: Answers, ask: Ask) -> tuple[str, str]:
    """(column, text): one of the two, or neither."""
    if said.instruction:
        return "", said.instruction
    if "task" in offer.texts or len(offer.texts) == 1:
        return ("task" if "task" in offer.texts else offer.texts[0]), ""
    there = f", or one of the columns {', '.join(offer.texts)}" if offer.texts else ""
    words = ask(f"the instruction of every episode, in words{there}", "", ())
    return (words, "") if words in offer.texts else ("", words)


def _rate(offer: Offer, said: Answers, ask: Ask) -> Fraction | None:
    if offer.rate_hz is not None and not said.rate_hz:
        return offer.rate_hz
    text = said.rate_hz or ask("commands per second (Hz), such as 30 or 30000/1001", "", ())
    try:
        rate_hz = Fraction(text) if text else None
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"'{text}' is no rate; give a number such as 30, or a fraction such as 30000/1001") from error
    if rate_hz is not None and (rate_hz <= 0 or (offer.rate_hz is not None and rate_hz != offer.rate_hz)):
        raise UserError(f"a rate of {text} Hz: the dataset says {offer.rate_hz}" if offer.rate_hz else f"a rate of {text} Hz is none")
    return rate_hz


def _horizon(said: Answers, rate_hz: Fraction | None, notes: list[str]) -> int:
    if said.horizon is not None:
        if said.horizon < 1:
            raise UserError(f"--horizon {said.horizon}; give at least 1 command a chunk")
        return said.horizon
    horizon = min(max(round(rate_hz), 4), 50) if rate_hz else 16
    why = "a second's worth, at most 50" if rate_hz else "at no known rate: give the rate with --rate for a second's worth"
    notes.append(f"chunks of {horizon} commands ({why}; say otherwise with --horizon)")
    return horizon


def _reach(column: Column, one: FieldPlan) -> str:
    if not column.low_A:
        return "nothing that was looked at"
    return f"{min(column.low_A[one.start : one.stop]):.4g} .. {max(column.high_A[one.start : one.stop]):.4g}"
